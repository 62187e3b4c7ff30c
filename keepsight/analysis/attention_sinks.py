"""Finds attention sinks by massive activations: their dimensions, the threshold of the score, and a test of both.

``docs/calibration.md`` states the criteria in full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keepsight.attention_mods.var import scaled_tau, sink_score

LEAST_ENERGY = 0.25
"""The least share of √width that a sink dimension's normalised value must reach at the first token."""
LEAST_OUTLIER = 100.0
"""The least multiple of the first token's median absolute value that a sink dimension's value must reach."""
LEAST_LAYERS = 0.3
"""The least share of the examined layers in which a dimension must be massive."""
MOST_DIMS = 3
"""The largest number of dimensions that are kept. Models with published sink dimensions have one to three."""
LEAST_GAP = 1.5
"""A gap between sorted scores counts if its upper end is at least this many times its lower one. A smaller gap can be a
matter of chance."""
LEAST_FIRST = 0.95
"""The least share of prompts whose first token must be a sink."""
VISUAL_SHARE = (0.001, 0.05)
"""The least and the largest share of the pictures' tokens that may be sinks."""
LEAST_VISUAL_LAYERS = 1 / 3
"""The least share of the examined layers in which ``VISUAL_SHARE`` must hold, and in which a first token must be a sink."""
LEAST_ATTENTION = 5.0
"""The least ratio of the attention to a visual sink to the attention to another token of the picture."""


@dataclass(frozen=True)
class Threshold:
    """A sink threshold, and where it comes from.

    Args:
        tau: the threshold.
        below, above: the ends of the gap between scores in which it lies; None where it is the published one, scaled.
    """

    tau: float
    below: float | None = None
    above: float | None = None


@dataclass(frozen=True, eq=False)
class Look:
    """What was recorded on one prompt with a picture.

    Args:
        scores: ``(layers examined, tokens)``, the sink scores.
        attention: ``(layers examined, tokens)``, the attention that each token gets, as a mean over heads and over the rows
            after the picture.
        image: ``(tokens,)`` bool, the tokens of the picture.
    """

    scores: Tensor
    attention: Tensor
    image: Tensor


@dataclass(frozen=True)
class Verdict:
    """The result of the test whether sinks are where VAR expects them.

    Args:
        first: share of prompts whose first token is a sink in at least a third of the layers.
        visual: for each layer examined, the share of the pictures' tokens that are sinks.
        attention: the mean attention to a visual sink over that to another visual token, in layers that have both; None
            without a visual sink.
        reasons: a sentence for each criterion that is not met; if there is none, the sinks are accepted.
    """

    first: float
    visual: tuple[float, ...]
    attention: float | None
    reasons: tuple[str, ...]


