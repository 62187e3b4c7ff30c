"""VAR: visual attention redistribution, which moves attention from sinks to the rest of the picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from keepsight.attention_mods.layers import chosen_layers
from keepsight.calibration.file import Calibration, model_name
from keepsight.errors import InvalidParameter, NeedsCalibration
from keepsight.method import Method, parameter
from keepsight.parts import Edit, HookContext

if TYPE_CHECKING:
    from typing_extensions import Self

    from keepsight.target import Target

PUBLISHED = {
    "llava-hf/llava-1.5-7b-hf": (4096, (1415, 2533)),
    "liuhaotian/llava-v1.5-7b": (4096, (1415, 2533)),
    "llava-hf/llava-1.5-13b-hf": (5120, (2100, 4743)),
    "liuhaotian/llava-v1.5-13b": (5120, (2100, 4743)),
    "Qwen/Qwen2-VL-7B-Instruct": (3584, (458, 2570)),
    "OpenGVLab/InternVL2-8B": (4096, (3584,)),
}
"""The width and the sink dimensions that were published for each checkpoint. They hold for no other checkpoint."""
PUBLISHED_TAU, PUBLISHED_WIDTH = 20.0, 4096
"""The published threshold of the sink score, and the width of the model that it was published for."""


def sink_score(hidden: Tensor, dims: Tensor | tuple[int, ...]) -> Tensor:
    """Returns φ, the largest ``|x_d| / rms(x)`` over the sink dimensions, without the norm's weight.

    φ is at most √hidden, which it reaches where one entry holds all of a vector's length.

    Args:
        hidden: ``(…, hidden)``, vectors of the residual stream.
        dims: the sink dimensions.

    Returns:
        ``(…)``, in float32.
    """
    x = hidden.float()
    # The small constant keeps the score of a vector of zeros finite.
    scale = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    return (x[..., list(dims)] * scale).abs().amax(-1)


def scaled_tau(width: int) -> float:
    """Returns the published threshold, 20 at width 4096, for another width: the same share of a vector's energy."""
    # Scores grow with √width: an entry that holds a given share of the
    # squared length has a score of the share's root times √width.
    return PUBLISHED_TAU * math.sqrt(width / PUBLISHED_WIDTH)


def image_centric(
    probs: Tensor,
    image: Tensor,
    sinks: Tensor,
    *,
    ratio: float,
    mass: float,
    visual_sink: Tensor | None = None,
) -> Tensor:
    """Returns the heads and rows that redistribution acts on, ``(batch, heads, rows)`` bool.

    These have at least ``mass`` of their attention on the picture, and at least ``ratio`` of that on columns that are no
    sinks. Without a visual sink there are none, nor where no attention is on other columns of the picture.

    Args:
        probs: ``(batch, heads, rows, keys)`` float32, rows summing to 1.
        image: ``(batch, keys)`` bool, the columns of the picture.
        sinks: ``(batch, keys)`` bool, the sinks of text and picture.
        ratio, mass: the two thresholds, in [0, 1].
        visual_sink: ``(batch,)`` bool, whether the picture has a sink at all; default: whether it has one among ``keys``.
    """
    picture, clear = image[:, None, None], (image & ~sinks)[:, None, None]
    on_picture, on_clear = (probs * picture).sum(-1), (probs * clear).sum(-1)
    has_visual_sink = ((image & sinks).any(-1) if visual_sink is None else visual_sink)[:, None, None]
    # Where no attention is on other columns of the picture there is nothing
    # in proportion to which it could be given, even at ratio 0.
    return (on_picture >= mass) & (on_clear >= ratio * on_picture) & (on_clear > 0) & has_visual_sink


def redistribute(
    probs: Tensor,
    image: Tensor,
    sinks: Tensor,
    *,
    fraction: float,
    ratio: float,
    mass: float,
    visual_sink: Tensor | None = None,
) -> Tensor:
    """Take ``fraction`` from every sink and give it to the picture's other columns, in proportion to what they have.

    Only rows of image-centric heads change, as ``image_centric`` finds them.

    Args:
        probs: ``(batch, heads, rows, keys)``, rows summing to 1.
        image: ``(batch, keys)`` bool, the columns of the picture.
        sinks: ``(batch, keys)`` bool, the sinks of text and picture.
        fraction: the share that is taken from sinks, in [0, 1].
        ratio, mass: the thresholds of ``image_centric``, in [0, 1].
        visual_sink: see ``image_centric``.

    Returns:
        New probabilities of the same shape, with rows that still sum to 1.
    """
    drained, clear = sinks[:, None, None], (image & ~sinks)[:, None, None]
    selected = image_centric(probs, image, sinks, ratio=ratio, mass=mass, visual_sink=visual_sink)[..., None]
    on_clear = (probs * clear).sum(-1, keepdim=True)
    budget = fraction * (probs * drained).sum(-1, keepdim=True)
    # The bound only avoids a division by 0 in rows that are not selected, and whose result is thrown away.
    share = probs / on_clear.clamp(min=1e-30)
    moved = probs - fraction * probs * drained + budget * share * clear
    return moved.where(selected, probs)


