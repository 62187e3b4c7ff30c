"""``Target``: what a method may know about a model and its inputs. Read-only; it raises instead of guessing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from keepsight.errors import InputError, InvalidParameter, NoImageTokens, UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


TOKEN_KEYS = frozenset(
    {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids"}
)
"""Inputs with one entry per prompt token, ``(batch, prompt)``."""

AUDIO_KEYS = frozenset(
    {
        "input_features", "input_features_mask", "feature_attention_mask", "audio_feature_lengths", "audio_input_ids",
        "audio_input_ids_mask", "input_values", "input_values_mask", "padding_mask", "chunk_sample_lengths",
        "audio_input_features", "audio_embed_sizes", "audio_attention_mask", "audio_projection_mode",
    }
)  # fmt: skip
"""Inputs that exist only because of a sound; a prompt keeps them, with the sound's tokens, when its picture goes."""

IMAGE_KEYS = frozenset(
    {
        # Pixels, and what a vision tower made of them
        "pixel_values", "pixel_values_videos", "pixel_values_images", "pixel_values_local", "high_res_pixel_values",
        "image_pixel_values", "image_patches", "image_embeds", "image_features", "mm_encoder_outputs",
        # Which of the pixels count
        "pixel_attention_mask", "pixel_mask", "image_attention_mask", "aspect_ratio_mask", "cross_attention_mask",
        # Sizes, grids and places of pictures, tiles and patches
        "image_sizes", "image_sizes_videos", "image_grid_thw", "image_grid_hw", "image_grids", "image_merge_sizes",
        "image_num_crops", "image_position_ids", "image_token_pooling", "video_grid_thw", "second_per_grid_ts",
        "aspect_ratio_ids", "num_local_patches", "patches_grid", "batch_num_images", "spatial_shapes", "num_tiles",
        "target_sizes",
        # How the vision tower is to read them
        "vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio", "downsample_mode",
        "tile_fine_mask", "interpolate_pos_encoding",
    }
)  # fmt: skip
"""Inputs that exist only because of a picture; a prompt without one goes without them."""

PIXEL_KEYS = frozenset(
    {"pixel_values", "pixel_values_images", "image_patches", "high_res_pixel_values", "pixel_values_local"}
)
"""Inputs that hold the pixels of pictures. Video-LLaVA and Fuyu have names of their own for ``pixel_values``; DeepSeek-VL,
DeepSeek-OCR, Step and Unlimited-OCR show the same pictures a second time, larger or in crops."""

CACHE_NAMES = ("cache", "past_key_values")
"""What transformers calls a cache: the first from 5.24 on, the second before, and in models that have not followed yet."""

_IMAGE_TOKENS = ("image_token_id", "image_token_index")
_MARKERS = (
    "vision_start_token_id", "vision_end_token_id", "boi_token_id", "eoi_token_id", "boi_token_index", "eoi_token_index",
    "image_start_token_id", "image_end_token_id", "low_res_image_start_token_id", "image_newline_token_id",
    "image_bos_token_id", "im_start_id", "im_end_id", "im_newline_id", "image_start_id", "image_end_id", "slice_start_id",
    "slice_end_id", "visual_indicator_token_ids",
)  # fmt: skip
"""Under which names configurations hold the tokens around a picture: single ids, or a list of them."""

_OPENING, _CLOSING = ("<racm3:break>", "<|image start|>"), ("<eoss>", "<|image end|>")
"""What opens and closes a picture in the vocabulary of Chameleon and Emu3, whose configurations hold it whole. Emu3 writes
the size of the picture in between, in digits."""

_LAYER_LISTS = ("layers", "h")
_FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "embedding_norm", "norm_f")


_NO_ATTENTION = frozenset({"linear_attention", "conv", "mamba", "mamba2", "recurrent", "moe", "mlp"})
"""Kinds of decoder layers in transformers' configurations that have no softmax attention."""


class PromptSource(Protocol):
    """The messages and pictures that inputs were made of; ``keepsight.source.source.Source`` is one."""

    @property
    def prompts(self) -> Sequence[Any]:
        """One for each row of the inputs."""

    def without_images(self) -> PromptSource:
        """The same prompts without their pictures."""

    def inputs(self) -> Mapping[str, Any]:
        """The model inputs that the prompts make."""


