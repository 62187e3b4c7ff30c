"""``generate`` is the one place that runs a generation under methods; ``answer`` and ``answer_batch`` ask about pictures.

Everything that has to hold around a call of ``model.generate`` is done here and nowhere else: methods are in place, sampling
starts from a seed without touching the caller's random state, the clock waits for the GPU, and rows are cut off at their end
marks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from keepsight.errors import InvalidParameter
from keepsight.inference.detokenizer import until_end
from keepsight.source.prompts import prepare

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from keepsight.method import Method
    from keepsight.parts import Edit
    from keepsight.source.source import Source

LogitsProcessor = Callable[[Any, Any], Any]
"""``(input_ids, scores) -> scores``, as transformers calls it before every token."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How the next tokens are chosen. The defaults are greedy decoding.

    Args:
        max_new_tokens: the largest number of tokens of an answer, 1 or more; default 128.
        num_beams: the width of beam search, 1 or more; 1, the default, is no beam search.
        sample: whether tokens are drawn instead of taking the most likely one. They are drawn from all tokens within
            ``top_p``, whatever top-k the checkpoint's own settings ask for.
        temperature: what scores are divided by, above 0; None is 1. Only with ``sample``.
        top_p: the probability of the smallest set of tokens that is drawn from, in (0, 1]; None is 1. Only with ``sample``.
        seed: the seed of sampling. Every batch starts from it, so that with a batch of one an answer does not depend on the
            others.

    Raises:
        InvalidParameter: a value is out of its range, or has no effect without ``sample``.
    """

    max_new_tokens: int = 128
    num_beams: int = 1
    sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise InvalidParameter(f"{name}={getattr(self, name)} must be a whole number, 1 or more")
        for name, high in (("temperature", math.inf), ("top_p", 1.0)):
            value = getattr(self, name)
            if value is None:
                continue
            if not self.sample:
                raise InvalidParameter(
                    f"{name} has no effect on greedy or beam search: ask for sampling as well"
                )
            if not math.isfinite(value) or not 0 < value <= high:
                wanted = "a finite number above 0" if math.isinf(high) else f"above 0 and at most {high:g}"
                raise InvalidParameter(f"{name}={value} must be {wanted}")

    def arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments of ``model.generate``."""
        chosen: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}
        if not self.sample:
            return {**chosen, "do_sample": False}
        # Every option is named, since ``generate`` takes the ones that are missing from
        # the checkpoint's own settings. A top-k of 0 switches it off.
        drawn = {"temperature": self.temperature or 1.0, "top_p": self.top_p or 1.0, "top_k": 0}
        return {**chosen, "do_sample": True, **drawn}


@dataclass(frozen=True, eq=False)
class GeneratedBatch:
    """The result of one ``generate``.

    Args:
        ids: ``(rows, new tokens)``, the generated tokens without the prompt; rows that ended early are padded.
        tokens: the same row by row, up to the end mark, which is included, and without padding.
        prompt_lengths: the number of tokens of each prompt, those of the picture included and padding not.
        seconds: the wall time of ``model.generate`` alone, methods and vision tower included.
    """

    ids: Tensor
    tokens: tuple[tuple[int, ...], ...]
    prompt_lengths: tuple[int, ...]
    seconds: float

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of generated tokens of each row, end marks included."""
        return tuple(map(len, self.tokens))


def generate(
    model: Any,
    inputs: Mapping[str, Any],
    methods: Sequence[Method | str] = (),
    *,
    generation: Generation | None = None,
    first: Sequence[LogitsProcessor] = (),
    processors: Sequence[LogitsProcessor] = (),
    observers: Sequence[Edit] = (),
    stopping: Sequence[Any] = (),
    streamer: Any = None,
    source: Source | None = None,
) -> GeneratedBatch:
    """Run one generation under ``methods``. The model is as it was before, also when something is raised.

    Sampling starts from the seed of ``generation``, and the caller's random state is left as it was.

    Args:
        model: an image-text-to-text model of transformers.
        inputs: what the model's processor returned, left-padded, on the model's device.
        methods: recipes or spec strings, composed in this order; none is the plain model.
        generation: how tokens are chosen; default: greedy search.
        first: logits processors that act before those of the methods, and so see the scores of the model itself.
        processors: logits processors that act after those of the methods.
        observers: edits that only record. They stand after those of the methods, so that they see what the methods did.
        stopping: stopping criteria of transformers.
        streamer: a streamer of transformers, which gets every token as it is chosen.
        source: see ``attached``. The commands of this package give none, so that they choose the same tokens as a
            ``mitigate`` block, which knows the model inputs alone.

    Raises:
        UnsupportedModel, NoImageTokens, ConflictingMethods, ConcurrentUse: as ``attached``.
    """
    import torch

    from keepsight.api import attached

    generation = generation or Generation()
    options: dict[str, Any] = generation.arguments()
    if stopping:
        options["stopping_criteria"] = list(stopping)
    if streamer is not None:
        options["streamer"] = streamer
    # Without a list of devices, ``fork_rng`` would save the state of every GPU of the machine.
    cuda = [model.device] if model.device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        torch.manual_seed(generation.seed)
        added = stack.enter_context(attached(model, inputs, *methods, source=source))
        # Observers come last, so they see activations as the edits of all methods left them.
        if observers:
            from keepsight.engines.hf.patching import editing
            from keepsight.target import Target

            stack.enter_context(editing(Target(model, inputs), *observers))
        begun = _clock(cuda)
        # One mapping instead of several keyword arguments lets the options of this call win over those among the inputs.
        written = model.generate(**{**inputs, **options, "logits_processor": [*first, *added, *processors]})
        seconds = _clock(cuda) - begun
    width = inputs["input_ids"].shape[1]
    ids = written[:, width:]
    mask = inputs.get("attention_mask")
    ends = model.generation_config.eos_token_id
    return GeneratedBatch(
        ids=ids,
        tokens=tuple(tuple(until_end(row, ends)) for row in ids.tolist()),
        # Rows are padded to one width, so the mask alone tells how long each prompt is.
        prompt_lengths=(width,) * len(ids) if mask is None else tuple(mask.sum(-1).tolist()),
        seconds=seconds,
    )


def dry_run(model: Any, inputs: Mapping[str, Any], methods: Sequence[Method | str]) -> None:
    """Generate two tokens under ``methods``, greedily, to see whether they run on the model.

    Two tokens are needed, since the first comes from the pass over the prompt and the second from one with a cache.

    Raises:
        Exception: whatever the methods or the model raise.
    """
    generate(model, inputs, methods, generation=Generation(max_new_tokens=2))


def end_token_ids(model: Any) -> frozenset[int]:
    """Returns the ids of the tokens that end an answer; there are none for a model that names none."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset(ends if isinstance(ends, (list, tuple)) else [ends])


