"""A chat in the terminal: its memory, its commands, and answers that can be interrupted without ending the chat."""

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
    """The input is in another encoding than that of the locale."""


class UnknownCommand(InputError):
    """A line begins with a slash, and names no command."""


def knows(question: str) -> bool:
    """Whether the demo model was trained on a question.

    >>> knows("Is there a cup in the image?"), knows("What is the cup made of?")
    (True, False)
    """
    from keepsight.demo.prompts import PROMPTS

    return question in PROMPTS or re.fullmatch(r"Is there an? [\w ]+ in the image\?", question) is not None


@dataclass(kw_only=True)
class Chat:
    """One person's chat.

    Args:
        name: the MODEL of the command line.
        model, processor: the loaded model.
        screen: where the chat writes.
        generation: how answers are searched for.
        threshold: object words whose grounding is below this are flagged, in nats.
        alone: whether each question is asked without those before it.
        calibration: a file for the methods that read one.
        recipes: the methods that act together; none for the plain model.
        picture: the picture that is talked about; None until one is shown.
        present: the objects known to be in the picture; None if it is not known.
        said: the questions and answers so far.
        judged: the object words of the last answer with their grounding; None if they were not judged.
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
        """Whether the model is the packaged demo model."""
        from keepsight.inference.loading import DEMO

        return self.name == DEMO

    def greet(self) -> None:
        """Say what the chat is, and how words are flagged."""
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
        """The methods in use as people read them: their spec, or ``plain``."""
        from keepsight.cli._methods import label

        return label(self.recipes)

    def choose(self, recipes: Sequence[Method]) -> None:
        """Answer under these methods from now on, all of them together."""
        from keepsight.cli._methods import reads_calibration, with_calibration

        if self.calibration is not None and any(map(reads_calibration, recipes)):
            [recipes] = with_calibration([tuple(recipes)], self.calibration)
        self.recipes = list(recipes)

    def show(self, name: str) -> None:
        """Take a picture, and forget what was said about the one before.

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
            NoPicture: no picture was shown yet.
            NotText: the question holds bytes that are no letters.
            Exception: whatever the model or a method raises; the question is then not remembered.
        """
        from keepsight.inference.streaming import stream_answer
        from keepsight.source.prompts import prepare_conversation

        if self.picture is None:
            raise NoPicture("no picture yet: /image PATH shows one, /image test-shifted:5 a drawn scene")
        # In some locales Python reads bytes that are not UTF-8 as surrogates, which no tokenizer takes.
        if any("\ud800" <= letter <= "\udfff" for letter in question):
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
            # An interrupt is no Exception, and the line of half an answer has to be ended after one as well.
            self.screen.drop()
            raise
        # The question is remembered only now that it has an answer: one that failed must not stand in the next prompt.
        self.said.append((question, written.text))
        why = self._judge(inputs, written.ids)
        self.screen.finish(written.text, self.judged or (), self.threshold)
        self.screen.note(self._told(written) + why)

    def _judge(self, inputs: Any, ids: Sequence[int]) -> str:
        """Fill ``judged``, and return a note on why words could not be judged; empty if they were. The answer stays in
        either case."""
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
        """The line under an answer: method, length, time, flagged words, and words for what is known not to be in the
        picture."""
        from keepsight.cli.ground import nats

        ending = ", stopped" if written.stopped else ", cut at --max-new-tokens" if written.full else ""
        told = [f"{self.manner}: {len(written.ids)} tokens in {written.seconds:.1f} s{ending}"]
        words = self.judged or ()
        if flagged := [f"{one.word} {nats(one.support)}" for one in words if one.support < self.threshold]:
            told.append("flagged: " + ", ".join(flagged))
        # The object of a yes-or-no answer is the one that the question named, which says nothing about what the model
        # invents.
        if self.present is not None and words and not re.match(r"(yes|no)\b", written.text, re.IGNORECASE):
            absent = dict.fromkeys(one.word for one in words if one.object not in self.present)
            told.append("not in the picture: " + (", ".join(absent) or "none"))
        return "; ".join(told)

    def words(self) -> None:
        """Print the table of the last answer's object words."""
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
        """Follow a line that begins with a slash; False if the chat is to end.

        Raises:
            UnknownCommand: the line names no command.
            KeepsightError: whatever the command raises.
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
            # People quote paths with spaces as in a shell, so a pair of quotes around the path is taken off.
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
    """Inside the block, Ctrl-C sets the yielded event, and a second Ctrl-C interrupts as usual."""
    stop = Event()

    def heard(*_: Any) -> None:
        """Handle Ctrl-C."""
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    # The event ends the generation after the next token, so that what was written so far is kept. An exception in the
    # middle of a forward pass would lose it.
    before = signal.signal(signal.SIGINT, heard)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def converse(chat: Chat) -> None:
    """Take questions and commands until the input ends.

    In a terminal errors are told and the chat goes on. From a pipe the first error is raised, since nobody is there to
    mend the next line.
    """
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
    """The next line of the input, or None at its end. Raises ``NotText``."""
    try:
        return _read_line(screen)
    except UnicodeDecodeError as error:
        raise NotText(f"the input is not {error.encoding} ({error.reason}): convert it") from None


def _read_line(screen: Screen) -> str | None:
    """The next line from the terminal or the pipe, or None at its end."""
    if not screen.interactive:
        # An empty line is a newline, so an empty text can only be the end of the input.
        return sys.stdin.readline() or None
    import contextlib

    with contextlib.suppress(ImportError):
        # Importing readline gives input() arrow keys and a history. Windows has no such module.
        import readline  # noqa: F401
    while True:
        try:
            return input("› ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            # Ctrl-C ends an answer and not the chat, also when it is pressed a moment too late.
            screen.note("Ctrl-D or /quit leaves.")
