"""What the page shows of one model: answers, the grounding of their words, attention maps, and the CHAIR score."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
from keepsight.files import finite_or_none
from keepsight.serve.errors import is_client_safe
from keepsight.serve.limits import Limits
from keepsight.serve.malloc_trim import LARGE_IMAGE_PIXELS, trim_memory

if TYPE_CHECKING:
    from keepsight.demo.world import Scene
    from keepsight.grounding import WordGrounding
    from keepsight.inference.streaming import StreamedAnswer
    from keepsight.method import Method
    from keepsight.serve.page.request_schema import PageRequest

LIMITS = Limits(request_bytes=30 << 20, image_bytes=20 << 20, tokens=512, queue=8)
"""The bounds on the page's requests."""
SPLITS = ("test-shifted", "test", "val-shifted", "val")
"""The splits of the demo world that the page offers."""
DEMO_SPEC = "m3id:decay=0.07,cutoff=0.02"
"""The setting that the page first compares the plain demo model with, chosen on the validation split of the demo world."""


class NothingToMap(InputError):
    """An answer names no object, so there is no word whose attention could be shown."""


@dataclass(frozen=True, kw_only=True)
class PreparedRequest:
    """A request whose image has been processed. What is left to do needs the model.

    Args:
        request: the request without the bytes of its image.
        inputs: the model inputs of the prompt, with a batch size of 1, on the CPU.
        methods: the request's methods, with the calibration file of the page.
        size: width and height of the image in pixels.
    """

    request: PageRequest
    inputs: Any = field(repr=False)
    methods: tuple[Method, ...]
    size: tuple[int, int]


