"""Finds attention sinks by massive activations: which dimensions mark them, from which score on, and whether to trust it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keepsight.attention_mods.var import scaled_tau, sink_score

LEAST_ENERGY = 0.25
"""Least share of √width that a sink dimension's normalised value must reach at the first token."""
LEAST_OUTLIER = 100.0
"""Least multiple of the first token's median absolute value."""
LEAST_LAYERS = 0.3
"""Least share of the examined layers in which a dimension must be massive."""
MOST_DIMS = 3
"""At most so many dimensions are kept; models with published ones have one to three."""
LEAST_GAP = 1.5
"""A gap between sorted scores counts if its upper end is at least this many times its lower one; less can be chance."""
LEAST_FIRST = 0.95
"""Least share of prompts whose first token is a sink."""
VISUAL_SHARE = (0.001, 0.05)
"""Between which shares of the pictures' tokens may be sinks."""
LEAST_VISUAL_LAYERS = 1 / 3
"""Least share of the examined layers in which ``VISUAL_SHARE`` must hold."""
LEAST_ATTENTION = 5.0
"""Least ratio of the attention to a visual sink and that to another token of the picture."""


@dataclass(frozen=True)
class Threshold:
    """A sink threshold and where it is from: the gap ``below`` … ``above`` of the scores, or the published one, scaled."""

    tau: float
    below: float | None = None
    above: float | None = None


@dataclass(frozen=True, eq=False)
class Look:
    """What one prompt with a picture showed.

    ``scores`` ``(layers examined, tokens)``: sink scores. ``attention`` ``(layers examined, tokens)``: mean over heads
    and rows after the picture. ``image`` ``(tokens,)`` bool.
    """

    scores: Tensor
    attention: Tensor
    image: Tensor


@dataclass(frozen=True)
class Verdict:
    """Whether sinks are where VAR expects them.

    Args:
        first: share of prompts whose first token is a sink in at least a third of the layers.
        visual: by layer examined, the share of the pictures' tokens that are sinks.
        attention: mean attention to a visual sink over that to another visual token, in layers that have both; None
            without a visual sink.
        reasons: what speaks against; empty means accepted.
    """

    first: float
    visual: tuple[float, ...]
    attention: float | None
    reasons: tuple[str, ...]


def examined_layers(count: int) -> range:
    """Layers whose input is searched: 2 to the last but two; in models of less than five layers the middle one."""
    first = min(2, (count - 1) // 2)
    return range(first, max(first, count - 3) + 1)


def massive(first: Tensor) -> tuple[Tensor, Tensor]:
    """How massive each dimension of first tokens is, ``(…, hidden)`` twice.

    Returns:
        ``|x_d| / rms(x)``, at most √hidden, and ``|x_d|`` over the median of ``|x|``.
    """
    size = first.float().abs()
    scale = (size.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    middle = size.median(-1, keepdim=True).values.clamp(min=1e-12)
    return size * scale, size / middle


def sink_dims(first: Tensor) -> tuple[int, ...]:
    """Dimensions that are massive at the first token, the largest first, at most three.

    In at least 30 % of the layers, the median over prompts must reach a quarter of √hidden after normalisation, and 100
    times the median of the vector.

    Args:
        first: ``(prompts, layers, hidden)``, residual stream at position 0.
    """
    energy, outlier = (values.median(0).values for values in massive(first))
    found = (energy >= LEAST_ENERGY * math.sqrt(first.shape[-1])) & (outlier >= LEAST_OUTLIER)
    kept = (found.float().mean(0) >= LEAST_LAYERS).nonzero().flatten()
    order = energy.mean(0)[kept].argsort(descending=True)
    return tuple(kept[order].tolist()[:MOST_DIMS])


def threshold(scores: Tensor, width: int) -> Threshold:
    """τ in the middle, on a logarithmic scale, of the widest gap between scores from √width / 8 to √width / 1.5.

    Without a gap of at least the factor 1.5, the published threshold scaled to the width.

    Args:
        scores: sink scores of all tokens, any shape.
    """
    low, high = math.sqrt(width) / 8, math.sqrt(width) / 1.5
    inside = scores.flatten().float().clamp(low, high).sort().values
    ratios = inside[1:] / inside[:-1]
    if not len(ratios) or float(ratios.max()) < LEAST_GAP:
        return Threshold(scaled_tau(width))
    widest = int(ratios.argmax())
    below, above = float(inside[widest]), float(inside[widest + 1])
    return Threshold(math.sqrt(below * above), below, above)


def judge(looks: Sequence[Look], first: Tensor, dims: tuple[int, ...], tau: float) -> Verdict:
    """Test the sinks that ``dims`` and ``tau`` mark.

    Accepted if the first token is one in at least 95 % of the prompts, between 0.1 and 5 % of the pictures' tokens are
    in at least a third of the layers, and those receive at least 5 times the attention of the others.

    Args:
        looks: one for each prompt with a picture.
        first: ``(prompts, layers examined, hidden)``, the first tokens of all prompts, with and without a picture.
    """
    flagged = (sink_score(first, dims) >= tau).float().mean(-1) >= LEAST_VISUAL_LAYERS
    share = float(flagged.float().mean())
    visual = torch.stack([(look.scores[:, look.image] >= tau).double().sum(-1) for look in looks]).sum(0)
    visual /= sum(int(look.image.sum()) for look in looks)
    low, high = VISUAL_SHARE
    fitting = float(((visual >= low) & (visual <= high)).double().mean())
    attention = _attention_ratio(looks, tau)
    reasons = []
    if share < LEAST_FIRST:
        reasons.append(f"the first token is a sink in {share:.0%} of the prompts, not in {LEAST_FIRST:.0%}")
    if fitting < LEAST_VISUAL_LAYERS:
        reasons.append(
            f"{low:.1%} to {high:.0%} of the picture's tokens are sinks in {fitting:.0%} of the layers, not in a third"
            f" (by layer: {', '.join(f'{one:.2%}' for one in visual.tolist())})"
        )
    if attention is None:
        reasons.append("no token of any picture is a sink")
    elif attention < LEAST_ATTENTION:
        reasons.append(
            f"visual sinks receive {attention:.1f} times the attention of other visual tokens, not {LEAST_ATTENTION:g}"
        )
    return Verdict(share, tuple(visual.tolist()), attention, tuple(reasons))


def _attention_ratio(looks: Sequence[Look], tau: float) -> float | None:
    on_sinks, on_others, sinks, others = 0.0, 0.0, 0, 0
    for look in looks:
        drained = (look.scores >= tau) & look.image
        clear = ~drained & look.image
        both = drained.any(-1, keepdim=True) & clear.any(-1, keepdim=True)
        drained, clear = drained & both, clear & both
        on_sinks += float((look.attention * drained).sum())
        on_others += float((look.attention * clear).sum())
        sinks += int(drained.sum())
        others += int(clear.sum())
    if not sinks:
        return None
    return (on_sinks / sinks) / max(on_others / others, 1e-30)


def middle_window(mass: Sequence[float], layers: range) -> tuple[int, int]:
    """First and last of the layers around the peak of visual attention, among ``layers``, that hold at least half of it."""
    peak = max(layers, key=lambda layer: mass[layer])
    first = last = peak
    while first - 1 in layers and mass[first - 1] >= mass[peak] / 2:
        first -= 1
    while last + 1 in layers and mass[last + 1] >= mass[peak] / 2:
        last += 1
    return first, last
