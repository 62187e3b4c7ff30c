"""Attention by full matrices, and edits on it, written out once more. Shares no code with ``keepsight.engines``."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from keepsight.parts import Edit, HookContext

FOLLOWED = frozenset({"scaling", "softcap", "position_bias", "is_causal", "dropout", "sliding_window"})
"""Arguments of attention functions that ``explicit_attention`` takes into account."""
PASSED_THROUGH = frozenset(
    {
        "position_ids", "cache_position", "position_embeddings", "cache", "past_key_values", "use_cache", "kwargs",
        "output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "logits_to_keep",
        "token_type_ids", "mm_token_type_ids", "num_items_in_batch", "shared_kv_states", "layer_idx", "enable_gqa",
    }
)  # fmt: skip
"""Arguments that change no attention."""


def is_sdpa(kernel: Any) -> bool:
    """Whether a kernel is transformers' own for sdpa."""
    return getattr(kernel, "__name__", "") == "sdpa_attention_forward"


def can_follow(kernel: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether explicit matrices give what a kernel of transformers gives for these arguments."""
    if is_sdpa(kernel):
        return True  # it ignores whatever it does not name, and all that it names is followed
    given = {name for name, value in kwargs.items() if value is not None}
    return given <= FOLLOWED | PASSED_THROUGH


def visible_keys(
    mask: Tensor | None, rows: int, keys: int, *, causal: bool, window: int | None, device: torch.device
) -> Tensor:
    """What is added to scores ``(batch or 1, 1, rows, keys)``: 0 where a row may look, the lowest float32 elsewhere.

    The last row of the pass stands at the last key, as it does in a pass with a cache and in one without.
    """
    lowest = torch.finfo(torch.float32).min
    if mask is not None and mask.ndim == 4:
        whole = mask[..., :keys]
        if whole.dtype == torch.bool:
            return torch.zeros(whole.shape, device=device).masked_fill(~whole, lowest)
        return whole.float().clamp(min=lowest)
    seen = torch.ones(rows, keys, dtype=torch.bool, device=device)
    if causal:
        seen = seen.tril(keys - rows)
    if window is not None:
        seen = seen.triu(keys - rows - window + 1)
    seen = seen[None, None]
    if mask is not None:
        seen = seen & (mask[:, None, None, :keys] != 0)
    return torch.zeros(seen.shape, device=device).masked_fill(~seen, lowest)


def explicit_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: Mapping[str, Any],
    edits: Sequence[Edit],
    context: HookContext,
    *,
    windowed: bool,
) -> Tensor:
    """Attention of all rows by full float32 matrices, with edits of scores, patterns and heads.

    Args:
        module, query, key, value, mask, kwargs: as transformers hands them to an attention function.
        edits: those that act in this layer.
        context: where the pass stands.
        windowed: whether ``sliding_window`` among the arguments counts; transformers' sdpa leaves windows to the mask.

    Returns:
        ``(batch, rows, heads, dim)``.
    """
    heads, rows, keys = query.shape[1], query.shape[2], key.shape[2]
    each = heads // key.shape[1]
    every_key = torch.stack([key[:, head // each] for head in range(heads)], dim=1).float()
    every_value = torch.stack([value[:, head // each] for head in range(heads)], dim=1).float()
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.einsum("bhqd,bhkd->bhqk", query.float(), every_key) * scaling
    if (cap := kwargs.get("softcap")) is not None:
        scores = torch.tanh(scores / cap) * cap
    if (bias := kwargs.get("position_bias")) is not None:
        scores = scores + bias[..., :keys].float()
    causal = kwargs.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
    window = kwargs.get("sliding_window") if windowed else None
    first_key = max(context.first + rows - keys, 0)
    image = context.image_columns(keys, first_key)
    for edit in edits:
        if edit.overrides("attn_scores"):
            mine = edit.rows(context)[:, None, :, None].to(scores.device)
            scores = torch.where(mine, edit.attn_scores(scores, image, context), scores)
    # Masked scores are the lowest float, whatever an edit has made of them
    pattern = (
        scores + visible_keys(mask, rows, keys, causal=causal, window=window, device=scores.device)
    ).softmax(-1)
    for edit in edits:
        if edit.overrides("attn_pattern"):
            mine = edit.rows(context)[:, None, :, None].to(scores.device)
            pattern = torch.where(mine, edit.attn_pattern(pattern, image, context), pattern)
    out = torch.einsum("bhqk,bhkd->bqhd", pattern, every_value).to(value.dtype)
    return apply_edits(edits, "head_out", out, context)


def edited_attention(
    kernel: Any,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: Mapping[str, Any],
    edits: Sequence[Edit],
    context: HookContext,
) -> Tensor:
    """What attention puts out under edits: by full matrices, or, where these cannot follow the kernel, by the kernel itself,
    whose outputs of heads are all that can be restated then. The arguments are those of ``explicit_attention``."""
    if not can_follow(kernel, kwargs):
        out, _ = kernel(module, query, key, value, mask, **kwargs)
        return apply_edits(edits, "head_out", out, context)
    # transformers' sdpa leaves windows to the mask
    windowed = not is_sdpa(kernel)
    return explicit_attention(module, query, key, value, mask, kwargs, edits, context, windowed=windowed)


def apply_edits(edits: Sequence[Edit], place: str, value: Tensor, context: HookContext) -> Tensor:
    """What the edits make of a value at a place, one after the other."""
    for edit in edits:
        if edit.overrides(place):
            value = getattr(edit, place)(value, context)
    return value


def apart(edits: Sequence[Edit]) -> list[Edit]:
    """Copies of edits with copies of their state, so that a value can be computed twice from one state."""
    return copy.deepcopy(list(edits))


def moved(value: Tensor, seed: int) -> Tensor:
    """A tensor whose entries are each moved up or down by one unit of rounding of its data type, drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    # Signs of a fixed length, repeated: drawing one for each entry of a large tensor on the CPU takes long
    signs = torch.randint(0, 2, (min(value.numel(), 65_521),), generator=generator) * 2 - 1
    wanted = -(-value.numel() // max(len(signs), 1))
    signs = signs.to(value.device).repeat(wanted)[: value.numel()].reshape(value.shape)
    return (value.double() * (1 + torch.finfo(value.dtype).eps * signs)).to(value.dtype)