class Redistribute(Edit):
    """Finds each layer's sinks while the prompt is read, and redistributes in the rows after the picture.

    Args:
        method: the recipe, with its thresholds.
        layers: numbers of the edited layers.
        dims: the sink dimensions.
        tau: the threshold of the sink score.
    """

    def __init__(self, method: VAR, layers: frozenset[int], dims: tuple[int, ...], tau: float) -> None:
        self.method, self.layers, self.dims, self.tau = method, layers, dims, tau
        self.sinks: dict[int, Tensor] = {}

    def resid_pre(self, hidden: Tensor, context: HookContext) -> None:
        here = min(context.first + context.rows, context.prompt)
        # Generated tokens never become sinks. The prompt may come in several chunks, each of which fills in its part.
        if context.first >= context.prompt:
            return
        found = self.sinks.setdefault(context.layer, context.image.new_zeros(context.image.shape))
        if found.shape != context.image.shape:
            found = self.sinks[context.layer] = context.image.new_zeros(context.image.shape)
        found[:, context.first : here] = sink_score(hidden[:, : here - context.first], self.dims) >= self.tau

    def rows(self, context: HookContext) -> Tensor:
        columns = context.row_numbers()
        width = context.image.shape[1]
        # ``argmax`` finds the first True, which in the reversed mask is the
        # last token of the picture. Rows of a batch differ in it.
        end = width - 1 - context.image.flip(-1).int().argmax(-1)
        return columns[None] > end[:, None]

    def attn_pattern(self, pattern: Tensor, image: Tensor, context: HookContext) -> Tensor:
        keys = pattern.shape[-1]
        # The context knows how columns of the prompt map to keys, with a sliding
        # window as well; here it maps sinks instead of the picture.
        found = self.sinks[context.layer]
        sinks = replace(context, image=found).image_columns(keys, max(context.first + context.rows - keys, 0))
        chosen = self.method
        return redistribute(
            pattern,
            image,
            sinks,
            fraction=chosen.fraction,
            ratio=chosen.ratio,
            mass=chosen.mass,
            # Of the whole prompt: a sliding window with a cache hands over fewer columns than one without
            visual_sink=(context.image & found).any(-1),
        )


