"""``generate``: the one place that runs a generation under methods, and what is answered about pictures with it.

Everything that has to hold around a call of ``model.generate`` is done here and nowhere else: methods in place, sampling
from a seed without touching the caller's random state, a clock that waits for the GPU, rows cut off at their end marks.
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
    """How the next tokens are searched for. The defaults are greedy decoding.

    Args:
        max_new_tokens: most tokens of an answer, 1 or more; default 128.
        num_beams: width of beam search, 1 or more; 1, the default, is no beam search.
        sample: draw tokens instead of taking the most likely one; from all tokens within ``top_p``, whatever top-k the
            checkpoint's own settings ask for.
        temperature: what scores are divided by, above 0; None is 1. Only with ``sample``.
        top_p: the probability of the smallest set of tokens that is drawn from, in (0, 1]; None is 1. Only with ``sample``.
        seed: of sampling. Every batch starts from it, so that with a batch of one an answer does not depend on the others.

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
        """The keyword arguments of ``model.generate``."""
        chosen: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}
        if not self.sample:
            return {**chosen, "do_sample": False}
        drawn = {"temperature": self.temperature or 1.0, "top_p": self.top_p or 1.0, "top_k": 0}
        return {**chosen, "do_sample": True, **drawn}


@dataclass(frozen=True, eq=False)
class GeneratedBatch:
    """What one ``generate`` gave.

    Args:
        ids: ``(rows, new tokens)``, the generated tokens without the prompt; rows that ended early are padded.
        tokens: the same row by row, up to the end mark, which is included, and without padding.
        prompt_lengths: tokens of each prompt, those of the picture included and padding not.
        seconds: wall time of ``model.generate`` alone, methods and vision tower included.
    """

    ids: Tensor
    tokens: tuple[tuple[int, ...], ...]
    prompt_lengths: tuple[int, ...]
    seconds: float

    @property
    def lengths(self) -> tuple[int, ...]:
        """Generated tokens of each row, end marks included."""
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

    Args:
        inputs: what the model's processor returned, left-padded, on the model's device.
        methods: recipes or spec strings, composed in this order; none is the plain model.
        generation: greedy unless given.
        first: logits processors that act before those of the methods, and so see the scores of the model itself.
        processors: logits processors that act after those of the methods.
        observers: edits that only look; they stand after those of the methods, so that they see what the methods did.
        stopping: stopping criteria of transformers.
        streamer: a streamer of transformers, told every token as it is chosen.
        source: see ``attached``. The commands of this package give none, so that they choose the same tokens as a block.

    Sampling starts from the seed of ``generation``, and the caller's random state is left as it was.

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
    cuda = [model.device] if model.device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        torch.manual_seed(generation.seed)
        added = stack.enter_context(attached(model, inputs, *methods, source=source))
        if observers:
            from keepsight.engines.hf.patching import editing
            from keepsight.target import Target

            stack.enter_context(editing(Target(model, inputs), *observers))
        begun = _clock(cuda)
        written = model.generate(**{**inputs, **options, "logits_processor": [*first, *added, *processors]})
        seconds = _clock(cuda) - begun
    width = inputs["input_ids"].shape[1]
    ids = written[:, width:]
    mask = inputs.get("attention_mask")
    ends = model.generation_config.eos_token_id
    return GeneratedBatch(
        ids=ids,
        tokens=tuple(tuple(until_end(row, ends)) for row in ids.tolist()),
        prompt_lengths=(width,) * len(ids) if mask is None else tuple(mask.sum(-1).tolist()),
        seconds=seconds,
    )


def dry_run(model: Any, inputs: Mapping[str, Any], methods: Sequence[Method | str]) -> None:
    """Generate two tokens under ``methods``, greedily, to see whether they run on the model.

    Two tokens, since the first comes from the pass over the prompt and the second from one with a cache.

    Raises:
        whatever the methods or the model raise.
    """
    generate(model, inputs, methods, generation=Generation(max_new_tokens=2))


def end_token_ids(model: Any) -> frozenset[int]:
    """The ids of the tokens that end an answer; empty for a model that knows none."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset(ends if isinstance(ends, (list, tuple)) else [ends])


@dataclass(frozen=True)
class Answers:
    """What a model said about one batch of pictures.

    Args:
        texts: the answers, without special tokens and without white space around them.
        lengths: generated tokens of each, end marks included and padding not.
        prompt_lengths: tokens of each prompt, those of the picture included and padding not.
        seconds: wall time of ``model.generate`` alone, methods and vision tower included; preparing pictures and decoding
            text are not.
    """

    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        """Generated tokens of all answers together."""
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
    """One answer to ``prompt`` for every picture, under ``methods``, as each batch is done.

    Between two batches no method is in place: the model is as it was while the caller looks at one.

    Args:
        pictures: taken from the iterable batch by batch.
        methods: recipes or spec strings, composed in this order; none is the plain model.
        batch: pictures that are answered together, 1 unless given.
        raw: take ``prompt`` as the whole prompt; see ``prepare``.
        generation: greedy unless given.

    Raises:
        UnsupportedModel, NoImageTokens, NoChatTemplate, BadPrompt.
    """
    remaining = iter(pictures)
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
    """The answers of one ``generate`` about ``pictures``, each asked ``prompt`` or its own one of several.

    Args:
        methods, raw, generation: see ``answer``.
        last: logits processors that act after the methods.

    Raises:
        UnsupportedModel, NoImageTokens, NoChatTemplate, BadPrompt.
    """
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
    import torch

    for device in cuda:  # kernels run on after the call that started them has returned
        torch.cuda.synchronize(device)
    return time.perf_counter()
