"""Ways to generate that are compared: plain, a method's branches, and the peers that others have published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.cache_utils import DynamicCache
from transformers.utils import ModelOutput

from keepsight.api import attached
from keepsight.engines.hf.branch import branches_of
from keepsight.engines.hf.contrast_processor import ContrastProcessor
from keepsight.engines.hf.edit_state import isolated_edits
from keepsight.engines.hf.fused_pass import why_not_fused
from keepsight.engines.hf.patching import preserving_rope_deltas, text_attention
from keepsight.errors import InputError
from keepsight.parts import Contrast
from keepsight.registry import parse_all
from keepsight.target import IMAGE_KEYS, Target, cache_name

Kind = Literal["plain", "fused", "separate", "edit", "naive", "cfg", "eager", "static", "compiled"]
CACHES = ("dynamic", "static", "compiled")
PEERS = ("naive", "cfg", "eager", "static", "compiled")
METHODS = (
    "vcd",
    "m3id",
    "pai",
    "pai:gamma=1.0",
    "vhr",
    "vsv",
    "sla",
    "var:ratio=0.0,mass=0.0,tau=0.5,dims=0/1",
)
"""What is measured unless asked otherwise. VAR is set so that every head redistributes, its worst case."""
GUIDANCE = 1.1
"""Of transformers' own processor: PAI's default, so that the two compute the same."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to generate.

    Args:
        kind: ``plain`` · a method with its second opinion ``fused`` or ``separate`` · ``edit``, a method without one ·
            the peers: ``naive`` (a method with a full second forward after the first, as published code runs it), ``cfg``
            (transformers' UnbatchedClassifierFreeGuidanceLogitsProcessor on the prompt without its picture), ``eager``
            (plain, with eager attention that returns its weights) and plain with a ``static`` cache, or ``compiled`` too.
        method: spec string; empty for peers without a method.
    """

    kind: Kind
    method: str = ""

    @property
    def name(self) -> str:
        """How tables call it."""
        return self.method or {"cfg": "guidance_scale of transformers", "eager": "eager attention"}.get(
            self.kind, f"{self.kind} cache"
        )

    @property
    def fused(self) -> bool | None:
        """Whether the second opinion shares the passes; None where there is none."""
        return {"fused": True, "separate": False, "naive": False, "cfg": False}.get(self.kind)


PLAIN = Way(kind="plain")


def plan(
    model: Any,
    inputs: Mapping[str, Any],
    specs: list[str],
    *,
    fused: str = "auto",
    peers: tuple[str, ...] = (),
) -> tuple[list[Way], list[str]]:
    """The ways to measure for some methods, and notes on what is left out, and why.

    Args:
        fused: ``auto`` measures a second opinion fused, where that is possible, and apart; ``on`` or ``off`` one of them.
        peers: of ``PEERS``.

    Raises:
        UnsupportedModel: a method does not run on the model, or ``on`` and it cannot be fused.
    """
    ways: list[Way] = []
    notes: list[str] = []
    text_only: str | None = None
    for spec in specs:
        target = Target(model, inputs, fused=False)
        with ExitStack() as stack:
            processors = [
                one for method in parse_all(spec) for one in stack.enter_context(method.attach(target))
            ]
            contrasts = sum(isinstance(processor, ContrastProcessor) for processor in processors)
        if not contrasts:
            ways.append(Way(kind="edit", method=spec))
            continue
        if not IMAGE_KEYS & branches_of(target)[0].inputs.keys():
            text_only = text_only or spec
        if "naive" in peers and contrasts == 1:
            ways.append(Way(kind="naive", method=spec))
        elif "naive" in peers:
            notes.append(f"{spec}: no naive row, since published code contrasts with one amateur only")
        if fused != "on":
            ways.append(Way(kind="separate", method=spec))
        if fused == "off":
            continue
        reason = why_not_fused(target)
        if reason is None or fused == "on":
            ways.append(Way(kind="fused", method=spec))  # where it is impossible, opening it says so
        else:
            notes.append(f"{spec}: not fused, {reason}")
    if "cfg" in peers:
        if text_only:
            ways.append(Way(kind="cfg"))
        else:
            notes.append("no row for guidance_scale: none of the methods contrasts with the text alone")
    ways += [Way(kind=kind) for kind in ("eager", "static", "compiled") if kind in peers]
    return ways, notes


def cache_options(cache: str) -> dict[str, Any]:
    """What ``generate`` is told for one of ``CACHES``; ``compiled`` is a static cache whose decoding steps are compiled."""
    if cache == "dynamic":
        return {}
    if cache == "static":
        return {"cache_implementation": "static", "disable_compile": True}
    from transformers import CompileConfig

    config = CompileConfig()
    config._compile_all_devices = True  # type: ignore[assignment]  # on the CPU transformers does not compile by itself
    return {"cache_implementation": "static", "compile_config": config}


@contextmanager
def opened(
    model: Any, inputs: Mapping[str, Any], way: Way, cache: str = "dynamic"
) -> Iterator[dict[str, Any]]:
    """The way in place; yields what ``generate`` needs besides the inputs.

    Raises:
        InputError: a method that edits the model, under ``compiled``.
    """
    if way.kind in ("static", "compiled"):
        yield cache_options(way.kind)
        return
    options = cache_options(cache)
    with ExitStack() as stack:
        if way.kind == "eager":
            stack.enter_context(text_attention(model, "eager"))
            shown = ("output_attentions", "output_hidden_states", "return_dict_in_generate")
            options |= dict.fromkeys(shown, True)
        elif way.kind == "cfg":
            options["logits_processor"] = [_guidance(model, inputs)]
        elif way.kind == "naive":
            target = Target(model, inputs, fused=False)
            processors = [
                one for method in parse_all(way.method) for one in stack.enter_context(method.attach(target))
            ]
            options["logits_processor"] = [
                Naive(model, processor.contrast, branches_of(target)[0].inputs)
                if isinstance(processor, ContrastProcessor)
                else processor
                for processor in processors
            ]
        elif way.kind != "plain":
            fused = way.kind == "fused"
            if cache == "compiled" and way.kind == "edit":
                raise InputError(
                    f"--cache compiled: {way.method} edits the inside of the model, of which a compiled step knows"
                    " nothing; use dynamic or static"
                )
            if cache == "compiled" and fused:
                raise InputError("--cache compiled: a compiled step shares no passes; use --fused off")
            options["logits_processor"] = stack.enter_context(
                attached(model, inputs, way.method, fused=fused)
            )
        yield options


class Naive(LogitsProcessor):
    """The loop of published code: after each forward a second full one, with a cache of its own.

    It runs at every step whether it matters or not, and prepares its inputs as ``generate`` does. For searches in which
    rows stay where they are: greedy and sampling.
    """

    def __init__(self, model: Any, contrast: Contrast, inputs: Mapping[str, Any]) -> None:
        self.model, self.contrast = model, contrast
        self.ids: Tensor = inputs["input_ids"]
        self.prompt = self.ids.shape[1]
        self.kwargs: dict[str, Any] = {key: value for key, value in inputs.items() if key != "input_ids"}
        name = cache_name(model.prepare_inputs_for_generation, model.forward)
        self.kwargs |= {name: DynamicCache(config=model.config.get_text_config(decoder=True))}
        self.kwargs |= {"use_cache": True}
        if model._supports_logits_to_keep():
            self.kwargs["logits_to_keep"] = 1
        self.steps = 0

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        model = self.model
        first = self.steps == 0
        if not first:
            self.ids = torch.cat([self.ids, input_ids[:, -1:]], dim=1)
            self.kwargs = model._update_model_kwargs_for_generation(ModelOutput(), self.kwargs, False)
        with preserving_rope_deltas(model), isolated_edits(model):
            more = {} if first else {"next_sequence_length": 1}
            prepared = model.prepare_inputs_for_generation(
                self.ids, is_first_iteration=first, **more, **self.kwargs
            )
            output = model(**prepared, return_dict=True)
        if first:
            self.kwargs = {key: value for key, value in self.kwargs.items() if key not in IMAGE_KEYS}
        combined = self.contrast.combine(scores.float(), [output.logits[:, -1].float()], self.steps)
        self.steps += 1
        return combined.to(scores.dtype)


def _guidance(model: Any, inputs: Mapping[str, Any]) -> LogitsProcessor:
    from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor

    without = Target(model, inputs).without_image()
    return UnbatchedClassifierFreeGuidanceLogitsProcessor(
        GUIDANCE,
        model,
        unconditional_ids=without["input_ids"],
        unconditional_attention_mask=without["attention_mask"],
    )