@dataclass(frozen=True, kw_only=True)
class VAR(Method):
    """Visual Attention Redistribution (Kang et al., ICLR 2025, arXiv 2503.03321; official code seilk/VisAttnSink).

    Some tokens draw attention whatever is asked. These sinks are recognised by massive values in a few dimensions of the
    residual stream (``sink_score`` at least ``tau``). In heads that look at the picture, for text after it::

        Ω = fraction · Σ_sinks A        A_sink ← (1 − fraction) · A_sink
        A_j ← A_j + Ω · A_j / Σ A       over the picture's columns j that are no sinks

    A head counts as looking at the picture, row by row, if at least ``mass`` of its attention is there and at least
    ``ratio`` of that is on columns that are no sinks. Sinks are found once, in the prompt; generated tokens never
    become sinks. Several pictures in a prompt count as one, with the columns of all of them: "after it" is after the last.

    Args:
        fraction: the share of attention taken from sinks, in [0, 1]; 0 is off. The paper uses p = 0.6. The code multiplies
            sinks by its p, so its shipped 0.6 is ``fraction=0.4`` here; which of the two gave the published figures is
            not known.
        ratio: the least share of a head's attention to the picture that is not on sinks, in [0, 1]. The paper uses ρ = 0.5
            for hallucination and 0.8 in general. The code's ρ is one minus this.
        mass: the least attention of a head to the picture, in [0, 1]. The code uses 0.2.
        tau: the threshold of the sink score. The default is the calibration's, else 20 · √(width / 4096), which is the
            published 20 at its width. It cannot exceed √width.
        dims: the sink dimensions. The default is the calibration's, else the published ones of a few checkpoints.
        calibration: a file written by ``keepsight calibrate`` for this very checkpoint.
        layers: the layers acted on. The default, as in the paper, is 2 to the last but one.

    Departs from the released code, not from the paper: the last layer stays as it is; sinks are found anew for every
    picture; rows of the picture are never edited. The code differs from the paper in all three by mistake. Each row of a
    batch has its own sinks.

    Cost: no extra forward pass. Rows after the picture are recomputed with explicit weights, all others stay with the
        fast kernel.

    Raises:
        NeedsCalibration: no sink dimensions are known for this checkpoint.
        CalibrationMismatch: the calibration was made for another model.
        BadCalibration: the file is missing, or is no calibration.
        UnsupportedModel: the attention cannot be replaced at run time; the model sees the picture by cross-attention;
            or the calibration found no sinks.
        NoImageTokens: the prompt holds no picture.
    """

    paper: ClassVar[str] = "2503.03321"
    year: ClassVar[int] = 2025
    title: ClassVar[str] = "See What You Are Told: Visual Attention Sink in Large Multimodal Models"
    gist: ClassVar[str] = "moves attention from sinks to the rest of the picture, in heads that look at it"
    cost: ClassVar[str] = "no extra forward; explicit weights for rows after the picture"

    # Random weights have no sinks of their own: a low threshold on one dimension makes about half of the tokens sinks.
    visible: ClassVar[Mapping[str, Any]] = {
        "fraction": 1.0, "ratio": 0.0, "mass": 0.0, "tau": 0.6, "dims": (5,), "layers": (0, 1),
    }  # fmt: skip
    negligible: ClassVar[Mapping[str, Any]] = {"fraction": 1e-12, "ratio": 0.0, "mass": 0.0}

    fraction: float = parameter(0.6, "share of attention taken from sinks; 0 is off", low=0, high=1)
    ratio: float = parameter(0.5, "least share of a head's visual attention off the sinks", low=0, high=1)
    mass: float = parameter(0.2, "least attention of a head to the picture", low=0, high=1)
    tau: float | None = parameter(
        None, "threshold of the sink score; default: 20 at width 4096, scaled", low=0
    )
    dims: tuple[int, ...] | None = parameter(None, "sink dimensions; published for a few checkpoints")
    layers: tuple[int, ...] | None = parameter(None, "layers acted on; default: 2 to the last but one")
    calibration: str | None = parameter(None, "file written by keepsight calibrate", operator_only=True)

    def off(self) -> Self:
        return replace(self, fraction=0.0)

    def refusal(self, target: Target) -> str | None:
        return target.why_no_image_columns() if self.fraction > 0 else None

    def parts(self, target: Target) -> Iterator[Redistribute]:
        if self.fraction == 0:
            return
        count = len(target.layers)
        layers = chosen_layers("var", target, self.layers, range(min(2, count), count - 1), in_attention=True)
        dims, tau = self.constants(target, target.hidden_size)
        yield Redistribute(self, layers, dims, tau)

    def constants(self, target: Target, width: int) -> tuple[tuple[int, ...], float]:
        """Returns the sink dimensions and the threshold: as given, else as calibrated, else as published.

        Args:
            target: the model and its inputs.
            width: the width of the residual stream.

        Raises:
            InvalidParameter: a given dimension does not exist.
            NeedsCalibration, CalibrationMismatch, BadCalibration, UnsupportedModel: as for the class.
        """
        dims, tau = self.dims, self.tau
        if dims is not None and (not dims or min(dims) < 0 or max(dims) >= width):
            raise InvalidParameter(f"var: dims={dims!r} must lie between 0 and {width - 1}")
        if self.calibration is not None and (dims is None or tau is None):
            found = Calibration.load(self.calibration).sinks(target)
            dims, tau = dims or found[0], found[1] if tau is None else tau
        if dims is None:
            known = PUBLISHED.get(target.model.config._name_or_path)
            # A published dimension is the number of an entry in vectors of the published width, and
            # means nothing in a model of another width that goes by the same name.
            if known is None or known[0] != width:
                raise NeedsCalibration(
                    f"var: no sink dimensions are published for {model_name(target.model)}:"
                    " give them as dims, or the file that `keepsight calibrate` writes as calibration"
                )
            dims = known[1]
        return dims, scaled_tau(width) if tau is None else tau
