"""The attention function that stands in for transformers' own while a session is open."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from keepsight.engines.hf.edit_state import SESSIONS, Session

if TYPE_CHECKING:
    from torch import Tensor

    from keepsight.parts import Edit


def attention(
    base: Any,
    module: Any,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Any,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers, in which passes that met go apart again: each has its keys and its mask."""
    session = SESSIONS.get(module)
    if session is None or session.packed is None or session.thread != get_ident():
        return _edited(base, module, query, key, value, attention_mask, *args, **kwargs)
    import torch

    layout = session.packed
    outs = []
    # Queries that a pass leaves out are asked all the same: kernels and masks are for whole prompts
    queries = layout.pack.complete(layout.pack.split_heads(query))
    for i, (rows, mask) in enumerate(zip(queries, layout.masks, strict=True)):
        attend = base if i else functools.partial(_edited, base)  # the main pass comes first
        out, _ = attend(module, rows, key[i], value[i], mask, *args, **kwargs)
        out = out[:, layout.pack.skipped(i) :]
        outs.append(out.reshape(1, -1, *out.shape[2:]))
    return torch.cat(outs, dim=1), None


def _edited(
    base: Any,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """``base``, and what the edits of the module's session make of it."""
    from keepsight.engines.hf.attention import attend

    session = SESSIONS.get(module)
    layer = int(module.layer_idx)
    weighing = (
        [] if session is None else [edit for edit in session.edits if layer in edit.layers and edit.weighs]
    )
    scaled = [] if session is None else session.at(layer, "heads")
    if session is None or not (weighing or scaled):
        out, weights = base(module, query, key, value, attention_mask, *args, scaling=scaling, **kwargs)
        return out, weights
    site = session.site(layer, query.device)
    out = None
    plan = _plan(session, weighing, query.device) if weighing else None
    if plan is None or not plan.everything:
        out, _ = base(module, query, key, value, attention_mask, *args, scaling=scaling, **kwargs)
    if plan is not None and len(plan.union):
        keys = key.shape[2]
        first_key = max(session.first + session.rows - keys, 0)  # a sliding window keeps the last keys only
        image = session.once(("columns", keys), lambda: site.image_columns(keys, first_key))
        window = kwargs.get("sliding_window")
        bias = session.once(
            ("bias", id(attention_mask), keys, window, id(plan)),
            lambda: plan.bias(attention_mask, session, keys, first_key, window),
        )

        def run(seam: str, weights: Tensor) -> Tensor:
            for edit, mine in zip(weighing, plan.mine, strict=True):
                if edit.overrides(seam):
                    edited = getattr(edit, seam)(weights, image, site)
                    weights = edited if mine is None else weights.where(~mine, edited)
            return weights

        rows = attend(
            query if plan.everything else query[:, :, plan.union],
            key,
            value,
            bias,
            scaling if scaling is not None else query.shape[-1] ** -0.5,
            scores=functools.partial(run, "scores"),
            probabilities=functools.partial(run, "probabilities"),
            softcap=kwargs.get("softcap"),
        )
        if out is None:
            out = rows.contiguous()
        else:
            out = out.clone()
            out[:, plan.union] = rows.where(plan.touched[:, :, None, None], out[:, plan.union])
    assert out is not None
    for edit in scaled:
        out = edit.heads(out, site)
    return out, None


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which rows of a pass are recomputed for some edits."""

    union: Tensor
    """``(some,)`` rows that any edit touches in any prompt of the batch."""
    touched: Tensor
    """``(batch, some)`` bool: which of them are touched in which prompt."""
    mine: tuple[Tensor | None, ...]
    """For each edit ``(batch, 1, some, 1)`` bool: its own rows; None where that is all of them."""
    everything: bool
    """Whether nothing is left for the fast kernel."""
    lowest_row: int

    def bias(
        self, mask: Tensor | None, session: Session, keys: int, first_key: int, window: int | None
    ) -> Tensor | None:
        from keepsight.engines.hf.attention import allowed_keys

        if mask is None and window is None and first_key + keys - 1 <= session.first + self.lowest_row:
            return None
        return allowed_keys(
            mask, self.union, first=session.first, keys=keys, first_key=first_key, window=window
        )


def _plan(session: Session, weighing: Sequence[Edit], device: Any) -> _Plan:
    def make() -> _Plan:
        import torch

        site = session.site(0, torch.device("cpu"))
        rows = torch.stack([edit.rows(site) for edit in weighing])
        touched = rows.any(0)
        union = touched.any(0).nonzero().flatten()
        own = [None if bool(mine[:, union].all()) else mine[:, None, union, None].to(device) for mine in rows]
        return _Plan(
            union=union.to(device),
            touched=touched[:, union].to(device),
            mine=tuple(own),
            everything=bool(touched.all()),
            lowest_row=int(union.min()) if len(union) else 0,
        )

    plan: _Plan = session.once(("plan", *map(id, weighing), device), make)
    return plan


def allowed_keys(
    mask: Tensor | None, row_index: Tensor, *, first: int, keys: int, first_key: int, window: int | None
) -> Tensor:
    """What each of some query rows may see, as a bias to add to float32 scores.

    Args:
        mask: as attention functions get it: None (causal), bool or additive ``(batch, 1, rows, keys)``, or ``(batch,
            keys)``.
        row_index: ``(some,)`` rows within the pass.
        first, first_key: numbers of the pass's first row and of the first key.
        window: length of a sliding window, or None.

    Returns:
        ``(batch or 1, 1, some, keys)`` float32, 0 or the lowest float.
    """
    lowest = torch.finfo(torch.float32).min
    if mask is not None and mask.ndim == 4:
        mask = mask[:, :, row_index, :keys]
        return torch.where(mask, 0.0, lowest) if mask.dtype == torch.bool else mask.float().clamp(min=lowest)
    rows = (first + row_index)[:, None]
    columns = first_key + torch.arange(keys, device=row_index.device)[None]
    seen = columns <= rows
    if window is not None:
        seen &= columns > rows - window
    seen = seen[None, None]
    if mask is not None:
        seen = seen & mask[:, None, None, :keys].bool()
    return torch.where(seen, 0.0, lowest)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scaling: float,
    *,
    scores: Callable[[Tensor], Tensor],
    probabilities: Callable[[Tensor], Tensor],
    softcap: float | None = None,
) -> Tensor:
    """Attention of a few rows with explicit weights, edited before and after the softmax.

    Args:
        query: ``(batch, heads, rows, dim)``; key, value: ``(batch, groups, keys, dim)``, not repeated for their heads.
        bias: see ``allowed_keys``.

    Returns:
        ``(batch, rows, heads, dim)`` in the dtype of ``value``.
    """
    batch, heads, rows, _ = query.shape
    groups = key.shape[1]
    grouped = query.reshape(batch, groups, heads // groups * rows, -1)
    raw = (grouped @ key.transpose(-1, -2)).float().mul_(scaling).reshape(batch, heads, rows, -1)
    if softcap is not None:
        raw = softcap * torch.tanh(raw / softcap)
    raw = scores(raw)
    probs = probabilities((raw if bias is None else raw + bias).softmax(-1)).to(value.dtype)
    mixed = probs.reshape(batch, groups, heads // groups * rows, -1) @ value
    return mixed.reshape(batch, heads, rows, -1).transpose(1, 2)