@dataclass(kw_only=True)
class PageService:
    """A model with its processor, and further module trees over its weights for answers at the same time.

    Answers are decoded greedily. Sampling would draw from torch's random state, which all threads share, so that an answer
    would depend on what else is generated at the same time.

    Args:
        name: the name of the model, as the operator wrote it.
        model: the model.
        processor: its processor.
        calibration: the calibration file of methods that read one, or None.
        limits: the bounds on requests.
        at_once: how many answers are generated at the same time, 1 or more; default 2. A model whose weights cannot be
            shared generates one at a time, and ``single_worker_reason`` says why.

    Raises:
        InvalidParameter: ``at_once`` is below 1.
    """

    name: str
    model: Any = field(repr=False)
    processor: Any = field(repr=False)
    calibration: Path | None = None
    limits: Limits = LIMITS
    at_once: int = 2
    models: tuple[Any, ...] = field(init=False, repr=False)
    """One module tree per worker, all over the same weights. Methods edit the tree, so each is for one thread at a time."""
    single_worker_reason: str | None = field(init=False, default=None)
    _processor_lock: Lock = field(init=False, default_factory=Lock, repr=False)

    def __post_init__(self) -> None:
        from keepsight.engines.hf.weight_sharing import twin

        if self.at_once < 1:
            raise InvalidParameter(f"at_once={self.at_once} must be a whole number, 1 or more")
        try:
            self.models = (self.model, *(twin(self.model) for _ in range(1, self.at_once)))
        except UnsupportedModel as error:
            self.models, self.single_worker_reason = (self.model,), str(error)

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the model has embeddings for. It may exceed the number that its tokenizer knows."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def facts(self) -> dict[str, Any]:
        """What the page must know before it can send a request: names, questions, methods, defaults and limits."""
        from keepsight import __version__
        from keepsight.demo.model import PROMPT
        from keepsight.demo.world import NAMES, ask
        from keepsight.grounding import SCORE, THRESHOLD, WEIGHT
        from keepsight.inference.loading import DEMO
        from keepsight.registry import methods

        packaged = self.name == DEMO
        # The published defaults do not suit the demo model: these settings were chosen on its validation split
        suggested = {
            "m3id": DEMO_SPEC,
            "vcd": "vcd:beta=0.02,noise_step=999",
            "pai": "pai:alpha=0.5,gamma=1.5",
        }
        return {
            # Of a checkpoint on disk, visitors see the name of its folder and not where it lies
            "model": self.name if packaged or not Path(self.name).exists() else Path(self.name).name,
            "packaged": packaged,
            "version": __version__,
            "question": PROMPT,
            # The demo model was trained on these questions, and knows no others
            "questions": [PROMPT, *map(ask, NAMES)] if packaged else [PROMPT],
            "splits": list(SPLITS),
            "threshold": THRESHOLD,
            "score": SCORE,
            "weight": WEIGHT,
            "workers": len(self.models),
            "single_worker_reason": self.single_worker_reason,
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

    def prepare(self, request: PageRequest) -> PreparedRequest:
        """Decode the image of a request and tokenize its prompt. Any thread may call it. The image is not kept.

        Args:
            request: the request, with the bytes of its image or a scene.

        Raises:
            InvalidImage: the image cannot be used.
            BadPrompt, NoChatTemplate, NoImageTokens: as ``keepsight.source.prompts.prepare``.
        """
        from keepsight.source.prompts import prepare

        image = request.image(self.limits)
        size = image.size
        try:
            # Fast tokenizers keep settings that change while they encode, which two threads must not do at the same time
            with self._processor_lock:
                inputs = prepare(self.processor, [image], request.question)
        finally:
            del image  # it must be freed before memory is given back
            if size[0] * size[1] > LARGE_IMAGE_PIXELS:
                trim_memory()
        return PreparedRequest(
            request=replace(request, file=None),
            inputs=inputs,
            methods=self._with_calibration(request.methods),
            size=size,
        )

    def _on_device(self, model: Any, inputs: Any) -> Any:
        """The inputs on the model's device, floating-point ones in its precision."""
        return inputs.to(model.device, dtype=model.dtype)

    def _with_calibration(self, methods: Sequence[Method]) -> tuple[Method, ...]:
        """The same methods, with the page's calibration file for those that read one."""
        if self.calibration is None:
            return tuple(methods)
        path = str(self.calibration)
        # A request cannot name a calibration file, so there is never another one to keep
        return tuple(
            replace(one, calibration=path) if hasattr(one, "calibration") else one  # type: ignore[call-arg]
            for one in methods
        )

    def answer(
        self, prepared: PreparedRequest, emit: Callable[[Any], None], stop: Event, worker: int = 0
    ) -> None:
        """Generate an answer. It emits an event for each piece of text, and a last one with everything about the answer.

        The plain model judges the words, whichever methods wrote them, so that two answers can be compared.

        Args:
            prepared: the request.
            emit: receives the events, in this thread.
            stop: once it is set, generation ends with the next token and nothing more is emitted.
            worker: the index of the model in ``models``; default 0. No other thread may use this model at the same time.

        Raises:
            KeepsightError: a method or the model cannot be used with this request. Whatever else they raise is raised as
                well.
        """
        from keepsight.grounding.teacher_forcing import judge
        from keepsight.inference.generation import Generation
        from keepsight.inference.streaming import stream_answer

        model = self.models[worker]
        inputs = self._on_device(model, prepared.inputs)
        request = prepared.request
        emit({"event": "begun"})
        written = stream_answer(
            model,
            self.processor,
            inputs,
            *prepared.methods,
            on_text=lambda piece: emit({"event": "piece", "text": piece}),
            stop=stop,
            generation=Generation(max_new_tokens=request.tokens),
        )
        if stop.is_set():
            return  # the client has left, so judging the words would be wasted
        words: Sequence[WordGrounding] = ()
        judging_error = None
        try:
            if written.ids:
                words = judge(model, self.processor, inputs, written.ids).words()
        except KeepsightError as error:  # the answer itself is complete, and is shown without figures
            judging_error = client_message(error)
        emit(answer_event(written, words, request.methods, request.scene) | {"unjudged": judging_error})

    def attention_maps(
        self, prepared: PreparedRequest, emit: Callable[[Any], None], stop: Event, worker: int = 0
    ) -> None:
        """Emit the attention maps of all object words of an answer, as one event.

        The answer's own tokens are generated again under the same methods while the attention is recorded.

        Args:
            prepared: the request, with the token ids of the answer.
            emit: receives the event, in this thread.
            stop: once it is set, recording ends with the next token and nothing is emitted.
            worker: the index of the model in ``models``; default 0. No other thread may use this model at the same time.

        Raises:
            NothingToMap: the answer names no object.
            NoTokenGrid: the image tokens of this model cannot be laid out over the image.
            KeepsightError: whatever else the model or a method raises.
        """
        from keepsight.analysis.attention_maps import look
        from keepsight.analysis.image_grid import seen_box

        model, answer = self.models[worker], prepared.request.answer
        assert answer is not None
        box = seen_box(self.processor.image_processor, *prepared.size)
        found = look(
            model,
            self.processor,
            self._on_device(model, prepared.inputs),
            *prepared.methods,
            answer=answer,
            stop=stop,
        )
        if stop.is_set():
            return  # the client has left
        if not found.words:
            raise NothingToMap("the answer names no object, so there is nothing to map")
        sinks = {(sink.row, sink.column) for sink in found.sinks}
        words = []
        for word in found.words:
            # Sinks draw attention whatever is asked; scaled to them, the rest of the map would look empty
            outside_sinks = [
                value
                for row, values in enumerate(word.attention)
                for column, value in enumerate(values)
                if (row, column) not in sinks
            ]
            words.append(
                {
                    "word": word.word,
                    "share": word.share,
                    "top": max(outside_sinks or [value for values in word.attention for value in values]),
                    "attention": word.attention,
                }
            )
        emit({"grid": found.grid, "box": box, "sinks": sorted(sinks), "words": words})


def answer_event(
    written: StreamedAnswer, words: Sequence[WordGrounding], methods: Sequence[Method], scene: Scene | None
) -> dict[str, Any]:
    """The last event of an answer, as plain data.

    Rates are fractions, and figures are in nats. An infinite figure is None, because JSON has no infinities.

    Args:
        written: the answer.
        words: the grounding of its object words, in their order.
        methods: the methods that wrote it, as the request named them: without the path of a calibration file.
        scene: the scene of the image, or None if its objects are not known.
    """
    present = None if scene is None else frozenset(scene.names)
    return {
        "event": "done",
        "method": "+".join(method.spec for method in methods) or None,
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
                "with_image": finite_or_none(word.with_image),
                "without_image": finite_or_none(word.without_image),
                "support": finite_or_none(word.support),
            }
            for word in words
        ],
        "chair": None if scene is None else chair(written.text, scene),
    }


def segments(text: str, words: Sequence[WordGrounding]) -> list[dict[str, Any]]:
    """A text in pieces. The entry ``word`` of a piece is the index of its word, and None for text between words.

    Offsets would not do, because JavaScript counts UTF-16 units where Python counts code points.

    Args:
        text: the whole text.
        words: words of the text in their order, which do not overlap.
    """
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
    """The CHAIR score of one answer about a drawn scene, as plain data with rates as fractions.

    It is None for an answer that begins with yes or no, because its words repeat the question and describe nothing.
    """
    from keepsight.eval.chair.captions import Caption
    from keepsight.eval.chair.score import score

    if re.match(r"(yes|no)\b", text, re.IGNORECASE):
        return None
    # An interval from resampling needs more than one caption
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


def client_message(error: Exception) -> str:
    """An error as one line for the page.

    It is the name of the error alone for unexpected errors, and for errors whose message holds a path of the server.
    """
    if not is_client_safe(error):
        return f"{type(error).__name__}: the server's log tells more"
    hint = " (start the page with --calibration FILE)" if isinstance(error, NeedsCalibration) else ""
    return " ".join(str(error).split()) + hint
