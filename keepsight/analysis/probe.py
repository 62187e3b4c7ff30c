"""``probe`` calibrates a model by observing it while it reads prompts with and without their picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from keepsight.analysis.attention_sinks import (
    LEAST_ENERGY,
    LEAST_LAYERS,
    LEAST_OUTLIER,
    Look,
    examined_layers,
    judge,
    massive,
    middle_window,
    sink_dims,
    threshold,
)
from keepsight.attention_mods.var import sink_score
from keepsight.attention_mods.vhr import RecordHeads, clean, divergence, select
from keepsight.calibration.file import Calibration, fingerprint, model_name
from keepsight.engines.hf.branch import Branch
from keepsight.engines.hf.edit_state import isolated_edits
from keepsight.engines.hf.patching import editing
from keepsight.errors import InputError, UnsupportedModel
from keepsight.parts import Edit, HookContext
from keepsight.target import Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FirstToken(Edit):
    """Records the residual stream at position 0 as it enters each layer, on the CPU in float32."""

    def __init__(self, layers: range) -> None:
        self.layers = frozenset(layers)
        self.seen: dict[int, Tensor] = {}

    def resid_pre(self, hidden: Tensor, context: HookContext) -> None:
        # Calibration reads one unpadded prompt at a time (see ``_check``), so row 0, position 0 is its first token.
        self.seen[context.layer] = hidden[0, 0].float().cpu()

    def stacked(self) -> Tensor:
        """Returns what was recorded, ``(layers, hidden)``, in the order of the layers."""
        return torch.stack([self.seen[layer] for layer in sorted(self.seen)])


class Columns(Edit):
    """Records every token's sink score, and how much attention the token gets from the rows after the picture.

    Args:
        count: the number of decoder layers, in all of which attention is recorded.
        examined: the layers in which sink scores are recorded.
        dims: the sink dimensions; without any, no score is recorded.
    """

    def __init__(self, count: int, examined: range, dims: tuple[int, ...]) -> None:
        self.layers = frozenset(range(count))
        self.examined, self.dims = examined, dims
        self.marks: dict[int, Tensor] = {}
        self.attention: dict[int, Tensor] = {}

    def resid_pre(self, hidden: Tensor, context: HookContext) -> None:
        if self.dims and context.layer in self.examined:
            self.marks[context.layer] = sink_score(hidden[0], self.dims).cpu()

    def rows(self, context: HookContext) -> Tensor:
        # Only tokens after the picture can look at all of it, and they alone are text that the picture may inform.
        end = int(context.image[0].nonzero().max())
        return (context.row_numbers() > end)[None]

    def attn_pattern(self, probs: Tensor, image: Tensor, context: HookContext) -> Tensor:
        # Only the mean is kept: the weights themselves take heads · rows · keys numbers in every layer.
        self.attention[context.layer] = probs[0, :, :, : context.prompt].mean((0, 1)).cpu()
        return probs


class _Heads:
    """Collects the divergence of every head for each picture, and whether VHR's rule chooses the head there."""

    def __init__(self) -> None:
        self.divergence: dict[int, list[Tensor]] = {}
        self.chosen: dict[int, list[Tensor]] = {}

    def add(self, with_image: dict[int, Tensor], text_only: dict[int, Tensor]) -> None:
        """Take in the head outputs ``(1, heads, dim)`` of one prompt, by layer, with its picture and without."""
        for layer, heard in with_image.items():
            moved = divergence(heard[0], text_only[layer][0])
            # The divergence is recorded as it was measured; only the
            # choice of heads sets outliers to 0 first, as VHR does.
            self.divergence.setdefault(layer, []).append(moved.cpu())
            chosen = select(clean(moved, text_only[layer][0]))
            self.chosen.setdefault(layer, []).append(chosen.float().cpu())

    @staticmethod
    def means(collected: dict[int, list[Tensor]]) -> tuple[tuple[float, ...], ...]:
        """Returns the means over pictures, by layer and head."""
        return tuple(tuple(torch.stack(collected[layer]).mean(0).tolist()) for layer in sorted(collected))


