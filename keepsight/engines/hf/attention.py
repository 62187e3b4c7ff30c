"""The attention function that stands in for transformers' own while edits or shared passes are in place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from keepsight.engines.hf.edit_state import LAYERS, EditState, Hook
from keepsight.errors import UnsupportedModel

if TYPE_CHECKING:
    from keepsight.parts import HookContext

UNDERSTOOD = frozenset({"sliding_window", "softcap", "is_causal", "dropout", "position_bias"})
"""Arguments of attention functions that explicit weights follow (a dropout of 0, as it is outside of training)."""
IRRELEVANT = frozenset(
    {
        "position_ids", "cache_position", "position_embeddings", "cache", "past_key_values", "use_cache", "kwargs",
        "output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "logits_to_keep",
        "token_type_ids", "mm_token_type_ids", "num_items_in_batch", "shared_kv_states", "layer_idx", "enable_gqa",
    }
)  # fmt: skip
"""Arguments that models hand through to attention functions and that do not change what attention is."""


def attention(
    base: Any,
    module: Any,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """An attention function of transformers that knows of edits and of shared passes.

    Args:
        base: the function that it stands in for; everything that is not edited goes through it, as it came.
        module, query, key, value, attention_mask: as transformers hands them over. In a shared pass ``query`` holds the
            tokens of all passes in one row, and ``key`` and ``value`` hold one tensor for each pass.
    """
    found = LAYERS.get(id(module))
    if found is None or found[0].thread != get_ident():
        return base(module, query, key, value, attention_mask, *args, **kwargs)
    state, layer = found
    edited = layer in state.attention_layers and not state.foreign
    if (packed := state.packed) is None:
        if not edited:
            return base(module, query, key, value, attention_mask, *args, **kwargs)
        return _edited(state, layer, base, module, query, key, value, attention_mask, *args, **kwargs)
    outs = []
    for i, (queries, mask) in enumerate(zip(packed.split_heads(query), packed.masks, strict=True)):
        if i or not edited:  # the main pass comes first, and is the only one that is edited
            out, _ = base(module, queries, key[i], value[i], mask, *args, **kwargs)
        else:
            out, _ = _edited(state, layer, base, module, queries, key[i], value[i], mask, *args, **kwargs)
        outs.append(out.reshape(1, -1, *out.shape[2:]))
    return torch.cat(outs, dim=1), None


def _edited(
    state: EditState,
    layer: int,
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
    """``base``, and what the edits of this layer make of it."""
    if query.shape[2] != state.rows:
        raise UnsupportedModel(
            f"{state.name}: layer {layer} computes {query.shape[2]} of the {state.rows} tokens of a pass, and it is not"
            " known which: its attention cannot be edited"
        )
    scores, pattern = state.at("attn_scores", layer), state.at("attn_pattern", layer)
    heads = state.at("head_out", layer)
    context = state.context(layer, query.device)
    out = None
    plan = None
    if scores or pattern:
        _check_arguments(state, base, module, args, kwargs)
        plan = _plan(state, layer, scores, pattern, query.device)
    if plan is None or not plan.everything:
        out, _ = base(module, query, key, value, attention_mask, *args, scaling=scaling, **kwargs)
    if plan is not None and len(plan.union):
        keys = key.shape[2]
        first_key = max(state.first + state.rows - keys, 0)  # a sliding window keeps the last keys only
        image = state.once(("columns", keys), lambda: context.image_columns(keys, first_key))
        window, causal = kwargs.get("sliding_window"), _is_causal(module, kwargs)
        position_bias = kwargs.get("position_bias")
        if position_bias is not None and not plan.everything:
            position_bias = position_bias[:, :, plan.union]
        # The mask is kept beside the bias, so that no other mask of this pass can get its id
        _, bias = state.once(
            ("bias", id(attention_mask), keys, window, causal, id(plan)),
            lambda: (
                attention_mask,
                plan.bias(attention_mask, state, keys, first_key, window, causal=causal),
            ),
        )
        rows = attend(
            query if plan.everything else query[:, :, plan.union],
            key,
            value,
            bias,
            scaling if scaling is not None else query.shape[-1] ** -0.5,
            scores=lambda weights: plan.apply(scores, weights, image, context),
            pattern=lambda weights: plan.apply(pattern, weights, image, context),
            softcap=kwargs.get("softcap"),
            position_bias=position_bias,
        )
        if out is None:
            out = rows.contiguous()
        else:
            out = out.clone()
            out[:, plan.union] = rows.where(plan.touched[:, :, None, None], out[:, plan.union])
    assert out is not None
    for _, edit in heads:
        out = edit(out, context)
    return out, None


def _check_arguments(
    state: EditState, base: Any, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raises ``UnsupportedModel`` where a model computes its attention in a way that explicit weights do not follow.

    To leave out an argument in silence, such as learned sinks (``s_aux``) or a bias by position, would give other attention
    than the model's own. transformers' function for ``sdpa`` reads what it names, and ignores all else that it is handed.
    """
    read = _names_of_sdpa(base)
    unknown = [
        name
        for name, value in kwargs.items()
        if value is not None
        and name not in UNDERSTOOD
        and name not in IRRELEVANT
        and (read is None or name in read)
    ]
    if args:
        unknown.insert(0, "an argument by position")
    if kwargs.get("dropout"):
        unknown.append("a dropout above 0 (call model.eval())")
    if unknown:
        raise UnsupportedModel(
            f"{state.name}: {type(module).__name__} hands its attention {', '.join(unknown)}, which edits of attention"
            " scores and patterns do not follow: this method cannot be used with it"
        )


