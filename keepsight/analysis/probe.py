"""``probe``: calibrates a model by observing it while it reads prompts with and without their picture."""

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
    """Records the residual stream at position 0 as it enters each layer."""

    def __init__(self, layers: range) -> None:
        self.layers = frozenset(layers)
        self.seen: dict[int, Tensor] = {}

    def resid_pre(self, hidden: Tensor, context: HookContext) -> None:
        self.seen[context.layer] = hidden[0, 0].float().cpu()

    def stacked(self) -> Tensor:
        """``(layers, hidden)``."""
        return torch.stack([self.seen[layer] for layer in sorted(self.seen)])


class Columns(Edit):
    """Records every token's sink score, and how much attention it gets from the rows after the picture."""

    def __init__(self, count: int, examined: range, dims: tuple[int, ...]) -> None:
        self.layers = frozenset(range(count))
        self.examined, self.dims = examined, dims
        self.marks: dict[int, Tensor] = {}
        self.attention: dict[int, Tensor] = {}

    def resid_pre(self, hidden: Tensor, context: HookContext) -> None:
        if self.dims and context.layer in self.examined:
            self.marks[context.layer] = sink_score(hidden[0], self.dims).cpu()

    def rows(self, context: HookContext) -> Tensor:
        end = int(context.image[0].nonzero().max())
        return (context.row_numbers() > end)[None]

    def attn_pattern(self, probs: Tensor, image: Tensor, context: HookContext) -> Tensor:
        self.attention[context.layer] = probs[0, :, :, : context.prompt].mean((0, 1)).cpu()
        return probs


class _Heads:
    """Collects the divergence of every head picture by picture, and on which pictures VHR's rule chooses the head."""

    def __init__(self) -> None:
        self.divergence: dict[int, list[Tensor]] = {}
        self.chosen: dict[int, list[Tensor]] = {}

    def add(self, with_image: dict[int, Tensor], text_only: dict[int, Tensor]) -> None:
        for layer, heard in with_image.items():
            moved = divergence(heard[0], text_only[layer][0])
            self.divergence.setdefault(layer, []).append(moved.cpu())
            chosen = select(clean(moved, text_only[layer][0]))
            self.chosen.setdefault(layer, []).append(chosen.float().cpu())

    @staticmethod
    def means(collected: dict[int, list[Tensor]]) -> tuple[tuple[float, ...], ...]:
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
        prompts: what the model's processor returned for each picture alone, unpadded, on the model's device.
        prompt: the question in them, for the record.
        advance: called with 1 after each prompt, twice for each.

    Raises:
        InputError: no prompts; a prompt that is padded, a batch, or without text after its picture.
        UnsupportedModel: the picture is reached by cross-attention, or the attention cannot be observed.
    """
    if not prompts:
        raise InputError("calibration needs at least one picture")
    targets = [Target(model, inputs) for inputs in prompts]
    for target in targets:
        _check(target)
    count = len(targets[0].layers)
    examined = examined_layers(count)
    first, heads = _first_pass(targets, examined, advance)
    dims = sink_dims(first)
    seen = []
    for target in targets:
        columns = Columns(count, examined, dims)
        with editing(target, columns):
            _read(target.model, target.model_inputs)
        seen.append(columns)
        advance(1)
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
    target.check_image_in_context("var")
    if target.batch != 1 or not bool((target.attention_mask != 0).all()):
        raise InputError("calibration reads one unpadded prompt at a time: prepare the pictures one by one")
    if bool(target.image_mask[0, -1]):
        raise InputError("calibration needs a question after the picture: the prompt ends with it")


@torch.no_grad()
def _read(model: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
    """One pass over a prompt, as generation begins."""
    Branch(model, inputs, edited=True)(inputs["input_ids"][:, :0])


def _first_pass(
    targets: Sequence[Target], examined: range, advance: Callable[[int], None]
) -> tuple[Tensor, _Heads]:
    """First tokens ``(prompts, layers examined, hidden)`` of prompts with and without picture; head divergences."""
    every = frozenset(range(len(targets[0].layers)))
    firsts, heads = [], _Heads()
    texts: dict[tuple[int, ...], tuple[Tensor, dict[int, Tensor]]] = {}
    for target in targets:
        start, listen = FirstToken(examined), RecordHeads(every)
        with editing(target, start, listen):
            _read(target.model, target.model_inputs)
            text = target.without_image()
            key = tuple(text["input_ids"][0].tolist())
            if key not in texts:
                text_start, text_listen = FirstToken(examined), RecordHeads(every)
                with isolated_edits(target.model, text_start, text_listen):
                    _read(target.model, text)
                texts[key] = text_start.stacked(), text_listen.seen
        firsts += [start.stacked(), texts[key][0]]
        heads.add(listen.seen, texts[key][1])
        advance(1)
    return torch.stack(firsts), heads


def _curves(targets: Sequence[Target], seen: Sequence[Columns]) -> dict[str, tuple[float, ...]]:
    """By layer, means over pictures: attention to the picture, to the first token, and the picture's peak over its mean."""
    mass, start, peak = [], [], []
    for target, columns in zip(targets, seen, strict=True):
        image = target.image_mask[0].cpu()
        attention = torch.stack([columns.attention[layer] for layer in sorted(columns.attention)])
        picture = attention[:, image]
        mass.append(picture.sum(-1))
        start.append(attention[:, 0])
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
    """The fields of ``Calibration`` that are about sinks."""
    width = first.shape[-1]
    energy, outlier = (values.median(0).values for values in massive(first))
    curves = _curves(targets, seen)
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
    """Every float in ``value`` rounded to six digits: more than is measured reliably, and short enough to read in a file."""
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_short, value))
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _describe(target: Target, prompt: str, images: int) -> Calibration:
    """What is known before anything is measured."""
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