@dataclass(frozen=True)
class Answers:
    """The answers of a model about one batch of pictures.

    Args:
        texts: the answers, without special tokens and without white space around them.
        lengths: the number of generated tokens of each, end marks included and padding not.
        prompt_lengths: the number of tokens of each prompt, those of the picture included and padding not.
        seconds: the wall time of ``model.generate`` alone. Methods and vision tower are included; preparing pictures and
            decoding text are not.
    """

    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        """The number of generated tokens of all answers together."""
        return sum(self.lengths)


def answer(
    model: Any,
    processor: Any,
    pictures: Iterable[Image],
    prompt: str,
    *methods: Method | str,
    batch: int = 1,
    raw: bool = False,
    generation: Generation | None = None,
) -> Iterator[Answers]:
    """Yields answers to ``prompt`` about every picture, under ``methods``, batch by batch as they are done.

    Between two batches no method is in place: the model is as it was while the caller handles one.

    Args:
        model: an image-text-to-text model of transformers.
        processor: its processor.
        pictures: taken from the iterable batch by batch.
        prompt: the question about each picture.
        methods: recipes or spec strings, composed in this order; none is the plain model.
        batch: the number of pictures that are answered together, 1 or more; default 1.
        raw: take ``prompt`` as the whole prompt; see ``prepare``.
        generation: how tokens are chosen; default: greedy search.

    Raises:
        UnsupportedModel, NoImageTokens: as ``attached``.
        NoChatTemplate, BadPrompt: as ``prepare``.
    """
    remaining = iter(pictures)
    # An iterator is needed here: ``islice`` over a list would begin at its first picture every time.
    while shown := list(islice(remaining, batch)):
        yield answer_batch(model, processor, shown, prompt, *methods, raw=raw, generation=generation)


def answer_batch(
    model: Any,
    processor: Any,
    pictures: Sequence[Image],
    prompt: str | Sequence[str],
    *methods: Method | str,
    raw: bool = False,
    generation: Generation | None = None,
    last: Sequence[LogitsProcessor] = (),
) -> Answers:
    """Returns the answers of one ``generate`` about ``pictures``.

    Args:
        model, processor, methods, raw, generation: see ``answer``.
        pictures: the pictures of the batch.
        prompt: one question about all pictures, or one for each.
        last: logits processors that act after the methods.

    Raises:
        UnsupportedModel, NoImageTokens: as ``attached``.
        NoChatTemplate, BadPrompt: as ``prepare``.
    """
    # The dtype reaches the pictures alone: ``BatchFeature.to`` casts floating-point tensors only.
    inputs = prepare(processor, pictures, prompt, raw=raw).to(model.device, dtype=model.dtype)
    found = generate(model, inputs, methods, generation=generation, processors=last)
    texts = processor.batch_decode(found.ids, skip_special_tokens=True)
    return Answers(
        texts=tuple(text.strip() for text in texts),
        lengths=found.lengths,
        prompt_lengths=found.prompt_lengths,
        seconds=found.seconds,
    )


def _clock(cuda: list[Any]) -> float:
    """Returns a time in seconds, after all work on some GPUs is done."""
    import torch

    # Kernels run on after the call that started them has returned.
    for device in cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter()