def examined_layers(count: int) -> range:
    """Returns the layers whose input is searched for sinks: 2 to the last but two, and in models of less than five layers
    the middle one."""
    first = min(2, (count - 1) // 2)
    return range(first, max(first, count - 3) + 1)


def massive(first: Tensor) -> tuple[Tensor, Tensor]:
    """Measures how massive each dimension of first tokens ``(…, hidden)`` is, in two ways of the same shape.

    Returns:
        ``|x_d| / rms(x)``, at most √hidden, and ``|x_d|`` over the median of ``|x|``.
    """
    size = first.float().abs()
    # The small constant is the one of ``sink_score``, so both
    # normalise alike; it also keeps a vector of zeros finite.
    scale = (size.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    # More than half of the entries may be 0, in which case the median is 0 as well.
    middle = size.median(-1, keepdim=True).values.clamp(min=1e-12)
    return size * scale, size / middle


def sink_dims(first: Tensor) -> tuple[int, ...]:
    """Returns the dimensions that are massive at the first token, the largest first, at most three.

    In at least 30 % of the layers, the median over prompts must reach a quarter of √hidden after normalisation, and 100
    times the median of the vector.

    Args:
        first: ``(prompts, layers, hidden)``, the residual stream at position 0.
    """
    energy, outlier = (values.median(0).values for values in massive(first))
    found = (energy >= LEAST_ENERGY * math.sqrt(first.shape[-1])) & (outlier >= LEAST_OUTLIER)
    kept = (found.float().mean(0) >= LEAST_LAYERS).nonzero().flatten()
    order = energy.mean(0)[kept].argsort(descending=True)
    return tuple(kept[order].tolist()[:MOST_DIMS])


def threshold(scores: Tensor, width: int) -> Threshold:
    """Returns the middle, on a logarithmic scale, of the widest gap between scores from √width / 8 to √width / 1.5.

    Without a gap of at least the factor 1.5 it is the published threshold, scaled to the width.

    Args:
        scores: the sink scores of all tokens, in any shape.
        width: the width of the residual stream.
    """
    low, high = math.sqrt(width) / 8, math.sqrt(width) / 1.5
    # Scores outside the interval are moved to its ends instead of being left out, so
    # a gap may also lie between an end and the nearest score inside.
    inside = scores.flatten().float().clamp(low, high).sort().values
    # Ratios instead of differences make this the widest gap on a logarithmic
    # scale; ``low`` is above 0, so none divides by 0.
    ratios = inside[1:] / inside[:-1]
    if not len(ratios) or float(ratios.max()) < LEAST_GAP:
        return Threshold(scaled_tau(width))
    widest = int(ratios.argmax())
    below, above = float(inside[widest]), float(inside[widest + 1])
    # The geometric mean is the middle of the gap on that scale.
    return Threshold(math.sqrt(below * above), below, above)


def judge(looks: Sequence[Look], first: Tensor, dims: tuple[int, ...], tau: float) -> Verdict:
    """Test the sinks that ``dims`` and ``tau`` mark.

    They are accepted if the first token is a sink in at least 95 % of the prompts, between 0.1 and 5 % of the pictures'
    tokens are sinks in at least a third of the layers, and those receive at least 5 times the attention of the others.

    Args:
        looks: what was recorded, one for each prompt with a picture.
        first: ``(prompts, layers examined, hidden)``, the first tokens of all prompts, with and without a picture.
    """
    # First criterion: the first token, in prompts with and without a picture alike.
    flagged = (sink_score(first, dims) >= tau).float().mean(-1) >= LEAST_VISUAL_LAYERS
    share = float(flagged.float().mean())
    # Second criterion: the share of sinks among the tokens of all pictures together, layer by layer.
    visual = torch.stack([(look.scores[:, look.image] >= tau).double().sum(-1) for look in looks]).sum(0)
    visual /= sum(int(look.image.sum()) for look in looks)
    low, high = VISUAL_SHARE
    fitting = float(((visual >= low) & (visual <= high)).double().mean())
    # Third criterion: whether these tokens draw attention at all, which a massive activation alone does not show.
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
    """Returns the mean attention to a visual sink over that to another visual token; None without a visual sink."""
    on_sinks, on_others, sinks, others = 0.0, 0.0, 0, 0
    for look in looks:
        drained = (look.scores >= tau) & look.image
        clear = ~drained & look.image
        # How much attention the picture gets differs from layer to layer. A layer therefore counts on both sides or on
        # neither: otherwise the ratio would compare sinks of some layers with other tokens of different ones.
        both = drained.any(-1, keepdim=True) & clear.any(-1, keepdim=True)
        drained, clear = drained & both, clear & both
        on_sinks += float((look.attention * drained).sum())
        on_others += float((look.attention * clear).sum())
        sinks += int(drained.sum())
        others += int(clear.sum())
    if not sinks:
        return None
    # The other tokens may get no attention at all, for which the ratio is huge and still finite.
    return (on_sinks / sinks) / max(on_others / others, 1e-30)


def middle_window(mass: Sequence[float], layers: range) -> tuple[int, int]:
    """Returns the first and the last of the layers around the peak of visual attention that hold at least half of it.

    Args:
        mass: for every layer of the model, the attention that the picture gets.
        layers: the layers among which peak and window are looked for.
    """
    peak = max(layers, key=lambda layer: mass[layer])
    first = last = peak
    while first - 1 in layers and mass[first - 1] >= mass[peak] / 2:
        first -= 1
    while last + 1 in layers and mass[last + 1] >= mass[peak] / 2:
        last += 1
    return first, last
