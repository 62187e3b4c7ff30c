"""The only loop over a model: pictures and a prompt in, mitigated answers out, one batch at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from keepsight.errors import InvalidParameter
from keepsight.source.prompts import prepare

if TYPE_CHECKING:
    from PIL.Image import Image

    from keepsight.method import Method


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How ``generate`` searches. The defaults are greedy decoding.

    Args:
        max_new_tokens: longest answer in tokens, 1 or more.
        num_beams: 1 or more; 1 is no beam search.
        sample: draw tokens instead of taking the best; from all tokens of ``top_p``, whatever top-k a checkpoint asks for.
        temperature: above 0; only with ``sample``.
        top_p: in (0, 1]; only with ``sample``.
        seed: of sampling. Every batch starts from it, so with a batch of one an answer does not depend on the others.

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


@dataclass(frozen=True)
class Answers:
    """What a model said about one batch of pictures.

    ``lengths`` counts what was generated for each, end marks included and padding not; ``prompt_lengths`` the tokens of each
    prompt, the picture's included and padding not; ``seconds`` is the wall time of ``generate`` alone, mitigation and the
    vision tower included, preparing pictures and decoding text not.
    """

    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        """Generated for all pictures together."""
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

    Nothing is open between two batches: the model is as it was while the caller looks at one.

    Args:
        methods: recipes or spec strings, composed in this order; none is the plain model.
        batch: pictures per ``generate``.
        raw: see ``prepare``.

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
    last: Sequence[Callable[[Any, Any], Any]] = (),
) -> Answers:
    """The answers to one ``generate`` over ``pictures``, each asked ``prompt`` or its own one of several.

    Args:
        methods, raw, generation: see ``answer``.
        last: logits processors that act after the methods.

    Raises:
        UnsupportedModel, NoImageTokens, NoChatTemplate, BadPrompt.
    """
    import torch

    from keepsight.api import attached

    generation = generation or Generation()
    inputs = prepare(processor, pictures, prompt, raw=raw).to(model.device, dtype=model.dtype)
    cuda = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), attached(model, inputs, *methods) as processors:
        torch.manual_seed(generation.seed)
        begun = _clock(cuda)
        written = model.generate(**inputs, **generation.arguments(), logits_processor=[*processors, *last])
        seconds = _clock(cuda) - begun
    rows = written[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(rows, skip_special_tokens=True)
    ends = model.generation_config.eos_token_id
    return Answers(
        texts=tuple(text.strip() for text in texts),
        lengths=tuple(_length(row, ends) for row in rows.tolist()),
        prompt_lengths=tuple(inputs["attention_mask"].sum(-1).tolist()),
        seconds=seconds,
    )


def _clock(cuda: list[Any]) -> float:
    import torch

    for device in cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _length(row: list[int], ends: int | list[int] | None) -> int:
    stops = set(ends) if isinstance(ends, list) else {ends}
    return next((i for i, token in enumerate(row, 1) if token in stops), len(row))