@dataclass(frozen=True, eq=False)
class Target:
    """A read-only view of one model and the inputs of one generation.

    Args:
        model: a decoder-only image-text-to-text model of transformers (a cross-attending one such as Mllama counts).
        inputs: the arguments of ``generate``: model inputs, and generation options, which are ignored here.
        fused: whether amateurs share the passes of the main generation: wherever that is possible and pays (``"auto"``),
            or raise where it is not possible (True), or never (False).
        source: the messages and pictures that the inputs were made of, where they are known. Views of the prompt are then
            made by the chat template and the processor instead of by dropping tokens.

    Raises:
        UnsupportedModel: not a model this library can drive; the message says which part is missing.
        InputError: no ``input_ids``, or ids that are not ``(batch, prompt)``.
    """

    model: PreTrainedModel
    inputs: Mapping[str, Any] = field(repr=False)
    fused: bool | Literal["auto"] = "auto"
    source: PromptSource | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_generates(self.model)
        if self.fused not in (True, False, "auto"):
            raise InvalidParameter(f"fused={self.fused!r} must be True, False or 'auto'")
        ids = self.inputs.get("input_ids")
        if ids is None:
            got = ", ".join(sorted(str(key) for key in self.inputs)) or "nothing"
            raise InputError(
                f"the inputs hold no input_ids (got {got}): pass what the model's processor returned"
            )
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.shape[0] == 0 or ids.shape[1] == 0:
            raise InputError("input_ids must be a tensor of shape (batch, prompt): use return_tensors='pt'")
        if self.source is not None and len(self.source.prompts) != ids.shape[0]:
            raise InputError(
                f"the source has {len(self.source.prompts)} prompts and input_ids {ids.shape[0]} rows: pass the source that"
                " these very inputs were made of"
            )
        if self.inputs.get("inputs_embeds") is not None:
            raise InputError("inputs_embeds hide where the picture is: pass input_ids alone")
        if video := [key for key, value in self.inputs.items() if "video" in str(key) and value is not None]:
            raise InputError(
                f"prompts with video are not supported, also beside pictures (got {', '.join(video)}): pass pictures"
            )
        for name in CACHE_NAMES:
            if self.inputs.get(name) is not None:
                raise InputError(
                    f"a prefilled {name} cannot be contrasted: pass the whole prompt without one"
                )

    @property
    def name(self) -> str:
        """The model's class, for messages."""
        return type(self.model).__name__

    @property
    def input_ids(self) -> Tensor:
        """``(batch, prompt)``."""
        ids: Tensor = self.inputs["input_ids"]
        return ids

    @property
    def batch(self) -> int:
        return int(self.input_ids.shape[0])

    @property
    def prompt(self) -> int:
        """Length of the padded prompt in tokens."""
        return int(self.input_ids.shape[1])

    @cached_property
    def attention_mask(self) -> Tensor:
        """``(batch, prompt)``, 1 where a token counts; where the inputs have none, inferred as ``generate`` infers it."""
        mask = self.inputs.get("attention_mask")
        if mask is not None:
            return torch.as_tensor(mask)
        pad, eos = self.option("pad_token_id"), self.option("eos_token_id")
        ends = eos if isinstance(eos, (list, tuple)) else [eos]
        if pad is None or pad in ends:
            return torch.ones_like(self.input_ids)
        return self.input_ids.ne(pad).long()

    def option(self, name: str) -> Any:
        """An option of ``generate``: as the call names it, else its ``generation_config``, else the model's."""
        configs = (self.inputs.get("generation_config"), self.model.generation_config)
        found = (self.inputs.get(name), *(getattr(config, name, None) for config in configs))
        return next((value for value in found if value is not None), None)

    @cached_property
    def model_inputs(self) -> dict[str, Any]:
        """What of ``inputs`` reaches the model's forward: generation options and empty entries left out."""
        from transformers import GenerationConfig
        from transformers.generation import GenerationMixin

        options = set(GenerationConfig().to_dict()) | set(signature(GenerationMixin.generate).parameters)
        options |= {
            "tokenizer",
            "assistant_tokenizer",
            "use_model_defaults",
            "logits_to_keep",
            "output_attentions",
        }
        kept = {key: value for key, value in self.inputs.items() if value is not None and key not in options}
        kept["attention_mask"] = self.attention_mask
        return kept

    @cached_property
    def image_token_id(self) -> int:
        """The id of the placeholder that stands for a piece of the picture.

        Raises:
            UnsupportedModel: the configuration names none, or the model does not see pictures at placeholders.
        """
        config = self.model.config
        if hasattr(config, "cross_layer_interval"):
            raise UnsupportedModel(
                f"{self.name} sees pictures in layers of their own at every token (Idefics), and not at placeholders: not"
                " supported"
            )
        vision = getattr(config, "vision_config", None)
        # Phi-4-multimodal has it in the vision part
        for part, name in product((config, vision), _IMAGE_TOKENS):
            token = getattr(part, name, None)
            if isinstance(token, int):
                return token
        if (token := self._vocabulary.get("<image>")) is not None:
            return token
        if vision is None and getattr(config, "vq_config", None) is None:
            raise UnsupportedModel(f"{self.name} is a text-only model: use an image-text-to-text checkpoint")
        raise UnsupportedModel(
            f"{self.name} names no image token: set model.config.image_token_id to the id its processor uses, if it puts"
            " placeholders into prompts; a model without placeholders is not supported"
        )

    @property
    def _vocabulary(self) -> Mapping[str, int]:
        """The tokens by their texts, in the configurations that hold them (Chameleon, Emu3)."""
        found = getattr(self.model.config, "vocabulary_map", None)
        return found if isinstance(found, Mapping) else {}

    @cached_property
    def image_mask(self) -> Tensor:
        """Where the prompt holds the picture, ``(batch, prompt)`` bool.

        Raises:
            NoImageTokens: a row has no placeholder.
        """
        mask = self.input_ids == self.image_token_id
        empty = (~mask.any(-1)).nonzero().flatten().tolist()
        if empty:
            which = "the prompt" if self.batch == 1 else f"row {empty[0]} of the batch"
            raise NoImageTokens(
                f"{which} holds no picture (no token {self.image_token_id}): put an image into the prompt,"
                " or generate without the method"
            )
        return mask

    def why_no_image_columns(self) -> str | None:
        """Why attention to the picture cannot be edited, in a clause; None where it can.

        Models that see the picture by cross-attention have no visual tokens among the decoder's own keys.
        """
        if getattr(self.text_config, "cross_attention_layers", None):
            return (
                "it sees the picture by cross-attention, so that self-attention has no visual tokens to edit"
            )
        return None

    def check_image_in_context(self, what: str) -> None:
        """The picture must stand among the decoder's own keys, as ``what`` needs it.

        Raises:
            UnsupportedModel: it is reached by cross-attention.
            NoImageTokens: there is none.
        """
        if (reason := self.why_no_image_columns()) is not None:
            raise UnsupportedModel(f"{self.name} cannot be used for {what}: {reason}")
        _ = self.image_mask

    def check_prompt(self) -> None:
        """What every method needs of a prompt, whether it is at strength 0 or not.

        Raises:
            NoImageTokens: a row has no picture, or the inputs hold no picture at all.
            InputError: the batch is padded on the right.
        """
        _ = self.image_mask
        if not self.model_inputs.keys() - TOKEN_KEYS - AUDIO_KEYS - {"position_ids"}:
            raise NoImageTokens(
                "the inputs hold no pixel_values: pass everything the model's processor returned"
            )
        if bool((self.attention_mask[:, -1] == 0).any()):
            raise InputError(
                "the batch is padded on the right, so that generation would begin at padding: call the processor with"
                " padding=True, padding_side='left'"
            )

    @cached_property
    def text_config(self) -> Any:
        """The text decoder's part of the model's configuration."""
        return self.model.config.get_text_config(decoder=True)

    @cached_property
    def layers_without_attention(self) -> frozenset[int]:
        """Decoder layers that the configuration says have no softmax attention, such as linear ones and convolutions."""
        kinds = getattr(self.text_config, "layer_types", None) or ()
        return frozenset(i for i, kind in enumerate(kinds) if kind in _NO_ATTENTION)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.text_config.hidden_size)

    @cached_property
    def marker_ids(self) -> frozenset[int]:
        """Ids of the tokens that open and close a picture, as far as the configuration names them."""
        found: list[Any] = [self._vocabulary.get(text) for text in (*_OPENING, *_CLOSING)]
        for name in _MARKERS:
            value = getattr(self.model.config, name, None)
            found += value if isinstance(value, (list, tuple)) else [value]
        return frozenset(token for token in found if isinstance(token, int))

    def _between_markers(self) -> Tensor:
        """From each token that opens a picture to the one that closes it, ``(batch, prompt)`` bool, for ``_OPENING``."""
        opening, closing = (
            torch.isin(
                self.input_ids, self.input_ids.new_tensor([self._vocabulary.get(text, -1) for text in texts])
            )
            for texts in (_OPENING, _CLOSING)
        )
        return closing | (opening.long() - closing.long()).cumsum(-1).gt(0)

    @property
    def pixel_values(self) -> Tensor:
        """The processed picture, in the model's own layout.

        Raises:
            NoImageTokens: the prompt or the inputs hold none.
        """
        _ = self.image_mask
        pixels = self.model_inputs.get("pixel_values")
        if not isinstance(pixels, Tensor):
            raise NoImageTokens(
                "the inputs hold no pixel_values: pass everything the model's processor returned"
            )
        return pixels

    @property
    def pixels(self) -> dict[str, Any]:
        """The inputs that hold pictures, by name, each in the model's own layout.

        Raises:
            NoImageTokens: the prompt or the inputs hold none.
        """
        _ = self.image_mask
        found = {key: value for key, value in self.model_inputs.items() if key in PIXEL_KEYS}
        if not found:
            raise NoImageTokens(
                "the inputs hold no pixel_values: pass everything the model's processor returned"
            )
        return found

    @cached_property
    def decoder(self) -> nn.Module:
        """The text decoder, the module that owns ``layers``."""
        module: Any = self.model.get_decoder()
        for _ in range(3):
            if (blocks := _blocks(module)) is not None:
                self._check_block(blocks[0])
                assert isinstance(module, nn.Module)
                return module
            module = getattr(module, "model", None) or getattr(module, "decoder", None)
        raise UnsupportedModel(f"{self.name}: no list of decoder layers under get_decoder()")

    @cached_property
    def compiled_module(self) -> str | None:
        """The module that was compiled in place and that passes of the decoder go through, by its name in the model; None
        where there is none.

        Both ``module.compile()`` and ``module.forward = torch.compile(module.forward)`` count. The vision tower and the
        output projection do not: nothing of a method acts in them.
        """
        try:
            inside: nn.Module = self.decoder
        except UnsupportedModel:
            # Contrasts need no list of layers; any compiled module counts then
            inside = self.model
        decoder = next(name for name, module in self.model.named_modules() if module is inside)
        for name, module in self.model.named_modules():
            around = not name or decoder == name or decoder.startswith(f"{name}.")
            within = not decoder or name.startswith(f"{decoder}.")
            if (around or within) and _is_compiled(module):
                return name or self.name
        return None

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's blocks, first to last."""
        layers = _blocks(self.decoder)
        assert layers is not None
        return layers

    def _check_block(self, block: nn.Module) -> None:
        """Bloom's attention and MLP add what they were given to what they put out, so that edits would act on both."""
        for part in (getattr(block, name, None) for name in ("self_attention", "mlp")):
            if part is not None and "residual" in signature(part.forward).parameters:
                raise UnsupportedModel(
                    f"{self.name}: {type(part).__name__} adds the residual itself, so that what it puts out cannot be told"
                    " apart from what it was given"
                )

    @cached_property
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the head."""
        for name in _FINAL_NORMS:
            module = getattr(self.decoder, name, None)
            if isinstance(module, nn.Module):
                return module
        raise UnsupportedModel(f"{self.name}: no final norm beside the decoder's layers")

    @cached_property
    def head(self) -> nn.Module:
        """The output projection: hidden states to the vocabulary."""
        head = self.model.get_output_embeddings()
        if head is None:  # Nemotron's omni model leaves it to the language model inside
            inner: Any = self.model.get_decoder()
            head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
        if not isinstance(head, nn.Module):
            raise UnsupportedModel(f"{self.name}: get_output_embeddings() gives no output projection")
        return head

    def without_image(self, *, also_drop: tuple[int, ...] = ()) -> dict[str, Any]:
        """The model inputs as if the prompt had been written without its picture.

        Placeholders, the markers in ``marker_ids``, the ids in ``also_drop`` and all padding go; what is left is padded
        on the left again, so that positions close up. Everything that belongs to the picture alone goes as well. Sounds
        stay.

        Where a ``source`` is known, the chat template writes the prompt anew without the picture instead.

        Raises:
            NoImageTokens: a row has no picture.
            UnsupportedModel: an input that is neither per token nor known to belong to the picture.
        """
        if self.source is not None:
            written = self.source.without_images().inputs()
            return {key: value.to(self.input_ids.device) for key, value in written.items()}
        drop = self.image_mask | self._between_markers()
        for token in (*self.marker_ids, *also_drop):
            drop |= self.input_ids == token
        keep = (self.attention_mask.to(drop.device) != 0) & ~drop
        lengths = keep.sum(-1).tolist()
        if min(lengths) == 0:
            raise InputError("a prompt of pictures alone has no text to contrast with: add a question")
        padding = self.option("pad_token_id")
        fill = {"input_ids": padding if isinstance(padding, int) else int(self.input_ids[keep][0])}
        inputs: dict[str, Any] = {}
        for key, value in self.model_inputs.items():
            if key in IMAGE_KEYS or key == "position_ids":
                continue
            if key in AUDIO_KEYS:
                inputs[key] = value
                continue
            if key not in TOKEN_KEYS:
                raise UnsupportedModel(
                    f"{self.name}: cannot tell whether the input {key!r} belongs to the picture; remove it from the inputs"
                )
            rows = [row[kept.to(row.device)] for row, kept in zip(value, keep, strict=True)]
            short = value.new_full((len(rows), max(lengths)), fill.get(key, 0))
            for padded, row in zip(short, rows, strict=True):
                padded[max(lengths) - len(row) :] = row
            inputs[key] = short
        return inputs


def _is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module go to what torch.compile made of it."""
    # Neither has a public name: the first is what ``compile()`` sets, the second marks compiled functions
    called, forward = getattr(module, "_compiled_call_impl", None), vars(module).get("forward")
    wrapped = type(module).__name__ == "OptimizedModule"
    return called is not None or wrapped or hasattr(forward, "_torchdynamo_orig_callable")


