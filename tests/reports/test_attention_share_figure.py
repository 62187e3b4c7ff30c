"""The plot of shares: where its lines run, what its axis names, and that it fits."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from keepsight.reports.attention_share_figure import (
    HEIGHT,
    LEFT,
    OVER,
    UNDER,
    WIDTH,
    Curve,
    Mark,
    share_figure,
    strip,
    ticks,
)
from keepsight.reports.pillow_text import PAPER

RED, BLUE = "#ff0000", "#0000ff"
WIDE = 500
TALL = HEIGHT - OVER - UNDER


def drawn(*curves: Curve) -> NDArray[np.int64]:
    canvas = Image.new("RGB", (WIDE, HEIGHT), PAPER)
    strip(canvas, (0, 0), WIDE, curves)
    return np.asarray(canvas).astype(int)


def rows_of(shown: NDArray[np.int64], column: int, colour: str) -> NDArray[np.int64]:
    """Rows of the plot in which a column is strongly of a colour, below the legend."""
    red, _green, blue = np.moveaxis(shown[OVER - 8 :, column], -1, 0)
    excess = red - blue if colour == RED else blue - red
    return np.asarray((excess > 120).nonzero()[0] + OVER - 8)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_level_line_runs_at_its_share(share: float) -> None:
    rows = rows_of(drawn(Curve("plain", RED, [share] * 6)), 250, RED)
    assert rows.mean() == pytest.approx(OVER + TALL * (1 - share), abs=1.5)
    assert len(rows) <= 5


def test_a_line_rises_from_left_to_right() -> None:
    shown = drawn(Curve("plain", RED, [0.1, 0.9]))
    left, right = (rows_of(shown, column, RED).mean() for column in (LEFT + 20, WIDE - 30))
    assert left - right > 0.6 * TALL


def test_two_lines_keep_their_colours() -> None:
    shown = drawn(Curve("plain", RED, [0.2] * 4), Curve("pai", BLUE, [0.7] * 4))
    assert rows_of(shown, 250, RED).mean() > rows_of(shown, 250, BLUE).mean() + 0.4 * TALL


def test_a_line_pales_where_few_answers_are_left() -> None:
    shown = drawn(Curve("plain", RED, [0.5] * 11, solid=6))
    assert len(rows_of(shown, LEFT + 50, RED))
    assert not len(rows_of(shown, WIDE - 40, RED))
    pale = shown[OVER:, WIDE - 40]
    assert (pale[:, 0] - pale[:, 2] > 40).any()


def test_marks_are_dots_with_words_that_do_not_cover_each_other() -> None:
    plain, marked = (
        drawn(Curve("plain", RED, [0.5] * 9, marks))
        for marks in ([], [Mark(4, "laptop"), Mark(5, "keyboard")])
    )
    middle = LEFT + round(4 * (WIDE - LEFT - 8) / 8)
    assert len(rows_of(marked, middle, RED)) > len(rows_of(plain, middle, RED)) + 4
    one = drawn(Curve("plain", RED, [0.5] * 9, [Mark(4, "laptop")]))
    above = slice(OVER, OVER + TALL // 2 - 8)
    assert (one[above] != plain[above]).any()
    # The second word has no room beside the first and is left out; its dot stays
    np.testing.assert_array_equal(marked[above], one[above])


def test_one_token_is_a_dot() -> None:
    assert len(rows_of(drawn(Curve("plain", RED, [0.5])), LEFT, RED)) > 5


def test_ticks_are_round_and_few() -> None:
    assert ticks(1) == [1]
    assert ticks(16) == [1, 5, 10, 15]
    assert ticks(128) == [1, 20, 40, 60, 80, 100, 120]
    for longest in (1, 7, 60, 61, 512, 3000, 5000):
        assert len(ticks(longest)) <= 14
        assert max(ticks(longest)) <= longest


def test_the_figure_grows_with_its_notes_and_names_what_it_shows() -> None:
    curve = Curve(
        "pai:alpha=0.5,gamma=1.0,first_layer=0,layers=" + "+".join(map(str, range(60))), BLUE, [0.5, 0.6]
    )
    short, long = (
        share_figure([curve], heading="demo", notes=notes) for notes in (["A note."], ["word " * 200])
    )
    assert short.width == long.width == WIDTH
    assert long.height > short.height + 100
    edge = np.asarray(long)[:, -8:]
    assert (edge == edge[0, 0]).all()  # nothing runs off the side
