"""What the page shows of one model: answers with the grounding of their words, their attention maps, and CHAIR."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from keepsight.errors import (
    InputError,
    InvalidParameter,
    KeepsightError,
    NeedsCalibration,
    UnsupportedModel,
)
from keepsight.serve.errors import tellable
from keepsight.serve.limits import Limits
from keepsight.serve.malloc_trim import LARGE, give_back

if TYPE_CHECKING:
    from keepsight.demo.world import Scene
    from keepsight.grounding import WordGrounding
    from keepsight.inference.streaming import StreamedAnswer
    from keepsight.method import Method
    from keepsight.serve.page.request_schema import Asked

LIMITS = Limits(request_bytes=30 << 20, image_bytes=20 << 20, tokens=512, queue=8)
"""What the page's server takes."""
SPLITS = ("test-shifted", "test", "val-shifted", "val")
"""The splits of the demo world that the page offers."""
DEMO_SPEC = "m3id:decay=0.07,cutoff=0.02"
"""What the page compares the plain demo model to at first."""


class NothingToMap(InputError):
    """An answer names no object, so that there is no word to look at."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request whose picture has been read: what is left to do is the model's. ``size`` is the picture's, in pixels."""

    asked: Asked
    inputs: Any = field(repr=False)
    methods: tuple[Method, ...]
    size: tuple[int, int]


@dataclass(kw_only=True)
class Studio:
    """A model with its processor, and twins of the model for answers that are written at the same time.

    Answers are greedy: torch's random state is one for all threads, and a greedy search draws nothing from it.

    Args:
        name: of the model, as the person wrote it.
        calibration: a file for those methods that read one.
        at_once: answers at a time, 1 or more. Where the model has no twin it is one, and ``alone`` says why.
    """

    name: str
    model: Any = field(repr=False)
    processor: Any = field(repr=False)
    calibration: Path | None = None
    limits: Limits = LIMITS
    at_once: int = 2
    models: tuple[Any, ...] = field(init=False, repr=False)
    """The model and its twins, one for each answer at a time; each is for one thread at a time."""
    alone: str | None = field(init=False, default=None)
    _processing: Lock = field(init=False, default_factory=Lock, repr=False)

    def __post_init__(self) -> None:
        from keepsight.engines.hf.weight_sharing import twin

        if self.at_once < 1:
            raise InvalidParameter(f"at_once={self.at_once} must be a whole number, 1 or more")
        try:
            self.models = (self.model, *(twin(self.model) for _ in range(1, self.at_once)))
        except UnsupportedModel as error:
            self.models, self.alone = (self.model,), str(error)

    @property
    def vocabulary(self) -> int:
        return int(self.model.get_input_embeddings().num_embeddings)

    def facts(self) -> dict[str, Any]:
        """What the page must know before anything is asked."""
        from keepsight import __version__
        from keepsight.demo.model import PROMPT
        from keepsight.demo.world import NAMES, ask
        from keepsight.grounding import SCORE, THRESHOLD, WEIGHT
        from keepsight.inference.loading import DEMO
        from keepsight.registry import methods

        packaged = self.name == DEMO
        suggested = {
            "m3id": DEMO_SPEC,
            "vcd": "vcd:beta=0.02,noise_step=999",
            "pai": "pai:alpha=0.5,gamma=1.5",
        }
        return {
            "model": self.name if packaged or not Path(self.name).exists() else Path(self.name).name,
            "packaged": packaged,
            "version": __version__,
            "question": PROMPT,
            "questions": [PROMPT, *map(ask, NAMES)] if packaged else [PROMPT],
            "splits": list(SPLITS),
            "threshold": THRESHOLD,
            "score": SCORE,
            "weight": WEIGHT,
            "lanes": len(self.models),
            "alone": self.alone,
            "tokens": min(128, self.limits.tokens),
            "limits": {"tokens": self.limits.tokens, "image_bytes": self.limits.image_bytes},
            "methods": [
                {
                    "name": name,
                    "title": method.title,
                    "gist": method.gist,
                    "cost": method.cost,
                    "spec": suggested.get(name, name) if packaged else name,
                }
                for name, method in methods().items()
            ],
        }

    def prepare(self, asked: Asked) -> Prepared:
        """The model inputs and the methods of a request. In any thread; the picture is not kept.

        Raises:
            BadPicture, BadPrompt, NoChatTemplate, NoImageTokens.
        """
        from keepsight.source.prompts import prepare

        picture = asked.picture(self.limits)
        size = picture.size
        try:
            with self._processing:  # tokenizers keep settings that two threads must not change at once
                inputs = prepare(self.processor, [picture], asked.question)
        finally:
            del picture
            if size[0] * size[1] > LARGE:
                give_back()
        return Prepared(
            asked=replace(asked, file=None), inputs=inputs, methods=self._calibrated(asked.methods), size=size
        )

    def _at(self, model: Any, inputs: Any) -> Any:
        return inputs.to(model.device, dtype=model.dtype)

    def _calibrated(self, methods: Sequence[Method]) -> tuple[Method, ...]:
        if self.calibration is None:
            return tuple(methods)
        own = {"calibration": str(self.calibration)}
        return tuple(
            type(one)(**asdict(one) | own) if hasattr(one, "calibration") else one for one in methods
        )

    def answer(self, given: Prepared, say: Callable[[Any], None], stop: Event, lane: int = 0) -> None:
        """Write an answer: an event for each piece of text, and one with all there is to know of it.

        The words are judged by the plain model, whatever methods wrote them, so that two answers compare. Raises what the
        model or a method raises.

        Args:
            stop: once set, nothing more is said after the token that is being written.
            lane: which of ``models`` writes.
        """
        from keepsight.grounding.teacher_forcing import judge
        from keepsight.inference.generation import Generation
        from keepsight.inference.streaming import stream_answer

        model = self.models[lane]
        inputs = self._at(model, given.inputs)
        asked = given.asked
        say({"event": "begun"})
        written = stream_answer(
            model,
            self.processor,
            inputs,
            *given.methods,
            on_text=lambda piece: say({"event": "piece", "text": piece}),
            stop=stop,
            generation=Generation(max_new_tokens=asked.tokens),
        )
        if stop.is_set():
            return  # nobody is there to read the rest
        words: Sequence[WordGrounding] = ()
        unjudged = None
        try:
            if written.ids:
                words = judge(model, self.processor, inputs, written.ids).words()
        except KeepsightError as error:
            unjudged = told(error)
        say(done(written, words, asked.methods, asked.scene) | {"unjudged": unjudged})

    def maps(self, given: Prepared, say: Callable[[Any], None], stop: Event, lane: int = 0) -> None:
        """The attention maps of all object words of an answer, as one event.

        The answer's own tokens are written again under the same methods while the attention is watched. Raises what the
        model or a method raises, ``NoTokenGrid`` among others, and ``NothingToMap``.

        Args:
            stop: once set, nothing is said, and the watching ends with a token.
            lane: which of ``models`` is watched.
        """
        from keepsight.analysis.attention_maps import look
        from keepsight.analysis.image_grid import seen_box

        model, answer = self.models[lane], given.asked.answer
        assert answer is not None
        box = seen_box(self.processor.image_processor, *given.size)
        found = look(
            model,
            self.processor,
            self._at(model, given.inputs),
            *given.methods,
            answer=answer,
            stop=stop,
        )
        if stop.is_set():
            return  # nobody is there to see them
        if not found.words:
            raise NothingToMap("the answer names no object, so there is nothing to map")
        sinks = {(sink.row, sink.column) for sink in found.sinks}
        words = []
        for word in found.words:
            off = [
                value
                for row, values in enumerate(word.attention)
                for column, value in enumerate(values)
                if (row, column) not in sinks
            ]
            words.append(
                {
                    "word": word.word,
                    "share": word.share,
                    "top": max(off or [value for values in word.attention for value in values]),
                    "attention": word.attention,
                }
            )
        say({"grid": found.grid, "box": box, "sinks": sorted(sinks), "words": words})


