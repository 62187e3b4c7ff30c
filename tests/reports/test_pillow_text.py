"""Text in figures: which font draws a word, what stands for characters that no font has, and how wide it all is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from keepsight.reports import pillow_text
from keepsight.reports.pillow_text import (
    OWN,
    Piece,
    _fonts_of,
    fallback_fonts,
    measure,
    notes_on_fonts,
    plain_pieces,
    shorten,
    text_width,
    wrap,
    write,
    write_pieces,
)


def forget() -> None:
    _fonts_of.cache_clear()
    pillow_text._has.cache_clear()


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A computer on which Pillow's own font is all there is."""
    forget()
    monkeypatch.setattr(pillow_text, "fallback_fonts", lambda: ())


@pytest.fixture
def dejavu(monkeypatch: pytest.MonkeyPatch) -> str:
    """A computer that has DejaVu Sans besides."""
    from matplotlib import get_data_path

    forget()
    file = f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    monkeypatch.setattr(pillow_text, "fallback_fonts", lambda: (file,))
    return file


@pytest.fixture(autouse=True)
def _forgetful() -> object:
    yield
    forget()


def drawn(text: str) -> np.ndarray:
    canvas = Image.new("L", (400, 40), 255)
    write(ImageDraw.Draw(canvas), (2, 2), text, 20, "#000000")
    return np.asarray(canvas)


def test_matplotlib_brings_a_font() -> None:
    """The extra `plots` is enough for Latin, Greek, Cyrillic, Hebrew and Arabic, on a computer without fonts as well."""
    assert fallback_fonts()[0].endswith("DejaVuSans.ttf")


@pytest.mark.parametrize("word", ["Hündchen", "Łódź", "кошка", "γάτα", "חתול", "قطة"])
def test_other_scripts_are_drawn_in_one_font(word: str, dejavu: str) -> None:
    assert _fonts_of(word) == ((word, dejavu),)
    assert not notes_on_fonts([word])
    own = drawn(word)
    assert (own < 128).any()
    assert (own != drawn("?" * len(word))).any()


def test_words_in_ascii_keep_the_figures_own_font(dejavu: str) -> None:
    assert _fonts_of("table") == (("table", OWN),)
    # Signs that figures write themselves do not pull a number into another font
    assert drawn("8×8").tolist() == drawn("8x8").tolist()
    assert drawn("−3.0 – 4").tolist() == drawn("-3.0 - 4").tolist()


@pytest.mark.usefixtures("no_fonts")
def test_without_a_font_accents_go_and_other_characters_are_numbered() -> None:
    assert _fonts_of("café") == (("c", OWN), ("a", OWN), ("f", OWN), ("e", OWN))
    assert drawn("café").tolist() == drawn("cafe").tolist()
    assert drawn("一只 cat").tolist() == drawn("[U+4E00][U+53EA] cat").tolist()
    assert not notes_on_fonts(["café", "a plain – text"])
    (note,) = notes_on_fonts(["a 猫 and a 猫", "犬"])
    assert note.startswith("[U+732B] and 1 more stand for characters that no font")
    (note,) = notes_on_fonts(["a 猫"])
    assert note.startswith("[U+732B] stands for a character that no font")


def test_one_character_that_no_font_has_leaves_the_others_in_theirs(dejavu: str) -> None:
    assert _fonts_of("яU猫") == (("я", dejavu), ("U", OWN), ("[U+732B]", OWN))


def test_a_lone_sign_of_a_script_is_not_taken_for_one_that_the_font_has(dejavu: str) -> None:
    """Shaped alone, a vowel sign that the font lacks stands on a dotted circle that the font has."""
    assert _fonts_of("\u0947") == (("[U+0947]", OWN),)


def test_a_sentence_without_spaces_is_broken_at_the_edge(dejavu: str) -> None:
    sentence = "привет" * 20
    lines = list(wrap(plain_pieces(f"It says {sentence} and ends."), 150, 20))
    assert all(measure(line, 20) <= 150 for line in lines)
    broken = [piece for line in lines for piece in line if set(piece.text) <= set(sentence)]
    assert "".join(piece.text for piece in broken) == sentence
    assert [piece.glued for piece in broken] == [False] + [True] * (len(broken) - 1)
    # Where not even one character fits, each line has one
    assert [len(line) for line in wrap(plain_pieces("абв"), 1, 20)] == [1, 1, 1]


def test_a_decomposed_accent_is_the_composed_letter(dejavu: str) -> None:
    assert drawn("cafe\u0301").tolist() == drawn("caf\u00e9").tolist()


def test_joiners_and_white_space(dejavu: str) -> None:
    assert _fonts_of("ta\u00adble") == (("table", OWN),)
    assert text_width("a\tb\u3000c", 20) == text_width("a b c", 20)
    assert text_width("", 20) == 0
    assert drawn("\x00").tolist() == drawn("[U+0000]").tolist()


@pytest.mark.parametrize("text", ["кошка and собака sleep", "一只猫和一只狗 sleep " * 3])
def test_shortened_text_and_lines_fit(text: str, dejavu: str) -> None:
    cut = shorten(text, 120, 20)
    assert cut.endswith("…")
    assert text.startswith(cut[:-1])
    assert text_width(cut, 20) <= 120
    pieces = plain_pieces("кошка and собака lie on a table")
    lines = list(wrap(pieces, 150, 20))
    assert [piece for line in lines for piece in line] == pieces
    assert len(lines) > 1
    assert all(measure(line, 20) <= 150 for line in lines)


def test_scripts_share_a_baseline(dejavu: str) -> None:
    """The feet of letters in two fonts stand on one line."""
    feet = [(drawn(letter) < 128).any(axis=1).nonzero()[0].max() for letter in ("h", "н")]
    assert abs(int(feet[0]) - int(feet[1])) <= 1


def test_a_struck_word_is_struck_over_its_own_width(dejavu: str) -> None:
    canvas = Image.new("RGB", (300, 40), "#ffffff")
    write_pieces(ImageDraw.Draw(canvas), (0, 0), [Piece("a"), Piece("кошка", "#ff0000", True)], 20)
    red = np.asarray(canvas)[int(0.62 * 20)]
    columns = ((red[:, 0] > 200) & (red[:, 1] < 60)).nonzero()[0]
    start = text_width("a ", 20)
    assert columns.min() == pytest.approx(start, abs=2)
    assert columns.max() == pytest.approx(start + text_width("кошка", 20), abs=2)
