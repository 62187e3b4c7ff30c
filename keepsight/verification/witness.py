"""Watches a generation under edits, and computes in every edited layer what should have come out of it.

The witness's hooks stand on both sides of the engine's: below, where values are as the model made them, and above, where
they are as the engine left them. In between nothing is shared but the edits themselves, of which the witness has its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from keepsight.errors import UnsupportedModel
from keepsight.parts import Edit, HookContext
from keepsight.verification.explicit import apart, apply_edits, edited_attention, moved
from keepsight.verification.restated import (
    INSIDE_ATTENTION,
    OUTSIDE,
    Prompt,
    Restated,
    attention_replaced,
    kernel_of,
    module_at,
    rows_of,
    tokens_of,
)

DRAWS = 6
"""How often a value that does not fit is computed from inputs that are moved by one unit of rounding: a decision near a tie,
such as which heads are the larger half, may fall either way."""
SMALLEST = 1e-6
"""Rows whose entries are smaller than this share of the largest row's are measured by that."""
TIMES = 4
"""How many times the plain model's own difference counts as rounding."""


@dataclass
class Seen:
    """The largest difference at the places of one kind, and what rounding explains of it."""

    difference: float = 0.0
    allowed: float = 0.0
    share: float = -1.0
    """The largest share that a difference has of what is allowed there."""
    worst: str = ""
    layers: set[int] = field(default_factory=set)

    def add(self, layer: int, difference: float, allowed: float) -> None:
        self.layers.add(layer)
        share = difference / allowed if allowed else math.inf * difference if difference else 0.0
        # not a number: something is wrong, and no comparison with it is true
        share = share if share == share else math.inf
        if share > self.share:
            self.share, self.difference, self.allowed = share, difference, allowed
            self.worst = f"layer {layer}"


def relative(a: Tensor, b: Tensor) -> Tensor:
    """The differences between two tensors ``(rows, …)``, each in units of the largest entry of its row.

    A token with massive activations, such as the first one of many models, must not hide what happens at the others.
    """
    a, b = a.float().flatten(1), b.float().flatten(1)
    size = torch.maximum(a.abs(), b.abs()).amax(-1, keepdim=True)
    return (a - b).abs() / size.clamp(min=max(SMALLEST * float(size.max()), 1e-30))


def distance(a: Tensor, b: Tensor) -> float:
    """The largest of the relative differences between two tensors ``(rows, …)``."""
    return float(relative(a, b).max())