def done(
    written: StreamedAnswer, words: Sequence[WordGrounding], methods: Sequence[Method], scene: Scene | None
) -> dict[str, Any]:
    """A finished answer as plain data: rates are fractions, figures are nats; an infinite one is null."""
    present = None if scene is None else frozenset(scene.names)
    return {
        "event": "done",
        "method": " ".join(method.spec for method in methods) or None,
        "text": written.text,
        "ids": written.ids,
        "tokens": len(written.ids),
        "seconds": written.seconds,
        "full": written.full,
        "segments": segments(written.text, words),
        "words": [
            {
                "word": word.word,
                "object": word.object,
                "present": None if present is None else word.object in present,
                "with_image": _finite(word.with_image),
                "without_image": _finite(word.without_image),
                "support": _finite(word.support),
            }
            for word in words
        ],
        "chair": None if scene is None else chair(written.text, scene),
    }


def segments(text: str, words: Sequence[WordGrounding]) -> list[dict[str, Any]]:
    """A text in pieces, those that are words with their number, so that nobody need count letters as Python does."""
    pieces: list[dict[str, Any]] = []
    at = 0
    for number, word in enumerate(words):
        start, end = word.span
        if start > at:
            pieces.append({"text": text[at:start], "word": None})
        pieces.append({"text": text[start:end], "word": number})
        at = end
    if at < len(text):
        pieces.append({"text": text[at:], "word": None})
    return pieces


def chair(text: str, scene: Scene) -> dict[str, Any] | None:
    """CHAIR of one answer about a drawn scene; None for a yes or no, which names what it was asked and not what is there."""
    from keepsight.eval.chair.captions import Caption
    from keepsight.eval.chair.score import score

    if re.match(r"(yes|no)\b", text, re.IGNORECASE):
        return None
    report = score([Caption(scene.image_id, text)], {scene.image_id: scene.names}, resamples=0)
    [row] = report.captions
    return {
        "family": report.family,
        "chair_i": row.chair_i,
        "recall": row.recall,
        "mentions": len(row.generated),
        "invented": [mention.object for mention in row.hallucinated],
        "found": row.correct,
        "present": list(scene.names),
        "missed": [name for name in scene.names if name not in row.generated],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def told(error: Exception) -> str:
    """An error as one line for the page. What was not raised on purpose, or names a file of the server, is for its log."""
    if not tellable(error):
        return f"{type(error).__name__}: the server's log tells more"
    hint = " (start the page with --calibration FILE)" if isinstance(error, NeedsCalibration) else ""
    return " ".join(str(error).split()) + hint