def probe(
    model: PreTrainedModel,
    prompts: Sequence[Mapping[str, Any]],
    *,
    prompt: str,
    advance: Callable[[int], None] = lambda done: None,
) -> Calibration:
    """Calibrate a model on prompts with one picture each.

    *Cost*: three forward passes for each prompt: with the picture, without it (once for equal texts), and with it again when
    the sink dimensions are known. The model is left as it was.

    Args:
        model: an image-text-to-text model of transformers.
        prompts: what the model's processor returned for each picture alone, unpadded, on the model's device.
        prompt: the question in them, which is recorded in the calibration.
        advance: called with 1 after each of the two rounds over a prompt, so twice for each prompt.

    Raises:
        InputError: there are no prompts, or one of them is padded, is a batch, or has no text after its picture.
        UnsupportedModel: the picture is reached by cross-attention, or the attention cannot be observed.
    """
    if not prompts:
        raise InputError("calibration needs at least one picture")
    # All prompts are checked before the first pass, so a bad one costs no time.
    targets = [Target(model, inputs) for inputs in prompts]
    for target in targets:
        _check(target)
    count = len(targets[0].layers)
    examined = examined_layers(count)
    first, heads = _first_pass(targets, examined, advance)
    # Sink dimensions are a property of all prompts together. The scores of tokens need them, so a
    # second round over the pictures is unavoidable unless all residual streams were kept.
    dims = sink_dims(first)
    seen = []
    for target in targets:
        columns = Columns(count, examined, dims)
        with editing(target, columns):
            _read(target.model, target.model_inputs)
        seen.append(columns)
        advance(1)
    # A layer without softmax attention (linear attention, for example) records nothing.
    if missing := set(range(count)) - (seen[0].attention.keys() & heads.divergence.keys()):
        raise UnsupportedModel(
            f"{targets[0].name}: layer {min(missing)} has no attention that can be observed"
        )
    curves = _curves(targets, seen)
    found = {
        **_find_sinks(targets, seen, first, dims, examined),
        "divergence": heads.means(heads.divergence),
        "chosen": heads.means(heads.chosen),
        "visual_mass": curves["visual_mass"],
        "window": middle_window(curves["visual_mass"], examined),
    }
    return replace(_describe(targets[0], prompt, len(targets)), **_short(found))


def _check(target: Target) -> None:
    """Raises ``InputError`` or ``UnsupportedModel`` where a prompt cannot be calibrated on."""
    target.check_image_in_context("var")
    # Padding would move the first token away from position 0, where sinks are looked for.
    if target.batch != 1 or not bool((target.attention_mask != 0).all()):
        raise InputError("calibration reads one unpadded prompt at a time: prepare the pictures one by one")
    # Every figure about attention to the picture is taken from the text that follows it.
    if bool(target.image_mask[0, -1]):
        raise InputError("calibration needs a question after the picture: the prompt ends with it")