@functools.cache
def _names_of_sdpa(base: Any) -> frozenset[str] | None:
    """What transformers' function for ``sdpa`` names as arguments; None for another function."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return frozenset(signature(base).parameters) if base is sdpa_attention_forward else None


def _is_causal(module: Any, kwargs: dict[str, Any]) -> bool:
    given = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which rows of a pass are computed anew for some edits."""

    union: Tensor
    """``(some,)`` rows that any edit touches in any prompt of the batch."""
    touched: Tensor
    """``(batch, some)`` bool: which of them are touched in which prompt."""
    mine: dict[int, Tensor | None]
    """By the ``id`` of each edit ``(batch, 1, some, 1)`` bool: its own rows; None where that is all of them."""
    everything: bool
    """Whether nothing is left for the fast kernel."""
    lowest_row: int

    def bias(
        self,
        mask: Tensor | None,
        state: EditState,
        keys: int,
        first_key: int,
        window: int | None,
        *,
        causal: bool,
    ) -> Tensor | None:
        """See ``allowed_keys``; None where every row sees every key."""
        if mask is None and not causal:
            return None
        if mask is None and window is None and first_key + keys - 1 <= state.first + self.lowest_row:
            return None
        return allowed_keys(
            mask, self.union, first=state.first, keys=keys, first_key=first_key, window=window, causal=causal
        )

    def apply(self, hooks: Sequence[Hook], weights: Tensor, image: Tensor, context: HookContext) -> Tensor:
        """Scores or patterns of ``union`` after each edit has changed its own rows."""
        for edit, change in hooks:
            mine = self.mine[id(edit)]
            changed = change(weights, image, context)
            weights = changed if mine is None else weights.where(~mine, changed)
        return weights


def _plan(
    state: EditState, layer: int, scores: Sequence[Hook], pattern: Sequence[Hook], device: Any
) -> _Plan:
    edits = list({id(edit): edit for edit, _ in (*scores, *pattern)}.values())

    def make() -> _Plan:
        context = state.context(layer, torch.device("cpu"))
        rows = torch.stack([edit.rows(context) for edit in edits])
        touched = rows.any(0)
        union = touched.any(0).nonzero().flatten()
        own = [None if bool(mine[:, union].all()) else mine[:, None, union, None].to(device) for mine in rows]
        return _Plan(
            union=union.to(device),
            touched=touched[:, union].to(device),
            mine={id(edit): mine for edit, mine in zip(edits, own, strict=True)},
            everything=bool(touched.all()),
            lowest_row=int(union.min()) if len(union) else 0,
        )

    plan: _Plan = state.once(("plan", *map(id, edits), device), make)
    return plan


def allowed_keys(
    mask: Tensor | None,
    row_index: Tensor,
    *,
    first: int,
    keys: int,
    first_key: int,
    window: int | None,
    causal: bool = True,
) -> Tensor:
    """What each of some query rows may see, as a bias to add to float32 scores.

    Args:
        mask: as attention functions get it: None (causal), bool or additive ``(batch, 1, rows, keys)``, or ``(batch,
            keys)``.
        row_index: ``(some,)`` rows within the pass.
        first, first_key: numbers of the pass's first row and of the first key.
        window: length of a sliding window, or None.
        causal: whether a row sees no later key, where the mask does not say it.

    Returns:
        ``(batch or 1, 1, some, keys)`` float32, 0 or the lowest float.
    """
    lowest = torch.finfo(torch.float32).min
    if mask is not None and mask.ndim == 4:
        mask = mask[:, :, row_index, :keys]
        return torch.where(mask, 0.0, lowest) if mask.dtype == torch.bool else mask.float().clamp(min=lowest)
    rows = (first + row_index)[:, None]
    columns = first_key + torch.arange(keys, device=row_index.device)[None]
    seen = (columns <= rows) if causal else (columns == columns).expand(len(rows), -1)
    if window is not None:
        seen = seen & (columns > rows - window)
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
    pattern: Callable[[Tensor], Tensor],
    softcap: float | None = None,
    position_bias: Tensor | None = None,
) -> Tensor:
    """Attention of a few rows with explicit weights, edited before and after the softmax.

    Args:
        query: ``(batch, heads, rows, dim)``; key, value: ``(batch, groups, keys, dim)``, not repeated for their heads.
        bias: see ``allowed_keys``.
        position_bias: what a model adds to its scores by distance, ``(batch or 1, heads or 1, rows, keys or more)``; edits
            see the scores with it.

    Returns:
        ``(batch, rows, heads, dim)`` in the dtype of ``value``.
    """
    batch, heads, rows, _ = query.shape
    groups = key.shape[1]
    grouped = query.reshape(batch, groups, heads // groups * rows, -1)
    raw = (grouped @ key.transpose(-1, -2)).float().mul_(scaling).reshape(batch, heads, rows, -1)
    if softcap is not None:
        raw = softcap * torch.tanh(raw / softcap)
    if position_bias is not None:
        raw = raw + position_bias[..., : raw.shape[-1]].float()
    raw = scores(raw)
    probs = pattern((raw if bias is None else raw + bias).softmax(-1)).to(value.dtype)
    mixed = probs.reshape(batch, groups, heads // groups * rows, -1) @ value
    return mixed.reshape(batch, heads, rows, -1).transpose(1, 2)
