"""Runs of ``generate`` that write given tokens and keep the scores of each step, and what a model looked like before."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from keepsight.api import attached
from keepsight.errors import KeepsightError, first_line
from keepsight.method import Method
from keepsight.target import Target

NEUTRAL: dict[str, Any] = {
    "do_sample": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "min_new_tokens": 0,
    "encoder_repetition_penalty": 1.0,
}  # fmt: skip
"""Options that a checkpoint's own settings may hold and that would stand between a model's logits and the methods."""


class RefusedLate(RuntimeError):
    """A method raised one of this package's errors after tokens had been written. It should have done so before any."""


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a generation: all ids so far ``(rows, n)``, and scores ``(rows, vocab)`` before and after the methods."""

    ids: Tensor
    before: Tensor
    after: Tensor


class _Ban(LogitsProcessor):
    """Rules out tokens that no run shall write, such as the placeholder of the picture."""

    supports_continuous_batching = False

    def __init__(self, banned: Collection[int]) -> None:
        self._banned = sorted(banned)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        kept = scores.clone()
        kept[:, [token for token in self._banned if token < kept.shape[1]]] = -torch.inf
        return kept


class _Before(LogitsProcessor):
    """Keeps the scores that the methods are given."""

    supports_continuous_batching = False

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(scores.clone())
        return scores


class _After(LogitsProcessor):
    """Keeps the scores that the methods give, and lets the given tokens be written, if there are any."""

    supports_continuous_batching = False

    def __init__(self, before: _Before, tokens: Tensor | None) -> None:
        self._before, self._tokens = before, tokens
        self.steps: list[Step] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        at = len(self.steps)
        self.steps.append(Step(input_ids.clone(), self._before.seen[at], scores.clone()))
        if self._tokens is None:
            return scores
        forced = torch.full_like(scores, -torch.inf)
        return forced.scatter_(1, self._tokens[:, at : at + 1].to(scores.device), 0.0)


def run(
    model: Any,
    inputs: Mapping[str, Any],
    methods: Sequence[Method],
    *,
    count: int,
    banned: Collection[int],
    tokens: Tensor | None = None,
    fused: bool = False,
    watch: Any = None,
    **options: Any,
) -> list[Step]:
    """Generate ``count`` tokens under ``methods``.

    Args:
        banned: ids that are never written.
        tokens: ``(rows, count)`` what is written whatever the scores say; None writes what they say.
        fused: see ``attached``.
        watch: a witness, whose hooks stand around those of the engine.
        options: of ``generate``.

    Raises:
        RefusedLate: a named error was raised after tokens had been written.
    """
    before = _Before()
    after = _After(before, tokens)
    with ExitStack() as stack:
        if watch is not None:
            stack.enter_context(watch.below())
        mine = stack.enter_context(attached(model, inputs, *methods, fused=fused)) if methods else []
        if watch is not None:
            stack.enter_context(watch.above())
        try:
            model.generate(
                **inputs,
                **{**NEUTRAL, "max_new_tokens": count, **options},
                logits_processor=[_Ban(banned), before, *mine, after],
            )
        except KeepsightError as error:
            if after.steps:
                raise RefusedLate(f"after {len(after.steps)} tokens: {first_line(error)}") from error
            raise
    return after.steps


def written(steps: Sequence[Step]) -> Tensor:
    """``(rows, n)`` the tokens that the scores of some steps choose."""
    return torch.stack([step.after.argmax(-1) for step in steps], dim=1)


def special_ids(target: Target) -> frozenset[int]:
    """Ids that a run must not write: marks of pictures and of ends, and whatever else configurations name as a token."""
    found: set[int] = set()
    configs = [target.model.config, target.text_config, target.model.generation_config]
    configs += [getattr(target.model.config, name, None) for name in ("vision_config", "audio_config")]
    for config in filter(None, configs):
        for name, value in vars(config).items():
            if "token_id" in name or "token_index" in name or name.endswith(("_patch_id", "_col_id")):
                values = value if isinstance(value, (list, tuple)) else [value]
                found |= {one for one in values if isinstance(one, int) and not isinstance(one, bool)}
    found |= {target.image_token_id, *target.marker_ids}
    return frozenset(one for one in found if one >= 0)


@dataclass(frozen=True)
class Fingerprint:
    """What a model looks like from outside: attributes, hooks, weights, attention functions, settings."""

    attributes: tuple[tuple[str, tuple[str, ...]], ...]
    hooks: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[int, int, bool], ...]
    attention: tuple[tuple[str, int], ...]
    settings: tuple[Any, ...]

    @classmethod
    def of(cls, model: Any) -> Fingerprint:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        tables = (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)
        config = model.config.get_text_config(decoder=True)
        deltas = tuple(str(module.rope_deltas) for module in model.modules() if "rope_deltas" in vars(module))
        return cls(
            attributes=tuple((name, tuple(sorted(vars(module)))) for name, module in model.named_modules()),
            hooks=tuple(
                tuple(id(hook) for name in HOOKS for hook in vars(module)[name].values())
                for module in model.modules()
            ),
            weights=tuple(map(_state, [*model.parameters(), *model.buffers()])),
            attention=tuple((name, id(table[name])) for table in tables for name in table),
            settings=(
                config._attn_implementation,
                *(getattr(module.config, "_attn_implementation", None) for module in _configured(model)),
                str(model.generation_config.to_dict()),
                deltas,
                model.training,
            ),
        )

    def changed(self, other: Fingerprint) -> str | None:
        """What is different in ``other``, in a clause; None where nothing is."""
        for name, words in (
            ("attributes", "attributes of modules"),
            ("hooks", "hooks of modules"),
            ("weights", "weights"),
            ("attention", "transformers' attention functions"),
            ("settings", "settings of the model"),
        ):
            if getattr(self, name) != getattr(other, name):
                return f"{words} are not what they were"
        return None


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module keeps its hooks."""


def _state(weight: Tensor) -> tuple[int, int, bool]:
    """Where a weight lies, how often it was changed in place, and whether it is trained.

    An in-place change raises the version, so that no copy of the weights is needed to notice one. Tensors made in inference
    mode have none.
    """
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.requires_grad


def _configured(model: Any) -> Iterator[Any]:
    """The modules that have a configuration of their own, such as the vision tower."""
    return (module for module in model.modules() if hasattr(module, "config"))


@contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """No gradients, convolutions in the model's own precision, and the caller's random state as it was afterwards.

    Args:
        device: where the model runs.
    """
    # Without a list of devices torch keeps the state of every GPU of the machine, and warns where there are several
    forked = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=forked), exact_convolutions(device):
        yield


@contextmanager
def exact_convolutions(device: torch.device) -> Iterator[None]:
    """Convolutions of float32 by float32 products on CUDA, and the setting as it was afterwards.

    By default cuDNN may round their inputs to TF32, which keeps 10 bits. Which algorithm it takes hangs on the shape, so
    that a picture in a batch could differ from the same picture alone by much more than float32 explains.
    """
    if device.type != "cuda":
        yield
        return
    conv: Any = getattr(torch.backends.cudnn, "conv", None)
    # Since 2.9 torch has a setting for each operation; reading the older one then raises where the two were mixed
    if hasattr(conv, "fp32_precision"):
        before = conv.fp32_precision
        conv.fp32_precision = "ieee"
        try:
            yield
        finally:
            conv.fp32_precision = before
        return
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