@torch.no_grad()
def _read(model: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
    """Run one pass over a prompt, prepared as ``generate`` prepares its first one."""
    # A branch that runs under the edits of the block is used for the sake of the model's own preparation of inputs, and
    # since it puts Qwen's ``rope_deltas`` back. After no generated token, the pass over the prompt is all that it does.
    Branch(model, inputs, edited=True)(inputs["input_ids"][:, :0])


def _first_pass(
    targets: Sequence[Target], examined: range, advance: Callable[[int], None]
) -> tuple[Tensor, _Heads]:
    """Returns the first tokens ``(prompts, layers examined, hidden)`` of prompts with and without their pictures, and the
    divergences of heads."""
    every = frozenset(range(len(targets[0].layers)))
    firsts, heads = [], _Heads()
    texts: dict[tuple[int, ...], tuple[Tensor, dict[int, Tensor]]] = {}
    for target in targets:
        start, listen = FirstToken(examined), RecordHeads(every)
        with editing(target, start, listen):
            _read(target.model, target.model_inputs)
            text = target.without_image()
            # Without their pictures all prompts are usually the same text, which is read once.
            key = tuple(text["input_ids"][0].tolist())
            if key not in texts:
                text_start, text_listen = FirstToken(examined), RecordHeads(every)
                # The edits of the outer block are set aside for this pass, so
                # they do not record the prompt without its picture.
                with isolated_edits(target.model, text_start, text_listen):
                    _read(target.model, text)
                texts[key] = text_start.stacked(), text_listen.seen
        # The first token of the text counts once for every picture, so
        # prompts with and without a picture weigh the same.
        firsts += [start.stacked(), texts[key][0]]
        heads.add(listen.seen, texts[key][1])
        advance(1)
    return torch.stack(firsts), heads


def _curves(targets: Sequence[Target], seen: Sequence[Columns]) -> dict[str, tuple[float, ...]]:
    """Returns curves over layers, as means over pictures: the attention to the picture, that to the first token, and the
    attention to the picture's most attended token over that to its average token."""
    mass, start, peak = [], [], []
    for target, columns in zip(targets, seen, strict=True):
        image = target.image_mask[0].cpu()
        attention = torch.stack([columns.attention[layer] for layer in sorted(columns.attention)])
        picture = attention[:, image]
        mass.append(picture.sum(-1))
        start.append(attention[:, 0])
        # A layer may give the picture no attention at all, in which case the peak is 0 as well.
        peak.append(picture.amax(-1) / picture.mean(-1).clamp(min=1e-30))
    named = {"visual_mass": mass, "first_token_mass": start, "visual_peak": peak}
    return {name: tuple(torch.stack(values).mean(0).tolist()) for name, values in named.items()}


def _find_sinks(
    targets: Sequence[Target],
    seen: Sequence[Columns],
    first: Tensor,
    dims: tuple[int, ...],
    examined: range,
) -> dict[str, Any]:
    """Returns the fields of ``Calibration`` that are about sinks."""
    width = first.shape[-1]
    energy, outlier = (values.median(0).values for values in massive(first))
    curves = _curves(targets, seen)
    # The evidence is recorded whatever the verdict is, so a refusal can be understood from the file alone.
    evidence: dict[str, Any] = {
        "layers_examined": list(examined),
        "largest_energy": float(energy.max()),
        "largest_energy_dim": int(energy.amax(0).argmax()),
        "least_energy": LEAST_ENERGY * width**0.5,
        "largest_outlier": float(outlier.max()),
        "least_outlier": LEAST_OUTLIER,
        "first_token_mass": list(curves["first_token_mass"]),
        "visual_peak": list(curves["visual_peak"]),
    }
    # Without a massive dimension there is no score, and so nothing to find a threshold for or to test.
    if not dims:
        reason = (
            f"the first token has no massive activation: its largest value is {evidence['largest_energy']:.1f} times its"
            f" rms and {evidence['largest_outlier']:.0f} times its median, where a sink's is at least"
            f" {evidence['least_energy']:.1f} and {LEAST_OUTLIER:.0f} times, in {LEAST_LAYERS:.0%} of the layers"
        )
        return {"supported": False, "reasons": (reason,), "dims": (), "tau": None, "evidence": evidence}
    looks = [
        Look(
            torch.stack([columns.marks[layer] for layer in examined]),
            torch.stack([columns.attention[layer] for layer in examined]),
            target.image_mask[0].cpu(),
        )
        for target, columns in zip(targets, seen, strict=True)
    ]
    found = threshold(torch.cat([look.scores.flatten() for look in looks]), width)
    verdict = judge(looks, first, dims, found.tau)
    evidence |= {
        "gap": None if found.below is None else [found.below, found.above],
        "first_token_flagged": verdict.first,
        "visual_flagged": list(verdict.visual),
        "attention_ratio": verdict.attention,
    }
    return {
        "supported": not verdict.reasons,
        "reasons": verdict.reasons,
        "dims": dims,
        "tau": found.tau,
        "evidence": evidence,
    }


def _short(value: Any) -> Any:
    """Returns ``value`` with every float in it rounded to six significant digits: that is more than can be measured
    reliably, and short enough to be read in a file."""
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_short, value))
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _describe(target: Target, prompt: str, images: int) -> Calibration:
    """Returns a calibration that holds what is known before anything is measured."""
    import platform

    import transformers

    from keepsight import __version__

    config = target.text_config
    return Calibration(
        model=model_name(target.model),
        model_class=target.name,
        revision=getattr(target.model.config, "_commit_hash", None),
        fingerprint=_short(fingerprint(target)),
        hidden_size=int(config.hidden_size),
        layers=len(target.layers),
        heads=int(config.num_attention_heads),
        images=images,
        prompt=prompt,
        # The fields from here to ``window`` are placeholders, all of which ``probe`` replaces.
        supported=False,
        reasons=(),
        dims=(),
        tau=None,
        evidence={},
        divergence=(),
        chosen=(),
        visual_mass=(),
        window=(0, 0),
        versions={
            "keepsight": __version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    )