class Witness:
    """Compares what an engine makes of edits with what they should make.

    Args:
        restated: passes of the model.
        prompt: of the generation, with as many rows.
        edits: the witness's own, prepared.
        rounding: by place, what the plain model's cached and uncached passes differ by there.
        others: the same edits several times, each prepared by passes that were moved by one unit of rounding: what a prelude
            has measured may be near a tie as well.
    """

    def __init__(
        self,
        restated: Restated,
        prompt: Prompt,
        edits: Sequence[Edit],
        rounding: dict[str, float],
        others: Sequence[Sequence[Edit]] = (),
    ) -> None:
        self._restated, self._prompt, self._edits = restated, prompt, list(edits)
        self._others = [list(one) for one in others]
        self._rounding = rounding
        self._active = False
        self._first = self._rows = self._batch = 0
        self._below: dict[tuple[str, int], Tensor] = {}
        self._kernel = kernel_of(restated.model)
        self.seen: dict[str, Seen] = {}
        self.untouched = Seen()
        """Attention in layers that no edit names."""

    def missing(self) -> list[str]:
        """Layers and places of the edits that no pass has reached."""
        found = []
        for edit in self._edits:
            inside = [place for place in INSIDE_ATTENTION if edit.overrides(place)]
            for place in (["attention"] if inside else []) + [p for p in OUTSIDE if edit.overrides(p)]:
                lost = edit.layers - (self.seen[place].layers if place in self.seen else set())
                found += [f"{place} of layer {layer}" for layer in sorted(lost)]
        return found

    def _context(self, layer: int, device: torch.device) -> HookContext:
        return self._prompt.context(layer, self._first, self._rows, self._batch, device)

    @contextmanager
    def below(self) -> Iterator[None]:
        """Hooks that see values as the model made them; they are registered before the engine's."""
        restated = self._restated
        with ExitStack() as stack:

            def enter(_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
                if self._active:
                    _, tokens = tokens_of(args, kwargs)
                    self._first += self._rows
                    self._batch, self._rows = tokens.shape[:2]

            stack.callback(restated.target.decoder.register_forward_pre_hook(enter, with_kwargs=True).remove)
            for index, layer in enumerate(restated.layers):
                mine = [edit for edit in self._edits if index in edit.layers]
                if any(edit.overrides("resid_pre") for edit in mine):
                    reads = [*mine, *(edit for one in self._others_of(index) for edit in one)]
                    stack.callback(
                        layer.register_forward_pre_hook(self._reader(index, reads), with_kwargs=True).remove
                    )
                for place in OUTSIDE:
                    if any(edit.overrides(place) for edit in mine):
                        module = module_at(layer, place, index, restated.target.name)
                        stack.callback(module.register_forward_hook(self._keeper(place, index)).remove)
            yield

    def _reader(self, index: int, edits: Sequence[Edit]) -> Any:
        def read(_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if self._active:
                hidden = args[0] if args else kwargs["hidden_states"]
                for edit in edits:
                    if edit.overrides("resid_pre"):
                        edit.resid_pre(hidden, self._context(index, hidden.device))

        return read

    def _keeper(self, place: str, index: int) -> Any:
        def keep(_module: Any, _args: Any, output: Any) -> None:
            if self._active:
                self._below[place, index] = rows_of(output)

        return keep

    @contextmanager
    def above(self) -> Iterator[None]:
        """Hooks that see values as the engine left them; they are registered after the engine's."""
        restated = self._restated
        with ExitStack() as stack:
            for index, layer in enumerate(restated.layers):
                mine = [edit for edit in self._edits if index in edit.layers]
                for place in OUTSIDE:
                    if any(edit.overrides(place) for edit in mine):
                        module = module_at(layer, place, index, restated.target.name)
                        stack.callback(module.register_forward_hook(self._judge(place, index, mine)).remove)
            if any(edit.overrides(place) for edit in self._edits for place in INSIDE_ATTENTION):
                stack.enter_context(attention_replaced(restated.model, self._attention))
            stack.callback(self._rest)
            self._active = True
            yield

    def _rest(self) -> None:
        self._active = False

    def _judge(self, place: str, index: int, edits: Sequence[Edit]) -> Any:
        def judge(_module: Any, _args: Any, output: Any) -> None:
            found, given = rows_of(output), self._below.pop((place, index))
            shape = (self._batch, self._rows, found.shape[-1])
            here = self._context(index, found.device)

            def make(edits: Sequence[Edit], draw: int | None) -> Tensor:
                hidden = given.reshape(shape)
                return apply_edits(edits, place, hidden if draw is None else moved(hidden, draw), here)

            self._compare(place, index, found.reshape(shape), edits, make)

        return judge

    def _attention(
        self, module: Any, query: Tensor, key: Any, value: Any, attention_mask: Any, **kwargs: Any
    ) -> Any:
        """Stands above the engine's attention function: asks it, and computes the same by full matrices."""
        output = kernel_of(self._restated.model)(module, query, key, value, attention_mask, **kwargs)
        index = self._restated.layer_of.get(id(module))
        if index is None or not self._active:
            return output
        edits = [e for e in self._edits if index in e.layers and any(map(e.overrides, INSIDE_ATTENTION))]
        if not edits:
            plain, _ = self._kernel(module, query, key, value, attention_mask, **kwargs)
            self.untouched.add(index, distance(output[0].flatten(0, 1), plain.flatten(0, 1)), 0.0)
            return output
        here = self._context(index, query.device)

        def make(edits: Sequence[Edit], draw: int | None) -> Tensor:
            q, k, v = (x if draw is None else moved(x, draw + n) for n, x in enumerate((query, key, value)))
            return edited_attention(self._kernel, module, q, k, v, attention_mask, kwargs, edits, here)

        self._compare("attention", index, output[0], edits, make)
        return output

    def _compare(self, place: str, index: int, found: Tensor, edits: Sequence[Edit], make: Any) -> None:
        counts = self._counting(found.device)
        before = apart(edits)

        def far(a: Tensor, b: Tensor) -> float:
            return distance(a[counts], b[counts])

        wanted = make(edits, None)
        # Computed in any case, since their state goes from pass to pass
        others = [make(one, None) for one in self._others_of(index)]
        spread = far(make(apart(before), 1), wanted)
        alone = far(make((), 1), make((), None)) if place == "attention" else torch.finfo(found.dtype).eps
        rounding = self._rounding.get(place, 0.0)
        gain = max(1.0, spread / alone) if alone > 0 else 1.0
        allowed = TIMES * max(rounding * gain, spread, torch.finfo(found.dtype).eps)
        difference = far(found, wanted)
        if difference > allowed:
            # Entry by entry the nearest of several computations: a decision near a tie falls either way
            nearest = relative(found[counts], wanted[counts])
            for other in (*others, *(make(apart(before), 10 * draw) for draw in range(2, 2 + DRAWS))):
                nearest = torch.minimum(nearest, relative(found[counts], other[counts]))
            difference = float(nearest.max())
        self.seen.setdefault(place, Seen()).add(index, difference, allowed)

    def _others_of(self, index: int) -> list[list[Edit]]:
        """The other preparations of the edits of one layer."""
        return [[edit for edit in one if index in edit.layers] for one in self._others]

    @property
    def wrong(self) -> bool:
        """Whether a difference is larger than rounding explains."""
        return any(seen.share > 1 for seen in self.seen.values())

    def _counting(self, device: torch.device) -> Tensor:
        """``(batch, rows)`` bool: rows of this pass that are no padding."""
        numbers = torch.arange(self._first, self._first + self._rows, device=device)
        counts = self._prompt.counts.to(device)
        counts = counts.repeat_interleave(self._batch // counts.shape[0], dim=0)
        inside = numbers < self._prompt.length
        return torch.where(inside[None], counts[:, numbers.clamp(max=self._prompt.length - 1)], True)


class Recorder:
    """Keeps the last row of every place of every layer, pass after pass, to measure the plain model's rounding."""

    def __init__(self, restated: Restated) -> None:
        self._restated = restated
        self.passes: list[dict[tuple[str, int], Tensor]] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside the block every pass of the decoder is recorded."""
        restated, kernel = self._restated, kernel_of(self._restated.model)
        with ExitStack() as stack:

            def enter(_module: Any, _args: Any) -> None:
                self.passes.append({})

            def attention(module: Any, *args: Any, **kwargs: Any) -> Any:
                output = kernel(module, *args, **kwargs)
                if (index := restated.layer_of.get(id(module))) is not None:
                    self.passes[-1]["attention", index] = output[0][:, -1]
                return output

            stack.callback(restated.target.decoder.register_forward_pre_hook(enter).remove)
            if kernel is not None:
                stack.enter_context(attention_replaced(restated.model, attention))
            for index, layer in enumerate(restated.layers):
                for place in OUTSIDE:
                    try:
                        module = module_at(layer, place, index, restated.target.name)
                    except UnsupportedModel:  # no edit can act there either
                        continue
                    stack.callback(module.register_forward_hook(self._keeper(place, index)).remove)
            yield

    def _keeper(self, place: str, index: int) -> Any:
        def keep(_module: Any, _args: Any, output: Any) -> None:
            whole = rows_of(output)
            self.passes[-1][place, index] = whole.reshape(-1, whole.shape[-1])[-1]

        return keep

    def differences(self, other: Recorder) -> dict[str, float]:
        """By place, the largest difference between the passes of two recordings."""
        found: dict[str, float] = {}
        for mine, theirs in zip(self.passes, other.passes, strict=True):
            for key in mine.keys() & theirs.keys():
                far = distance(mine[key].reshape(1, -1), theirs[key].reshape(1, -1))
                found[key[0]] = max(found.get(key[0], 0.0), far)
        return found
