"""The chat itself: what was said, the commands, and an interrupted answer that does not end the chat."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from keepsight.cli._chat_screen import Screen
from keepsight.errors import InputError, KeepsightError, did_you_mean

if TYPE_CHECKING:
    from keepsight.grounding import WordGrounding
    from keepsight.inference.generation import Generation
    from keepsight.method import Method

HELP = """\
  /image PATH        show a picture or a drawn scene, such as /image test-shifted:5, and forget what was said
  /method SPEC       answer under a method, or under several joined with +, such as /method m3id:decay=0.05+pai;
                     /method none is the plain model
  /words             print the figures behind the colours of the last answer
  /reset             forget what was said, but keep the picture
  /quit              leave (or Ctrl-D)
Anything else is a question about the picture. Ctrl-C ends an answer, not the chat."""
COMMANDS = ("help", "image", "method", "quit", "reset", "words")
FEW_QUESTIONS = (
    'The demo model is tiny. It knows drawn scenes (/image test-shifted:5) and two questions, "Describe this image." and'
    ' "Is there a dog in the image?" (or another object). Each stands alone: it remembers nothing.'
)


class NoPicture(InputError):
    """A question was asked before there was a picture to ask about."""


class NotText(InputError):
    """The input is in another encoding than the locale's."""


class UnknownCommand(InputError):
    """A line begins with a slash and is no command."""


def knows(question: str) -> bool:
    """Whether the demo model was trained on a question.

    >>> knows("Is there a cup in the image?"), knows("What is the cup made of?")
    (True, False)
    """
    from keepsight.demo.prompts import PROMPTS

    return question in PROMPTS or re.fullmatch(r"Is there an? [\w ]+ in the image\?", question) is not None


