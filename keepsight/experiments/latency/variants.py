"""Variants of generation that are compared: plain, a method with its amateur fused or separate, and peers from published
code."""

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
"""The methods that are measured by default. VAR is set so that every head redistributes attention, its worst case."""
GUIDANCE = 1.1
"""The scale of transformers' own guidance: PAI's default, so that the two compute the same."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One variant of generation.

    Args:
        kind: ``plain``; a method with its amateur ``fused`` or ``separate``; ``edit``, a method without an amateur; or
            a peer: ``naive`` (a method with a full second forward after the first, as published code runs it), ``cfg``
            (transformers' UnbatchedClassifierFreeGuidanceLogitsProcessor on the prompt without its picture), ``eager``
            (plain, with eager attention that returns its weights), ``static`` (plain, with a static cache) and
            ``compiled`` (the same, with compiled decoding steps).
        method: the spec of the method; empty for variants without one.
    """

    kind: Kind
    method: str = ""

    @property
    def name(self) -> str:
        """What tables call the variant."""
        return self.method or {"cfg": "guidance_scale of transformers", "eager": "eager attention"}.get(
            self.kind, f"{self.kind} cache"
        )

    @property
    def fused(self) -> bool | None:
        """Whether the amateur shares the passes of the main generation; None where there is no amateur."""
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
    """The variants to measure for some methods, and notes on what is left out and why.

    Args:
        model, inputs: what is measured on.
        specs: the specs of the methods.
        fused: ``auto`` measures an amateur fused, where that is possible, and separate; ``on`` or ``off`` measures one
            of the two.
        peers: entries of ``PEERS``.

    Raises:
        UnsupportedModel: a method does not run on the model, or ``on`` is given and the amateur cannot be fused.
    """
    ways: list[Way] = []
    notes: list[str] = []
    text_only: str | None = None
    for spec in specs:
        # What a method is made of depends on the model and the prompt, so that it is put in place once to find out. An
        # amateur that is not fused leaves its prompt with the target.
        target = Target(model, inputs, fused=False)
        with ExitStack() as stack:
            processors = [
                one for method in parse_all(spec) for one in stack.enter_context(method.attach(target))
            ]
            contrasts = sum(isinstance(processor, ContrastProcessor) for processor in processors)
        if not contrasts:
            ways.append(Way(kind="edit", method=spec))
            continue
        # transformers' guidance contrasts with the text alone, so it is a fair peer only if some method does as well.
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
            # Where sharing is impossible and was asked for, opening the variant raises the error that says why.
            ways.append(Way(kind="fused", method=spec))
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
    """The arguments of ``generate`` for an entry of ``CACHES``; ``compiled`` is a static cache with compiled decoding
    steps."""
    if cache == "dynamic":
        return {}
    if cache == "static":
        # On a GPU transformers compiles the steps of a static cache by itself, which would leave nothing between the two
        # entries.
        return {"cache_implementation": "static", "disable_compile": True}
    from transformers import CompileConfig

    config = CompileConfig()
    # On the CPU transformers compiles nothing unless this private option is set (5.24).
    config._compile_all_devices = True  # type: ignore[assignment]
    return {"cache_implementation": "static", "compile_config": config}


@contextmanager
def opened(
    model: Any, inputs: Mapping[str, Any], way: Way, cache: str = "dynamic"
) -> Iterator[dict[str, Any]]:
    """Put a variant in place for as long as the block lasts; yields the arguments of ``generate`` besides the inputs.

    Args:
        model, inputs: what is measured on.
        way: the variant.
        cache: an entry of ``CACHES``; the peers ``static`` and ``compiled`` have their own.

    Raises:
        InputError: ``compiled`` does not go with a method that edits the model, nor with shared passes.
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
    """The loop of published code: after each forward of the model, a second full one with a cache of its own.

    The second forward runs at every step whether it matters or not, and its inputs are prepared as ``generate`` prepares
    them. The loop is for searches in which rows stay where they are: greedy search and sampling.

    Args:
        model: the model that generates.
        contrast: the method's contrast, whose formula combines the two scores.
        inputs: the amateur's prompt.
    """

    def __init__(self, model: Any, contrast: Contrast, inputs: Mapping[str, Any]) -> None:
        self.model, self.contrast = model, contrast
        self.ids: Tensor = inputs["input_ids"]
        self.prompt = self.ids.shape[1]
        self.kwargs: dict[str, Any] = {key: value for key, value in inputs.items() if key != "input_ids"}
        name = cache_name(model.prepare_inputs_for_generation, model.forward)
        self.kwargs |= {name: DynamicCache(config=model.config.get_text_config(decoder=True))}
        self.kwargs |= {"use_cache": True}
        # ``generate`` computes the logits of the last position only where the model can, and the peer is not to be slower
        # by what published code gets for nothing.
        if model._supports_logits_to_keep():
            self.kwargs["logits_to_keep"] = 1
        self.steps = 0

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores after the contrast, (rows, vocab)."""
        model = self.model
        first = self.steps == 0
        if not first:
            self.ids = torch.cat([self.ids, input_ids[:, -1:]], dim=1)
            # The amateur follows the tokens of the main generation. An empty output is enough here: the method lengthens
            # the mask, and the cache grew in place.
            self.kwargs = model._update_model_kwargs_for_generation(ModelOutput(), self.kwargs, False)
        # The second forward runs in the midst of the main generation on the same model, and must leave neither positions
        # nor edits changed.
        with preserving_rope_deltas(model), isolated_edits(model):
            more = {} if first else {"next_sequence_length": 1}
            prepared = model.prepare_inputs_for_generation(
                self.ids, is_first_iteration=first, **more, **self.kwargs
            )
            output = model(**prepared, return_dict=True)
        if first:
            # The picture is read with the prompt and is in the cache from then on.
            self.kwargs = {key: value for key, value in self.kwargs.items() if key not in IMAGE_KEYS}
        combined = self.contrast.combine(scores.float(), [output.logits[:, -1].float()], self.steps)
        self.steps += 1
        return combined.to(scores.dtype)


def _guidance(model: Any, inputs: Mapping[str, Any]) -> LogitsProcessor:
    """transformers' own guidance, contrasting with the prompt without its picture."""
    from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor

    without = Target(model, inputs).without_image()
    return UnbatchedClassifierFreeGuidanceLogitsProcessor(
        GUIDANCE,
        model,
        unconditional_ids=without["input_ids"],
        unconditional_attention_mask=without["attention_mask"],
    )
