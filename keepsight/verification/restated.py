"""The parts of a method put in place a second time, for passes over the whole text without a cache.

Shares no code with ``keepsight.engines``: hooks, attention, passes of amateurs, lenses and preludes are written out once
more, in the slowest and plainest way. This file and ``witness`` therefore register hooks of their own, and remove them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from keepsight.errors import UnsupportedModel
from keepsight.parts import Contrast, Edit, HookContext, Lens, Part, Prelude, View
from keepsight.target import PIXEL_KEYS, TOKEN_KEYS, Target
from keepsight.verification.explicit import apart, apply_edits, edited_attention, moved

INSIDE_ATTENTION = ("attn_scores", "attn_pattern", "head_out")
"""Places inside the attention function."""
OUTSIDE = ("attn_out", "mlp_out", "resid_post")
"""Places whose values modules put out."""
MODULES = {
    "attn_out": ("self_attn", "attention", "attn", "cross_attn", "self_attention", "linear_attn"),
    "mlp_out": ("mlp", "feed_forward", "ffn"),
}
"""Under which names decoder layers hold their attention block and their MLP."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """Where a prompt holds what: its length, and ``(rows, length)`` bool for the picture and for tokens that count."""

    length: int
    image: Tensor
    counts: Tensor

    @classmethod
    def of(cls, model: Any, inputs: Mapping[str, Any]) -> Prompt:
        ids = inputs["input_ids"]
        target = Target(model, inputs)
        image = torch.zeros_like(ids, dtype=torch.bool)
        if target.model_inputs.keys() & PIXEL_KEYS:
            image = ids == target.image_token_id
        return cls(ids.shape[1], image, target.attention_mask.to(ids.device) != 0)

    def context(self, layer: int, first: int, rows: int, batch: int, device: torch.device) -> HookContext:
        """Where a pass stands, for the edits of a layer."""
        each = batch // self.image.shape[0]
        image, counts = (one.to(device).repeat_interleave(each, dim=0) for one in (self.image, self.counts))
        return HookContext(layer, first, rows, self.length, image, counts)


@contextmanager
def attention_replaced(model: Any, function: Callable[..., Any]) -> Iterator[None]:
    """Inside the block transformers hands every call of the decoder's attention function to ``function``."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as FUNCTIONS

    name = model.config.get_text_config(decoder=True)._attn_implementation
    before = FUNCTIONS._local_mapping.get(name)
    FUNCTIONS[name] = function
    try:
        yield
    finally:
        if before is None:
            del FUNCTIONS[name]
        else:
            FUNCTIONS[name] = before


def kernel_of(model: Any) -> Any:
    """The attention function of transformers that the decoder uses now; None for one inside its own file (eager)."""
    from transformers import AttentionInterface

    return AttentionInterface().get(model.config.get_text_config(decoder=True)._attn_implementation)


def module_at(layer: nn.Module, place: str, index: int, name: str) -> nn.Module:
    """The module of a layer whose output a place is.

    Raises:
        UnsupportedModel: the layer has none under a known name.
    """
    if place not in MODULES:
        return layer
    for known in MODULES[place]:
        if isinstance(found := getattr(layer, known, None), nn.Module):
            return found
    raise UnsupportedModel(f"{name}: decoder layer {index} has no module for {place} under a known name")


def tokens_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, Tensor]:
    """What a decoder is called with: embedded tokens or their ids ``(rows, tokens, …)``, and under which name."""
    name = "inputs_embeds" if kwargs.get("inputs_embeds") is not None else "input_ids"
    tokens: Tensor = kwargs.get(name, args[0] if args else None)
    return name, tokens


def ruled_out_as(given: Tensor, logits: Tensor) -> Tensor:
    """Logits without the tokens that other processors have ruled out in given scores, where these are −inf."""
    return logits.masked_fill(given == -torch.inf, -torch.inf)


def rows_of(output: Any) -> Tensor:
    """The tensor that a module puts out, which may come alone or first of several."""
    whole: Tensor = output[0] if isinstance(output, tuple) else output
    return whole


