from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from keepsight import ground
from keepsight.cli import _chat
from keepsight.cli._chat import Chat, interruptible, knows
from keepsight.cli._chat_screen import NoInput, Screen, harmless, rows_of
from keepsight.cli.main import app
from keepsight.demo.model import PROMPT, load
from keepsight.demo.world import NAMES, ask, scene
from keepsight.grounding import THRESHOLD

Refused = Callable[..., str]
METHOD = "m3id:decay=0.07,cutoff=0.02"


def piped(*lines: str, options: tuple[str, ...] = ()) -> Result:
    return CliRunner().invoke(app, ["chat", *options], input="\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    return load()


def said(demo: tuple[Any, Any], picture: Any, *recipes: str) -> str:
    from keepsight.inference.generation import answer

    [answers] = answer(*demo, [picture], PROMPT, *recipes)
    return answers.texts[0]


def test_a_pipe_gets_each_answer_with_flagged_words_in_brackets(demo: tuple[Any, Any]) -> None:
    ran = piped(
        "/image test-shifted:1",
        PROMPT,
        "",
        f"/method {METHOD}",
        PROMPT,
        "/method none",
        PROMPT,
        "/quit",
        PROMPT,
    )
    assert (ran.exit_code, ran.stderr) == (0, "")
    picture = scene("test-shifted", 1).image()
    plain, mitigated, again = ran.stdout.splitlines()
    assert plain == again
    for line, recipes in ((plain, ()), (mitigated, (METHOD,))):
        text = line.replace("[", "").replace("]", "")
        assert text == said(demo, picture, *recipes)
        for word in ground(*demo, picture, PROMPT, text).words():
            assert (f"[{word.word}]" in line) == (word.support < THRESHOLD)
        assert "[" in line
    assert plain != mitigated


def test_options_are_the_commands_at_the_start(demo: tuple[Any, Any]) -> None:
    options = ("--image", "val:3", "--method", METHOD, "--threshold", "-99", "--max-new-tokens", "9")
    ran = piped(PROMPT, options=options)
    assert (ran.exit_code, ran.stderr) == (0, "")
    whole = said(demo, scene("val", 3).image(), METHOD)
    assert whole.startswith(ran.stdout.strip())
    assert 0 < len(ran.stdout.strip()) < len(whole)


def test_words_tell_the_figures_of_the_last_answer(demo: tuple[Any, Any]) -> None:
    ran = piped("/words", "/image test-shifted:1", PROMPT, "/words", "/reset", "/words")
    before, caption, head, *rows, after = ran.stdout.splitlines()
    assert before == after == "no object word was judged yet"
    assert head.split() == ["word", "with", "without", "grounding"]
    words = ground(
        *demo, scene("test-shifted", 1).image(), PROMPT, caption.replace("[", "").replace("]", "")
    ).words()
    for row, word in zip(rows, words, strict=True):
        name, *figures = row.replace("−", "-").removesuffix("flagged").split()
        assert name == word.word
        wanted = [word.with_image, word.without_image, word.support]
        assert [float(figure) for figure in figures] == pytest.approx(wanted, abs=0.0051)
        assert row.endswith("flagged") == (word.support < THRESHOLD)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([PROMPT], "no picture yet: /image PATH shows one"),
        (["/image"], "/image needs a path"),
        (["/image missing.png"], "no such picture: missing.png"),
        (["/image test-shifted:99999999"], "out of range"),
        (["/method m3di"], "did you mean 'm3id'?"),
        (["/method m3id:decay=nan"], "decay=nan must be a finite number"),
        (["/imgae x"], "no command is called /imgae: did you mean 'image'?"),
        (["/image val:0", "/method m3id+m3id", PROMPT], "m3id is given twice"),
    ],
)
def test_a_pipe_ends_at_the_first_refused_line(lines: list[str], told: str) -> None:
    ran = piped(*lines, "/help")
    assert ran.exit_code == 2
    assert ran.stdout == ""
    assert told in ran.stderr
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("errors", "told"),
    [("strict", "the input is not utf-8"), ("surrogateescape", "holds bytes that are not UTF-8")],
)
def test_input_in_another_encoding(
    demo: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, errors: str, told: str
) -> None:
    chat = chat_of(demo)
    chat.show("val:0")
    chat.screen.interactive = False
    given = io.TextIOWrapper(io.BytesIO(b"caf\xe9?\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr(sys, "stdin", given)
    with pytest.raises(_chat.NotText, match=told):
        _chat.converse(chat)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", ["stdin", "stdout"])
def test_closed_streams(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, name, None)
    with pytest.raises(NoInput, match="is closed: chat in a terminal"):
        Screen()


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--image", "missing.png"], "no such picture"),
        (["--method", "m3di"], "m3id"),
        (["--threshold", "nan"], "--threshold nan must be a finite number"),
        (["--temperature", "2"], "no effect"),
        (["--max-new-tokens", "0"], "max_new_tokens=0"),
        (["--calibration", "missing.json"], "missing.json"),
    ],
)
def test_bad_options_cost_nothing(refused: Refused, options: list[str], told: str) -> None:
    assert told in refused("chat", *options)