@dataclass(kw_only=True)
class Chat:
    """One person's chat: the picture, the methods and what was said so far.

    Args:
        alone: let each question stand alone.
        threshold: object words with less support are flagged.
        calibration: a file for those methods that read one.
    """

    name: str
    model: Any
    processor: Any
    screen: Screen
    generation: Generation
    threshold: float
    alone: bool
    calibration: Path | None = None
    recipes: list[Method] = field(default_factory=list)
    picture: Any = None
    present: frozenset[str] | None = None
    said: list[tuple[str, str]] = field(default_factory=list)
    judged: tuple[WordGrounding, ...] | None = None

    @property
    def packaged(self) -> bool:
        from keepsight.inference.loading import DEMO

        return self.name == DEMO

    def greet(self) -> None:
        from keepsight import __version__
        from keepsight.cli.ground import nats

        self.screen.note(f"Keepsight {__version__} · {self.name} · {self.manner}", strong=True)
        self.screen.note("/image PATH shows a picture, /method SPEC chooses a method, /help tells the rest.")
        if self.packaged:
            self.screen.note(FEW_QUESTIONS)
        mark = "Red" if self.screen.colour else "Bracketed"
        chosen = "" if self.packaged else " The threshold was chosen on the demo world: see --threshold."
        self.screen.note(
            f"{mark} words: the picture may not support them (grounding below {nats(self.threshold)}).{chosen}"
        )

    @property
    def manner(self) -> str:
        from keepsight.cli._methods import label

        return label(self.recipes)

    def choose(self, recipes: Sequence[Method]) -> None:
        """Answer under these methods from now on, all of them together."""
        from keepsight.cli._methods import reads_calibration, with_calibration

        if self.calibration is not None and any(map(reads_calibration, recipes)):
            [recipes] = with_calibration([tuple(recipes)], self.calibration)
        self.recipes = list(recipes)

    def show(self, name: str) -> None:
        """Take a picture, and forget what was said about another.

        Raises:
            BadImage, WorldError: as ``read_picture``.
        """
        from keepsight.cli._pictures import read_picture

        self.picture, self.present = read_picture(name)
        self.said, self.judged = [], None
        self.screen.note(f"picture: {name}, {self.picture.width} x {self.picture.height}")

    def ask(self, question: str) -> None:
        """Answer a question on the screen.

        Raises:
            NoPicture: there is none yet.
            NotText: the question holds bytes that are no letters.
            Whatever the model or a method raises; the question is then not remembered.
        """
        from keepsight.inference.streaming import stream_answer
        from keepsight.source.prompts import prepare_conversation

        if self.picture is None:
            raise NoPicture("no picture yet: /image PATH shows one, /image test-shifted:5 a drawn scene")
        if any(
            "\ud800" <= letter <= "\udfff" for letter in question
        ):  # what Python makes of them in some locales
            raise NotText("the question holds bytes that are not UTF-8: convert the input")
        if self.packaged and not knows(question):
            self.screen.note("The demo model was not trained on this question: its answer means nothing.")
        said = [] if self.alone else self.said
        inputs = prepare_conversation(self.processor, self.picture, said, question)
        inputs = inputs.to(self.model.device, dtype=self.model.dtype)
        self.screen.begin()
        self.judged = None
        try:
            with interruptible() as stop:
                written = stream_answer(
                    self.model,
                    self.processor,
                    inputs,
                    *self.recipes,
                    on_text=self.screen.say,
                    stop=stop,
                    generation=self.generation,
                )
        except BaseException:
            self.screen.drop()
            raise
        self.said.append((question, written.text))
        why = self._judge(inputs, written.ids)
        self.screen.finish(written.text, self.judged or (), self.threshold)
        self.screen.note(self._told(written) + why)

    def _judge(self, inputs: Any, ids: Sequence[int]) -> str:
        """Fills ``judged``; what cannot be judged is said, and the answer stays."""
        from keepsight.grounding.teacher_forcing import judge

        if not ids:
            return ""
        try:
            self.judged = judge(self.model, self.processor, inputs, ids).words()
        except KeyboardInterrupt:
            return "; words not judged: interrupted"
        except KeepsightError as error:
            return f"; words not judged: {error}"
        return ""

    def _told(self, written: Any) -> str:
        from keepsight.cli.ground import nats

        ending = ", stopped" if written.stopped else ", cut at --max-new-tokens" if written.full else ""
        told = [f"{self.manner}: {len(written.ids)} tokens in {written.seconds:.1f} s{ending}"]
        words = self.judged or ()
        if flagged := [f"{one.word} {nats(one.support)}" for one in words if one.support < self.threshold]:
            told.append("flagged: " + ", ".join(flagged))
        if self.present is not None and words and not re.match(r"(yes|no)\b", written.text, re.IGNORECASE):
            absent = dict.fromkeys(one.word for one in words if one.object not in self.present)
            told.append("not in the picture: " + (", ".join(absent) or "none"))
        return "; ".join(told)

    def words(self) -> None:
        """The table of the last answer's object words."""
        from keepsight.cli.ground import nats

        if not self.judged:
            self.screen.print("no object word was judged yet")
            return
        wide = max(len("word"), *(len(word.word) for word in self.judged))
        self.screen.print(f"{'word':{wide}}     with  without  grounding")
        for word in self.judged:
            figures = f"{nats(word.with_image):>7}  {nats(word.without_image):>7}  {nats(word.support):>9}"
            flag = "  flagged" if word.support < self.threshold else ""
            self.screen.print(f"{word.word:{wide}}  {figures}{flag}")

    def command(self, line: str) -> bool:
        """Follow a line that begins with a slash; false if the chat is to end.

        Raises:
            UnknownCommand, and what the commands raise.
        """
        from keepsight.cli._methods import read_methods

        name, _, rest = line[1:].strip().partition(" ")
        rest = rest.strip()
        if name in ("quit", "exit"):
            return False
        if name == "help":
            self.screen.print(HELP)
        elif name == "words":
            self.words()
        elif name == "reset":
            self.said, self.judged = [], None
            self.screen.note("forgotten")
        elif name == "image":
            if not rest:
                raise NoPicture("/image needs a path, or a drawn scene such as /image test-shifted:5")
            self.show(rest[1:-1] if len(rest) > 1 and rest[0] == rest[-1] and rest[0] in "'\"" else rest)
        elif name == "method":
            if rest:
                self.choose(read_methods(rest))
            self.screen.note(f"method: {self.manner}")
        else:
            raise UnknownCommand(f"no command is called /{name}: {did_you_mean(name, COMMANDS)}")
        return True


@contextmanager
def interruptible() -> Iterator[Event]:
    """Ctrl-C sets the yielded event; a second one interrupts as usual."""
    stop = Event()

    def heard(*_: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, heard)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def converse(chat: Chat) -> None:
    """Questions and commands until the input ends. Errors are told and the chat goes on, except from a pipe: there the
    first one is raised, since nobody is there to mend the next line."""
    screen = chat.screen
    while True:
        try:
            line = _next_line(screen)
            if line is None:
                return
            line = line.strip()
            if not line:
                continue
            if not line.startswith("/"):
                chat.ask(line)
            elif not chat.command(line):
                return
        except KeyboardInterrupt:
            if not screen.interactive:
                raise
            screen.note("interrupted; nothing of it is remembered")
        except KeepsightError as error:
            if not screen.interactive:
                raise
            screen.refuse(str(error))


def _next_line(screen: Screen) -> str | None:
    """The next line of the input, None at its end. Raises ``NotText``."""
    try:
        return _read_line(screen)
    except UnicodeDecodeError as error:
        raise NotText(f"the input is not {error.encoding} ({error.reason}): convert it") from None


def _read_line(screen: Screen) -> str | None:
    if not screen.interactive:
        return sys.stdin.readline() or None
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (arrow keys and history for input)
    while True:
        try:
            return input("› ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            screen.note("Ctrl-D or /quit leaves.")