@contextmanager
def without_rope_deltas(model: Any) -> Iterator[None]:
    """Qwen-VL models keep an offset of positions from prompt to prompt; inside the block there is none."""
    owners = [module for module in model.modules() if "rope_deltas" in vars(module)]
    before = [module.rope_deltas for module in owners]
    try:
        for module in owners:
            module.rope_deltas = None
        yield
    finally:
        for module, value in zip(owners, before, strict=True):
            module.rope_deltas = value


class Restated:
    """Passes of one model over a whole text, with edits in place by full matrices.

    Args:
        model: the model; nothing of it is copied.
        target: the model and the main inputs, one row.
    """

    def __init__(self, model: Any, target: Target) -> None:
        self.model, self.target = model, target
        self.layers = list(target.layers)
        self.layer_of = {id(module): i for i, layer in enumerate(self.layers) for module in layer.modules()}

    @torch.no_grad()
    def logits(
        self,
        inputs: Mapping[str, Any],
        generated: Tensor,
        edits: Sequence[Edit] = (),
        *,
        draw: int | None = None,
        reading: Sequence[int] = (),
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits after prompts and the tokens that follow them, by one pass without a cache.

        Args:
            inputs: of one prompt, or of several that are padded on the left.
            generated: ``(rows, n)`` tokens.
            edits: the edits in place, in their order.
            draw: move by one unit of rounding, drawn from this seed, what goes into the decoder, what each of its layers
                puts out, and what edited attention is given; None moves nothing.
            reading: layers whose residual stream is read afterwards.

        Returns:
            ``(rows, vocab)`` float32, and by layer ``(rows, hidden)`` at the last token.
        """
        from transformers.utils import ModelOutput

        prompt = Prompt.of(self.model, inputs)
        kwargs = {key: value for key, value in inputs.items() if key != "input_ids" and value is not None}
        kwargs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        for _ in range(generated.shape[1]):
            kwargs = self.model._update_model_kwargs_for_generation(
                ModelOutput(), kwargs, is_encoder_decoder=False
            )
        ids = torch.cat([inputs["input_ids"], generated], dim=1)
        for key in (
            TOKEN_KEYS & kwargs.keys()
        ):  # such as Ernie's token types, which generate() cuts to the new tokens
            missing = ids.shape[1] - kwargs[key].shape[1]
            kwargs[key] = torch.nn.functional.pad(kwargs[key], (0, missing))
        padded = not bool(kwargs["attention_mask"].all())
        if padded and "position_ids" in signature(self.model.forward).parameters:
            kwargs["position_ids"] = self.model._prepare_position_ids_for_generation(ids, kwargs)
        stream: dict[int, Tensor] = {}
        with self._in_place(prompt, edits, draw, reading, stream), without_rope_deltas(self.model):
            out = self.model(input_ids=ids, **kwargs, use_cache=False, return_dict=True).logits
        return out[:, -1].float(), stream

    @contextmanager
    def _in_place(
        self,
        prompt: Prompt,
        edits: Sequence[Edit],
        draw: int | None,
        reading: Sequence[int],
        stream: dict[int, Tensor],
    ) -> Iterator[None]:
        """Hooks for one pass over a whole text."""
        at: dict[str, int] = {"batch": 0, "rows": 0}

        def enter(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            name, tokens = tokens_of(args, kwargs)
            at["batch"], at["rows"] = tokens.shape[:2]
            if draw is None or not tokens.is_floating_point():
                return None
            return args, {**kwargs, name: moved(tokens, draw)}

        def context(layer: int, device: torch.device) -> HookContext:
            return prompt.context(layer, 0, at["rows"], at["batch"], device)

        def attention(
            module: Any, query: Tensor, key: Any, value: Any, attention_mask: Any, **kwargs: Any
        ) -> Any:
            layer = self.layer_of.get(id(module))
            mine = [e for e in edits if layer in e.layers and any(map(e.overrides, INSIDE_ATTENTION))]
            if layer is None or not mine:
                return kernel(module, query, key, value, attention_mask, **kwargs)
            if draw is not None:
                query, key, value = (moved(x, draw + n) for n, x in enumerate((query, key, value)))
            here = context(layer, query.device)
            return edited_attention(
                kernel, module, query, key, value, attention_mask, kwargs, mine, here
            ), None

        with ExitStack() as stack:
            stack.callback(self.target.decoder.register_forward_pre_hook(enter, with_kwargs=True).remove)
            if any(edit.overrides(place) for edit in edits for place in INSIDE_ATTENTION):
                kernel = kernel_of(self.model)
                if kernel is None:
                    raise UnsupportedModel(
                        f"{self.target.name}: its attention is in its own file, where it cannot be restated; call"
                        " model.set_attn_implementation('sdpa')"
                    )
                stack.enter_context(attention_replaced(self.model, attention))
            for index, layer in enumerate(self.layers):
                mine = [edit for edit in edits if index in edit.layers]
                for handle in self._module_hooks(index, layer, mine, context):
                    stack.callback(handle.remove)
                if index in reading:
                    stack.callback(layer.register_forward_hook(_keeping(stream, index)).remove)
            if draw is not None:
                for index, module in enumerate((self.model.get_input_embeddings(), *self.layers)):
                    stack.callback(module.register_forward_hook(_moving(draw + index)).remove)
            yield

    def _module_hooks(
        self, index: int, layer: nn.Module, edits: Sequence[Edit], context: Callable[..., HookContext]
    ) -> Iterator[Any]:
        """Registers what calls the edits of one layer outside of attention."""
        if reads := [edit for edit in edits if edit.overrides("resid_pre")]:

            def read(_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
                hidden = args[0] if args else kwargs["hidden_states"]
                here = context(index, hidden.device)
                if hidden.shape[:-1] != (here.image.shape[0], here.rows):
                    raise UnsupportedModel(
                        f"{self.target.name}: states before layer {index} have another shape"
                    )
                for edit in reads:
                    edit.resid_pre(hidden, here)

            yield layer.register_forward_pre_hook(read, with_kwargs=True)
        for place in OUTSIDE:
            writes = [edit for edit in edits if edit.overrides(place)]
            if not writes:
                continue

            def write(_module: Any, _args: Any, output: Any, place: str = place) -> Any:
                whole = rows_of(output)
                here = context(index, whole.device)
                shape = (here.image.shape[0], here.rows, whole.shape[-1])
                if whole.numel() != math.prod(shape):
                    raise UnsupportedModel(f"{self.target.name}: {place} has another shape than {shape}")
                changed = apply_edits(edits, place, whole.reshape(shape), here).reshape(whole.shape)
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            yield module_at(layer, place, index, self.target.name).register_forward_hook(write)

    # ------------------------------------------------------------------------------------------- scores of a recipe

    def prepared(self, parts: Sequence[Part], draw: int | None = None) -> None:
        """Run the preludes of some parts, by passes of this file; ``draw`` as for ``logits``."""
        for part in parts:
            if isinstance(part, Prelude):
                part.run(RestatedPasses(self, draw))

    def scores(
        self,
        parts: Sequence[Part],
        given: Tensor,
        generated: Tensor,
        *,
        expert: bool,
        draw: int | None = None,
        normalised: bool = False,
        shift: float = 0.0,
    ) -> Tensor:
        """The scores of the next token as the parts make them, both views recomputed from scratch.

        Args:
            parts: of one or several methods, prepared.
            given: ``(1, vocab)`` the engine's own scores before the methods; −inf marks what other processors ruled out.
            generated: ``(1, n)`` the tokens so far.
            expert: whether the main view is recomputed as well; otherwise it is ``given``.
            draw: see ``logits``.
            normalised: whether methods are handed log-probabilities, as in a search with beams, and not the model's scores.
            shift: what is added to the main view's scores of all tokens but the best.
        """
        edits = [part for part in parts if isinstance(part, Edit)]
        lenses = [layer for part in parts if isinstance(part, Lens) for layer in part.layers]
        step, inputs = generated.shape[1], self.target.model_inputs
        stream: dict[int, Tensor] = {}
        scores = given.float()
        if expert or lenses:
            # State of the edits is that of one generation, whose passes are here always the first
            logits, stream = self.logits(inputs, generated, apart(edits), draw=draw, reading=lenses)
            if expert:
                # Log-probabilities may be much larger than the scores, and are rounded accordingly
                logits = logits.log_softmax(-1) if normalised else logits
                scores = ruled_out_as(given, logits)
            elif draw is not None:
                scores = moved(scores, draw)
        if shift:
            scores = torch.where(scores == scores.amax(-1, keepdim=True), scores, scores + shift)
        for part in parts:
            if isinstance(part, Contrast):
                amateurs = [self._amateur(view, edits, generated, draw) for view in part.views]
                mixed = part.combine(scores, amateurs, step)
                same = (mixed == scores).all(-1, keepdim=True)
                scores = torch.where(same, scores, mixed.log_softmax(-1))
            elif isinstance(part, Lens):
                layers = _Layers([stream[layer] for layer in part.layers], self.target, part.final_norm)
                scores = part.combine(scores, layers, step).log_softmax(-1)
        return scores

    def _amateur(self, view: View, edits: Sequence[Edit], generated: Tensor, draw: int | None) -> Tensor:
        inputs = view.inputs(self.target)
        found, _ = self.logits(inputs, generated, apart(edits) if view.edited else (), draw=draw)
        return found


def _moving(draw: int) -> Callable[..., Any]:
    """A hook that moves what a module puts out by one unit of rounding."""

    def move(_module: Any, _args: Any, output: Any) -> Any:
        changed = moved(rows_of(output), draw)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return move


def _keeping(stream: dict[int, Tensor], index: int) -> Callable[..., None]:
    """A hook that keeps the last row of what a layer puts out."""

    def keep(_module: Any, _args: Any, output: Any) -> None:
        stream[index] = rows_of(output)[:, -1]

    return keep


class _Layers:
    """The logits of some layers; see ``keepsight.parts.LayerLogits``."""

    def __init__(self, states: list[Tensor], target: Target, final_norm: bool) -> None:
        self._target = target
        self._states = [target.final_norm(state) for state in states] if final_norm else states

    def stacked(self) -> Tensor:
        logits: Tensor = torch.stack([self._target.head(state).float() for state in self._states])
        cap = getattr(self._target.text_config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def mean(self) -> Tensor:
        mean: Tensor = self.stacked().mean(0)
        return mean


class RestatedPasses:
    """What a prelude may do, by passes without a cache; see ``keepsight.parts.Passes``."""

    def __init__(self, restated: Restated, draw: int | None = None) -> None:
        self._restated, self._draw = restated, draw

    def prefill(self, view: View, *observers: Edit) -> None:
        inputs = view.inputs(self._restated.target)
        self._restated.logits(inputs, inputs["input_ids"][:, :0], observers, draw=self._draw)

    def generate(self, view: View, *observers: Edit, **options: Any) -> Tensor:
        """Greedy generation token by token, each by a pass over the whole text.

        Raises:
            UnsupportedModel: options ask for another search, which is not restated.
        """
        allowed = {"max_new_tokens", "do_sample", "num_beams"}
        if set(options) - allowed or options.get("do_sample") or options.get("num_beams", 1) != 1:
            raise UnsupportedModel(f"a prelude that generates with {options} is not restated")
        inputs = view.inputs(self._restated.target)
        if len(inputs["input_ids"]) > 1:
            raise UnsupportedModel("a prelude that generates for several prompts at once is not restated")
        ends = self._restated.target.option("eos_token_id")
        written: Tensor = inputs["input_ids"][:, :0]
        for _ in range(options.get("max_new_tokens", 20)):
            logits, _ = self._restated.logits(inputs, written, observers, draw=self._draw)
            token = logits.argmax(-1, keepdim=True)
            written = torch.cat([written, token], dim=1)
            if int(token) in (ends if isinstance(ends, (list, tuple)) else [ends]):
                break
        return written