class Terminal(Screen):
    """A screen that takes its output for a terminal's."""

    def __init__(self) -> None:
        super().__init__()
        self.interactive = self.streams = True


def chat_of(demo: tuple[Any, Any], **settings: Any) -> Chat:
    from keepsight.inference.generation import Generation

    given = {
        "name": "demo",
        "threshold": THRESHOLD,
        "alone": True,
        "generation": Generation(max_new_tokens=32),
    }
    return Chat(model=demo[0], processor=demo[1], screen=Terminal(), **{**given, **settings})


def test_ctrl_c_ends_the_answer_and_not_the_chat(
    demo: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = chat_of(demo)
    lines = iter(["/image test-shifted:1", PROMPT, PROMPT])
    pieces: list[str] = []

    def say(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(chat.screen, "say", say)
    monkeypatch.setattr(_chat, "_next_line", lambda screen: next(lines, None))
    before = signal.getsignal(signal.SIGINT)
    _chat.converse(chat)
    assert signal.getsignal(signal.SIGINT) is before
    (_, cut), (_, whole) = chat.said
    assert whole.startswith(cut)
    assert len(cut.split()) < 5 < len(whole.split())
    told = capsys.readouterr().out
    assert told.count("stopped") == 1


def test_a_second_ctrl_c_gives_up_waiting() -> None:
    def twice() -> None:
        with interruptible() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.is_set()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()


def test_errors_in_a_terminal_are_told_and_the_chat_goes_on(
    demo: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = chat_of(demo)
    lines = iter([PROMPT, "/nope", "/image val:0", PROMPT])
    monkeypatch.setattr(_chat, "_next_line", lambda screen: next(lines, None))
    _chat.converse(chat)
    streams = capsys.readouterr()
    assert [line.partition(":")[0] for line in streams.err.splitlines()] == ["error", "error"]
    assert len(chat.said) == 1
    assert said(demo, scene("val", 0).image()) in streams.out, "streamed as it was written"


def test_a_conversation_grows_unless_questions_stand_alone(
    demo: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from keepsight.source import prompts as captioning

    histories: list[list[tuple[str, str]]] = []
    prepared = captioning.prepare_conversation

    def prepare(processor: Any, picture: Any, said: Any, question: str) -> Any:
        histories.append(list(said))
        return prepared(processor, picture, said, question)

    monkeypatch.setattr(captioning, "prepare_conversation", prepare)
    for alone, lengths in ((False, [0, 1, 0]), (True, [0, 0, 0])):
        histories.clear()
        chat = chat_of(demo, alone=alone)
        chat.show("val:0")
        chat.ask(PROMPT)
        chat.ask(PROMPT)
        chat.command("/image val:1")
        chat.ask(PROMPT)
        assert [len(history) for history in histories] == lengths


def test_the_demo_says_what_it_does_not_know(
    demo: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert all(knows(ask(name)) for name in NAMES)
    chat = chat_of(demo)
    chat.greet()
    assert "it remembers nothing" in capsys.readouterr().out.replace("\n", " ")
    chat.show("val:0")
    for question, known in ((PROMPT, True), ("Why is the cup blue?", False)):
        chat.ask(question)
        assert ("not trained on this question" in capsys.readouterr().out) != known


def test_a_terminal_gets_the_answer_again_with_colours(
    demo: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "30")
    chat = chat_of(demo)
    chat.screen.console = Console(
        file=out, force_terminal=True, color_system="standard", highlight=False, width=40
    )
    chat.screen.rewrites = True
    chat.show("test-shifted:1")
    chat.ask(PROMPT)
    streamed, rewritten = out.getvalue().split("\r\x1b[J")
    text = said(demo, scene("test-shifted", 1).image())
    assert text in streamed
    assert streamed.endswith(f"\x1b[{rows_of(text, 40) - 1}A")
    assert "\x1b[1;31mrefrigerator\x1b[0m" in rewritten
    assert "\x1b[32moven\x1b[0m" in rewritten
    assert "refrigerator −1.38" in rewritten, "told once more below, with its figure"


def test_what_a_model_writes_cannot_move_the_cursor() -> None:
    assert harmless("a\x1b[2J\u202e\x07\u009bb\nc d") == "a�[2J���b\nc d"