def cache_name(*functions: Callable[..., Any]) -> str:
    """By which name the first of ``functions`` that takes a cache takes it.

    Raises:
        UnsupportedModel: none of them names one.
    """
    for function in functions:
        names = signature(function).parameters
        if found := next((name for name in CACHE_NAMES if name in names), None):
            return found
    raise UnsupportedModel(
        f"{functions[-1].__qualname__} takes its cache neither as {' nor as '.join(CACHE_NAMES)}: this model, or this"
        " version of transformers, is not one that Keepsight knows"
    )


def cache_among(arguments: Mapping[str, Any]) -> Any:
    """The cache among keyword arguments, by either name; None without one."""
    for name in CACHE_NAMES:
        if (cache := arguments.get(name)) is not None:
            return cache
    return None


def _blocks(module: Any) -> nn.ModuleList | None:
    """The list of decoder blocks that a module owns; GPT-2 and its like call it ``h``."""
    found = (getattr(module, name, None) for name in _LAYER_LISTS) if isinstance(module, nn.Module) else ()
    return next((blocks for blocks in found if isinstance(blocks, nn.ModuleList)), None)


def check_generates(model: Any) -> None:
    from transformers import PreTrainedModel
    from transformers.generation import GenerationMixin

    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        hint = (
            "pass model.get_base_model()"
            if hasattr(model, "get_base_model")
            else "pass the transformers model itself"
        )
        raise UnsupportedModel(f"{name} is not a transformers model: {hint}")
    own = getattr(type(model), "generate", GenerationMixin.generate)
    if own is GenerationMixin.generate and not model.can_generate():
        raise UnsupportedModel(f"{name} has no language-model head: load it with AutoModelForImageTextToText")
    if model.config.is_encoder_decoder:
        raise UnsupportedModel(f"{name} is an encoder-decoder: only decoder-only models are supported")
    if own is not GenerationMixin.generate:
        raise UnsupportedModel(
            f"{name} has a generate() of its own, which hides the prompt from logits processors: not supported"
        )
