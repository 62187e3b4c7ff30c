"""A tiny random model for each type that transformers maps to image-text-to-text generation, and inputs with a picture.

``build("qwen3_vl")`` makes the type's default configuration small by the rules in ``SIZES``, mends what the rules do not
cover by the type's entry in ``MENDED``, and draws weights wide enough that pictures matter. Then it looks for inputs: it
tries the layouts of pictures in ``LAYOUTS`` and numbers of placeholders until the model's own checks accept them and the
picture changes the last logits. Nothing is downloaded.

What cannot be built raises ``NotBuilt`` with the reason.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf
from torch import Tensor
from transformers.generation import GenerationMixin
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as MAPPED

VOCAB = 160
LAYERS = 4
SPECIAL = range(136, VOCAB)
"""Ids of placeholders and markers. Their rows of the output projection are 0, so that a random model never writes them."""

TEXTS = ([1, 7, 5, 9, 33, 21, 64, 12], [1, 7, 40, 18, 77])
"""The prompts of the two rows; the picture stands after their second token."""
BEFORE = 2
MOST_PLACEHOLDERS = 150

FAST = (
    "llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma3", "gemma4", "internvl", "idefics3", "mistral3",
    "mllama", "paligemma",
)  # fmt: skip
"""Types whose layouts and attention differ from each other, for tests that cannot take all."""


class NotBuilt(Exception):
    """A type of which no tiny model with working inputs can be made; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Built:
    """One tiny model, and inputs that it accepts.

    Args:
        name: a mapped type, or ``type:variant``.
        inputs: of the first of ``TEXTS`` with a picture, one row.
        pictures: which of the inputs hold pixels.
        placeholders: how many tokens stand for the picture.
    """

    name: str
    model: Any
    inputs: dict[str, Any] = field(repr=False)
    pictures: tuple[str, ...]
    placeholders: int
    layout: Layout = field(repr=False)

    @property
    def image_token(self) -> int:
        return image_token(self.model.config)

    def prompt(self, text: Sequence[int], *, seed: int = 0) -> dict[str, Any]:
        """One row of inputs: a text with a picture drawn from ``seed``."""
        return lay_out(self.model, [list(text)], [self.layout.picture(seed)], self.layout, self.placeholders)

    def second(self) -> dict[str, Any]:
        """One row of inputs: the shorter of ``TEXTS`` with another picture."""
        return self.prompt(TEXTS[1], seed=1)

    def batch(self) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """Both rows, padded on the left, and each row alone; None where ``why_no_batch`` gives a reason."""
        return None if self.why_no_batch else (self._both, [self.inputs, self.second()])

    @functools.cached_property
    def why_no_batch(self) -> str | None:
        """Why rows of a padded batch do not equal the rows alone in plain transformers; None where they do."""
        try:
            both = self._logits(self._both)
            alone = [self._logits(row)[:, 0] for row in (self.inputs, self.second())]
        except Exception as error:
            return f"the batch is not accepted: {_short(error)}"
        for row, wanted in enumerate(alone):
            far = float((both[:, row] - wanted).abs().max())
            if not far < 1e-3:
                return f"row {row} of the batch differs from the row alone by {far:.1e} in its logits"
        return None

    def _logits(self, inputs: dict[str, Any]) -> Tensor:
        """Of two generated tokens, ``(tokens, rows, vocabulary)``; positions are those that ``generate`` gives."""
        options = {
            "max_new_tokens": 2,
            "do_sample": False,
            "output_logits": True,
            "return_dict_in_generate": True,
        }
        return torch.stack(self.model.generate(**inputs, **options).logits)

    @functools.cached_property
    def _both(self) -> dict[str, Any]:
        pictures = [self.layout.picture(seed) for seed in range(2)]
        return lay_out(self.model, [list(text) for text in TEXTS], pictures, self.layout, self.placeholders)


# ---------------------------------------------------------------------------------------------------------------- names


def names() -> tuple[str, ...]:
    """Every mapped type, in transformers' order."""
    return tuple(MAPPED)


def variants() -> tuple[str, ...]:
    """Named variants of types, whose decoders do what the type's default does not."""
    return tuple(VARIANTS)


# --------------------------------------------------------------------------------------------------------------- shrink

SIZES: tuple[tuple[str, float], ...] = (
    (
        r"(hidden_size|d_model|n_embd|embed_dim|dim|(text|out|lm|vision|visual|mm|projector|projection|connector|merger|encoder"
        r"|decoder|resampler|aligner|query|in|adapter)_hidden_size|hidden_dim|width|(projection|vision_output|output|proj"
        r"|adapter)_dim|embedding_size|word_embed_proj_dim)", 32,
    ),
    (r"(moe|expert|shared_expert)_(intermediate|hidden)_size|moe_shared_expert_intermediate_size", 24),
    (r".*(intermediate_(size|dim)|ffn_dim|inter_dim|mlp_hidden|intermediate_size_mlp|ffn_hidden_size)|n_inner", 48),
    (r"num_hidden_layers|num_layers|n_layers?|depth|num_(de|en)coder_layers|(de|en)coder_layers|layers", LAYERS),
    (r"num_attention_heads|num_heads|n_heads?|attention_heads|(de|en)coder_attention_heads|heads|resampler_n_heads", 4),
    (r"(num_key_value|n_kv|num_kv|num_global_key_value|swa_num_key_value|linear_num_key|linear_num_value)_heads", 2),
    (r"((attention|resampler|swa|global|linear_key|linear_value|mamba)_)?head_dim|v_head_dim|qk_head_dim", 8),
    (r"qk_(rope|nope)_head_dim", 4),
    (r"[qk]v?_lora_rank", 16),
    (r"vocab_size|vocab_size_per_layer_input|text_vocab_size", VOCAB),
    (r"num_experts|n_routed_experts|num_local_experts|moe_num_experts|num_experts_global", 4),
    (r"num_experts_per_tok|moe_topk|moe_k|top_k_experts|num_selected_experts", 2),
    (r"n_group|topk_group|num_expert_group|first_k_dense_replace", 1),
    (r"image_size|img_size|input_size", 16),
    (r"patch_size", 4),
    (r"max_position_embeddings|max_sequence_length", 512),
    (r"sliding_window|window_size|attention_chunk_size|query_pre_attn_scalar|hidden_size_per_layer_input", 8),
    (r"num_position_embeddings", 16),
    (r"laurel_rank|mamba_num_heads|n_mamba_heads", 4),
    (r"ssm_state_size|mamba_d_state", 8),
    (r"num_kv_shared_layers", 0),
    (r"(resampler_|perceiver_)?n_latents|query_num|num_query_tokens|mm_tokens_per_image|vision_soft_tokens_per_image", 4),
    (r"pixel_shuffle_ratio|downsample_ratio", 0.5),
    (r"full_attention_interval|attention_layer_interval", 2),
    (r"vision_feature_layer", -1),
)  # fmt: skip
"""Which entries of a configuration are set to what, by a pattern of the whole name; the first pattern that fits counts."""

LISTS: dict[str, list[Any]] = {
    "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]],
    "deepstack_visual_indexes": [1],
    "fullatt_block_indexes": [1],
    "window_block_indexes": [1],
}
PER_LAYER = ("layer_types", "attention_types", "mlp_layer_types")
ROPES = ("rope_parameters", "rope_scaling")
KEPT = ("quantization_config", "label2id", "id2label", "vocabulary_map")
ROPE = {"rope_type": "default", "rope_theta": 1e4}
MROPE = {**ROPE, "mrope_section": [2, 1, 1]}
VQ = {"base_channels": 32, "channel_multiplier": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": []}
"""A tokenizer of pictures that makes one code of 4 by 4 pixels."""
SAM = {
    "image_size": 64,
    "patch_size": 4,
    "output_channels": 16,
    "mlp_dim": 48,
    "global_attn_indexes": [1],
    "window_size": 4,
}


def shrink(config: Mapping[Any, Any]) -> dict[Any, Any]:
    """A configuration's dictionary with every size made small."""
    return {key: _shrunk(key, value) for key, value in config.items() if key != "per_layer_config"}


def _shrunk(key: Any, value: Any) -> Any:
    if not isinstance(key, str) or key in KEPT or value is None or isinstance(value, bool):
        return value
    if key in ROPES and isinstance(value, dict):
        return _shrunk_rope(value)
    if isinstance(value, dict):
        return shrink(value)
    if key in PER_LAYER and isinstance(value, list):
        kinds = list(dict.fromkeys(value))
        return (kinds * LAYERS)[:LAYERS]
    if key in LISTS and value:
        return copy.deepcopy(LISTS[key])
    size = next((size for pattern, size in SIZES if re.fullmatch(pattern, key)), None)
    if size is not None and isinstance(value, (int, float)):
        return size
    if size is not None and isinstance(value, (list, tuple)) and all(isinstance(item, int) for item in value):
        return type(value)([size] * len(value))
    return value


def _shrunk_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings for heads of 8: four frequencies, shared out among time, height and width."""
    rope = copy.deepcopy(dict(rope))
    for part in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if "mrope_section" in part:
            part["mrope_section"] = [2, 1, 1] if len(part["mrope_section"]) == 3 else [1, 1, 1, 1]
        if "partial_rotary_factor" in part:
            part["partial_rotary_factor"] = 1.0
    return rope


SPECIAL_NAME = re.compile(r".*(token_id|token_index|_token|patch_id|col_id)")
USUAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def renumber(config: dict[Any, Any], free: Iterator[int], given: dict[int, int]) -> None:
    """Gives special tokens ids below the small vocabulary; those that were equal stay equal."""
    for key, value in config.items():
        if isinstance(value, dict):
            renumber(value, free, given)
        elif key in USUAL and value is not None:
            config[key] = USUAL[key]
        elif (
            isinstance(key, str)
            and SPECIAL_NAME.fullmatch(key)
            and isinstance(value, int)
            and not isinstance(value, bool)
            and (value >= VOCAB or re.search("image|vision|video|boi|eoi|audio", key))
        ):
            if value not in given:
                given[value] = next(free)
            config[key] = given[value]


# --------------------------------------------------------------------------------------------- what single types need

Mend = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], None]
"""Changes (configuration, its text part, its vision part) in place; parts that are missing are the whole."""
MENDED: dict[str, Mend] = {}
VARIANTS: dict[str, Mend] = {}
ORIGINAL: dict[str, Mapping[str, Any]] = {}
"""Arguments without which a type's configuration cannot even be made at full size."""


def mends(*types: str) -> Callable[[Mend], Mend]:
    def register(mend: Mend) -> Mend:
        MENDED.update(dict.fromkeys(types, mend))
        return mend

    return register


@mends("qwen2_vl", "glm4v", "glm4v_moe", "glm46v", "glm_ocr", "glmga", "paddleocr_vl")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text["rope_parameters"] = {**MROPE, "partial_rotary_factor": 1.0}
    if config["model_type"].startswith("glm"):
        vision["out_hidden_size"] = 32


@mends("qwen2_5_vl")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text["rope_parameters"] = dict(MROPE)
    vision["window_size"] = 16


@mends("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text["rope_parameters"] = dict(MROPE)
    config |= {"vision_start_token_id": 150, "vision_end_token_id": 151}


@mends("ernie4_5_vl_moe")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text |= {
        "rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]},
        "moe_num_experts": 4,
        "moe_intermediate_size": [24, 24],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    }


@mends("gemma4")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size_per_layer_input": 8}
    config["vision_config"] = shrink(_defaults("gemma4_vision")) | {
        "num_hidden_layers": 2, "patch_size": 4, "pooling_kernel_size": 2, "position_embedding_size": 64,
        "default_output_length": 4, "num_key_value_heads": 4,
    }  # fmt: skip


@mends("llama4")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    vision |= {"intermediate_size": 128, "projector_input_dim": 32, "projector_output_dim": 32}
    text |= {
        "num_local_experts": 2, "num_experts_per_tok": 1, "no_rope_layers": [1, 1, 1, 0],
        "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
    }  # fmt: skip


@mends("mllama")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    vision |= {
        "max_num_tiles": 1, "patch_size": 8, "num_global_layers": 1, "num_hidden_layers": 2,
        "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]], "vision_output_dim": 64,
    }  # fmt: skip
    text["cross_attention_layers"] = [1]


@mends("kimi_k25", "mistral4")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text |= {"head_dim": 4, "num_key_value_heads": 4}


@mends("mistral_large4")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text |= {"num_key_value_heads": 4, "kv_source_layers": [0, 1, 2, 3]}


@mends("glm5_next")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text |= {"num_key_value_heads": 4, "qk_rope_head_dim": 0}


@mends("aria")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    config["projector_patch_to_query_dict"] = {"16": 4, 16: 4}


@mends("hy_v4_vl")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text["rope_parameters"] = {**(text.get("rope_parameters") or ROPE), "mrope_section": [1, 1, 0]}


@mends("apertus1p5")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    """The codes of pictures and sounds are tokens 20 to 27 and 28 to 31."""
    vision |= {**VQ, "codebook_size": 8, "embed_dim": 32, "latent_channels": 32, "spatial_scale_factor": 4}
    vision["channel_multiplier"] = [1, 1, 1]
    config["audio_config"] |= {
        "codebook_size": 4, "hidden_size": 32, "codebook_dim": 32, "num_filters": 8, "decoder_num_layers": 1,
        "upsampling_ratios": [2, 2], "num_lstm_layers": 1, "decoder_attention_num_groups": 4,
    }  # fmt: skip
    config |= {"image_token_offset": 20, "audio_token_offset": 28}
    text["rope_parameters"] = dict(ROPE)


@mends("chameleon")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    """The codes of pictures are tokens 20 to 27; Chameleon's names spell a code's digits as letters."""
    config["vq_config"] |= {
        **VQ,
        "num_embeddings": 8,
        "embed_dim": 32,
        "latent_channels": 32,
        "resolution": 16,
    }
    codes = {f"IMGIMG{chr(ord('A') + code)}Z": 20 + code for code in range(8)}
    config["vocabulary_map"] = {"<image>": 140, **codes}
    del config["image_token_id"]  # read from the map


@mends("emu3")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    """The codes of pictures are tokens 20 to 27, and each row of them ends with token 141."""
    config["vq_config"] |= {**VQ, "codebook_size": 8, "hidden_size": 32, "temporal_downsample_factor": 2}
    codes = {f"<|visual token {code:06d}|>": 20 + code for code in range(8)}
    config["vocabulary_map"] = {"<image>": 140, "<|extra_200|>": 141, **codes}
    del config["image_token_id"]  # read from the map


@mends("cohere_compass")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text["rope_parameters"] = {"full_attention": dict(MROPE)}


@mends("deepseek_ocr2")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text |= {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"] * 2, "head_dim": 8}
    vision["sam_config"] |= {**SAM, "downsample_channels": [16, 32]}


@mends("unlimited_ocr")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    vision["sam_config"] |= {**SAM, "downsample_channels": [16, 32]}
    vision["encoder_config"] |= {"image_size": 16, "patch_size": 8}


@mends("deepseek_vl_hybrid")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    config["high_res_vision_config"] |= SAM


@mends("dots3_note")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text |= {
        "num_key_value_heads": 4,
        "head_dim": 8,
        "qk_head_dim": 8,
        "index_topk": 64,
        "index_head_dim": 8,
        "index_n_heads": 4,
    }
    for tower in (vision, config["audio_config"]):
        tower |= {
            key: 32 for key in ("adapter_in_dim", "adapter_input_size", "adapter_out_dim") if key in tower
        }


@mends("gemma3n")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text |= {
        "intermediate_size": 48, "activation_sparsity_pattern": [0.0] * LAYERS,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }  # fmt: skip


@mends("diffusion_gemma")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text |= {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}


@mends("gemma4_unified")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    config["vision_config"] = _defaults("gemma4_unified_vision") | {
        "patch_size": 2, "pooling_kernel_size": 2, "mm_embed_dim": 32, "mm_posemb_size": 16, "output_proj_dims": 32,
    }  # fmt: skip


@mends("granite4_vision")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    vision["hidden_size"] = 64
    config |= {
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-1, 1]],
        "spatial_target_layers": [0, 1, 2, 3],
    }


@mends("granite_docling")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text |= {
        "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 0.35,
    }  # fmt: skip


@mends("hunyuan_vl")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text |= {"head_dim": 8, "rope_parameters": {**ROPE, "mrope_section": [1, 1, 1, 1]}}


@mends("inkling2", "inkling2_loop")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text["unpadded_vocab_size"] = VOCAB
    vision["projection_hidden_dim"] = 32


@mends("inkling_mm_model")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    vision["n_layers"] = 4
    text["logits_mup_width_multiplier"] = 1.0


@mends("minicpm_ocr", "minicpmv4_6", "minicpmv4_7")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    config["image_token_id"] = 140
    vision["insert_layer_id"] = config["insert_layer_id"] = 1


@mends("nemotron_h_omni")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    config["image_token_id"] = 140
    text["n_groups"] = 2


@mends("molmo2")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text["additional_vocab_size"] = 0
    vision["num_position_embeddings"] = 16
    config["adapter_config"] |= {"vision_feature_layer": [-1], "num_key_value_heads": 4}


@mends("muse_spark", "muse_glimmer")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    vision |= {"pos_emb_height": 4, "pos_emb_width": 4}
    config["out_hidden_size"] = 4 * 32
    text["layer_rope_theta"] = [1e4, 0, 1e4, 0]
    if "audio_config" in config:
        config["audio_config"] |= {"hidden_sizes": [8] * 4, "depths": [1] * 4}


@mends("qwen4_exp")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text |= {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64,
        "indexer_compress_ratio": 2, "hc_lowrank": 8, "rope_parameters": dict(MROPE),
    }  # fmt: skip


@mends("step3p7")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text |= {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_sliding_attention_heads": 4,
    }
    text["rope_parameters"] |= {"sliding_attention": dict(ROPE)}


def _variant(name: str) -> Callable[[Mend], Mend]:
    def register(mend: Mend) -> Mend:
        VARIANTS[name] = mend
        return mend

    return register


@_variant("gemma4:kv_shared")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    """The last two layers have no keys and values of their own, as in Gemma 4 E2B and E4B."""
    text["num_kv_shared_layers"] = 2


@_variant("minimax_m3_vl:sparse")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    """Every layer attends to the two blocks of two keys that an indexer selects."""
    text |= {
        "index_block_size": 2, "index_topk_blocks": 2, "index_local_blocks": 1,
        "layer_types": ["minimax_m3_sparse"] * LAYERS,
    }  # fmt: skip


@_variant("mistral_large4:sparse")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    """Every layer attends to the four keys that an indexer selects."""
    text["index_topk"] = 4


def text_decoder(model_type: str, **arguments: Any) -> Mend:
    """A variant with another text decoder."""

    def mend(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
        text = shrink(_defaults(model_type)) | {"tie_word_embeddings": False} | arguments
        renumber(text, iter(SPECIAL), {})
        config["text_config"] = text

    return mend


VARIANTS["llava:opt"] = text_decoder("opt", ffn_dim=48)
VARIANTS["llava:gpt_neox"] = text_decoder("gpt_neox")
VARIANTS["llava:gpt2"] = text_decoder("gpt2", n_positions=512)


# ---------------------------------------------------------------------------------------------------- layouts of pictures


@dataclass(frozen=True)
class Facts:
    """What layouts of pictures hang on."""

    config: Any
    accepted: frozenset[str]
    """Names of the arguments that the model's forward takes."""

    def vision(self, *names: str, default: Any) -> Any:
        """The first of ``names`` that the vision part of the configuration, or else the configuration, has."""
        for part in (getattr(self.config, "vision_config", None), self.config):
            for name in names:
                value = part.get(name) if isinstance(part, dict) else getattr(part, name, None)
                if value is not None:
                    return value[0] if isinstance(value, (list, tuple)) else value
        return default

    @property
    def size(self) -> int:
        return int(self.vision("image_size", "img_size", default=16))

    @property
    def patch(self) -> int:
        return int(self.vision("patch_size", default=4))

    @property
    def channels(self) -> int:
        return int(self.vision("in_channels", "num_channels", default=3))


@dataclass(frozen=True)
class Layout:
    """How one picture reaches the model."""

    pixels: Mapping[str, tuple[int, ...]]
    """Shapes of the tensors that hold pixels."""
    rest: Mapping[str, Any] = field(default_factory=dict)
    """What else describes one picture."""
    join: Mapping[str, int] = field(default_factory=dict)
    """Along which dimension pictures of a batch are put together, where it is not the first."""
    count: Mapping[str, int] = field(default_factory=dict)
    """What holds numbers of patches, and by how much they grow with each picture of a batch."""
    unit: bool = False
    """Pixels lie between 0 and 1."""

    def picture(self, seed: int) -> dict[str, Any]:
        """One picture's inputs, with pixels drawn from ``seed``."""
        drawn: dict[str, Any] = {}
        for index, (key, shape) in enumerate(self.pixels.items()):
            pixels = torch.randn(*shape, generator=torch.Generator().manual_seed(100 * seed + index))
            drawn[key] = pixels.sigmoid() if self.unit else pixels
        return {**drawn, **copy.deepcopy(dict(self.rest))}

    def joined(self, pictures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The inputs of several pictures put together."""
        together: dict[str, Any] = {}
        for key, first in pictures[0].items():
            parts = [picture[key] for picture in pictures]
            if step := self.count.get(key):
                parts = [part + index * step for index, part in enumerate(parts)]
            if isinstance(first, list):
                together[key] = [item for part in parts for item in part]
            else:
                together[key] = torch.cat(parts, dim=self.join.get(key, 0))
        return together


def layouts(facts: Facts) -> Iterator[Layout]:
    """Layouts that the model's arguments suggest, likelier ones first."""
    takes = facts.accepted
    if facts.config.model_type in LAYOUTS:
        yield LAYOUTS[facts.config.model_type](facts)
        return
    if "image_grid_thw" in takes:
        yield from _patches_in_a_grid(facts)
    if "spatial_shapes" in takes:
        shapes = {"spatial_shapes": torch.tensor([[4, 4]]), "pixel_attention_mask": torch.ones(1, 16).long()}
        yield Layout({"pixel_values": (1, 16, facts.channels * facts.patch**2)}, shapes)
    if "target_sizes" in takes:
        shape = (1, facts.channels, facts.patch, 16 * facts.patch)
        yield Layout({"pixel_values": shape}, {"target_sizes": torch.tensor([[4, 4]])}, {"pixel_values": 3})
    if "image_position_ids" in takes:
        yield Layout(
            {"pixel_values": (1, 16, facts.channels * facts.patch**2)},
            {"image_position_ids": _positions(4)},
            unit=True,
        )
    if "image_patches" in takes:
        yield Layout({"image_patches": (1, 4, facts.patch**2 * facts.channels)})
        return
    for size in dict.fromkeys((facts.size, 16, 32)):
        yield from _whole_pictures(facts, size)


LAYOUTS: dict[str, Callable[[Facts], Layout]] = {
    "deepseek_ocr2": lambda facts: Layout({"pixel_values": (1, 3, 64, 64)}, {"num_local_patches": [0]}),
    "deepseek_vl_hybrid": lambda facts: Layout(
        {"pixel_values": (1, 3, 16, 16), "high_res_pixel_values": (1, 3, 64, 64)}
    ),
    "unlimited_ocr": lambda facts: Layout(
        {"pixel_values": (1, 3, 64, 64), "pixel_values_local": (2, 3, 64, 64)},
        {"num_local_patches": [2], "patches_grid": [[1, 2]]},
    ),
    "gemma4_unified": lambda facts: Layout(
        {"pixel_values": (1, 16, 48)}, {"image_position_ids": _positions(4)}, unit=True
    ),
    "granite_docling": lambda facts: Layout(
        {"pixel_values": (1, 1, 3, 16, 16)}, {"pixel_attention_mask": torch.ones(1, 1).bool()}
    ),
    "inkling2": lambda facts: Layout(
        {"pixel_values": (4, 8, 8, 3)}, {"image_grid_thw": torch.tensor([[1, 2, 2]])}
    ),
    "inkling2_loop": lambda facts: Layout(
        {"pixel_values": (4, 8, 8, 3)}, {"image_grid_thw": torch.tensor([[1, 2, 2]])}
    ),
    "inkling_mm_model": lambda facts: Layout({"pixel_values": (4, 2, 4, 4, 3)}),
    "molmo2": lambda facts: Layout(
        {"pixel_values": (1, 16, 48)},
        {
            "image_token_pooling": torch.tensor(
                [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
            ),
            "image_grids": torch.tensor([[0, 0, 2, 2]]),
            "image_num_crops": torch.tensor([1]),
        },
        count={"image_token_pooling": 16},
    ),
    "nemotron_h_omni": lambda facts: Layout(
        {"pixel_values": (16, 3 * facts.patch**2)}, {"image_grid_hw": torch.tensor([[4, 4]])}
    ),
}
"""Layouts of single types that no general rule suggests."""


def _positions(side: int) -> Tensor:
    """Columns and rows of a square's patches, ``(1, patches, 2)``."""
    axis = torch.arange(side)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(1, side * side, 2)


def _patches_in_a_grid(facts: Facts) -> Iterator[Layout]:
    """4 by 4 patches, flattened, with the grid beside them."""
    area, channels = facts.patch**2, facts.channels
    rest = {"image_grid_thw": torch.tensor([[1, 4, 4]])}
    if "image_merge_sizes" in facts.accepted:
        rest["image_merge_sizes"] = torch.tensor([facts.vision("spatial_merge_size", default=2)])
    for frames in dict.fromkeys((facts.vision("temporal_patch_size", "patch_temporal", default=2), 1, 2)):
        yield Layout({"pixel_values": (16, channels * frames * area)}, rest)
    yield Layout({"pixel_values": (16, channels, facts.patch, facts.patch)}, rest)


def _whole_pictures(facts: Facts, size: int) -> Iterator[Layout]:
    """Square pictures, with what describes them where the model takes it."""
    takes, whole = facts.accepted, (1, 3, size, size)
    if "high_res_pixel_values" in takes:
        yield Layout({"pixel_values": whole, "high_res_pixel_values": (1, 3, 64, 64)})
    if "aspect_ratio_ids" in takes:
        ratios = {
            "aspect_ratio_ids": torch.ones(1, 1).long(),
            "aspect_ratio_mask": torch.ones(1, 1, 1).long(),
        }
        yield Layout({"pixel_values": (1, 1, 1, 3, size, size)}, ratios)
    if "num_local_patches" in takes:
        yield Layout(
            {"pixel_values": whole, "pixel_values_local": whole}, {"num_local_patches": torch.tensor([1])}
        )
    if "image_sizes" in takes:
        yield Layout({"pixel_values": whole}, {"image_sizes": torch.tensor([[size, size]])})
        sizes = {"image_sizes": torch.tensor([[size, 2 * size]])}
        yield Layout({"pixel_values": (1, 3, 3, size, size)}, sizes)
    if "pixel_attention_mask" in takes:
        mask = {"pixel_attention_mask": torch.ones(1, 1, size, size).bool()}
        yield Layout({"pixel_values": (1, 1, 3, size, size)}, mask)
    yield Layout({"pixel_values": whole})
    yield Layout({"pixel_values": (1, 1, 3, size, size)})


# --------------------------------------------------------------------------------------------------------------- inputs

IMAGE_TOKENS = ("image_token_id", "image_token_index")
OPENING = ("vision_start_token_id", "boi_token_id", "image_start_token_id", "boi_token_index")
CLOSING = ("vision_end_token_id", "eoi_token_id", "image_end_token_id", "eoi_token_index")


def _token(config: Any, options: Sequence[str]) -> int | None:
    found = (getattr(config, name, None) for name in options)
    return next((token for token in found if isinstance(token, int)), None)


def image_token(config: Any) -> int:
    """The id of the placeholder.

    Raises:
        NotBuilt: the configuration names none.
    """
    token = _token(config, IMAGE_TOKENS)
    if token is None:
        raise NotBuilt("its configuration names no image token, so that prompts have no placeholders")
    return token


def arguments(model: Any) -> frozenset[str]:
    """Names of the arguments that the model's forward takes."""
    return frozenset(inspect.signature(model.forward).parameters)


def lay_out(
    model: Any,
    texts: Sequence[list[int]],
    pictures: Sequence[Mapping[str, Any]],
    layout: Layout,
    placeholders: int,
) -> dict[str, Any]:
    """Left-padded inputs: each text with its picture after its first tokens."""
    config, image = model.config, image_token(model.config)
    opening, closing = ([] if (t := _token(config, name)) is None else [t] for name in (OPENING, CLOSING))
    middle = [*opening, *[image] * placeholders, *closing]
    rows = [text[:BEFORE] + middle + text[BEFORE:] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, **layout.joined(pictures)}
    takes = arguments(model)
    for key in ("mm_token_type_ids", "token_type_ids"):
        if key in takes:  # PaliGemma's token types tell the prompt from the answer, not text from pictures
            kinds = torch.zeros_like(ids) if config.model_type == "paligemma" else (ids == image).long()
            inputs[key] = kinds
    if "cross_attention_mask" in takes:
        inputs["cross_attention_mask"] = (((ids == image).cumsum(-1) > 0).long() * mask)[:, :, None, None]
    return inputs


# ---------------------------------------------------------------------------------------------------------------- build


@functools.cache
def build(name: str) -> Built:
    """A tiny model of a mapped type, or of ``type:variant``, with inputs that work. Made once for each process.

    Raises:
        NotBuilt: it cannot be made small, takes no placeholders, or generates by a ``generate`` of its own.
    """
    model_class = _class(name)
    if not hasattr(model_class, "generate"):
        raise NotBuilt("it generates no text")
    if model_class.generate is not GenerationMixin.generate:
        raise NotBuilt("it has a generate() of its own")
    if CONFIG_MAPPING[name.partition(":")[0]]().is_encoder_decoder:
        raise NotBuilt("it is an encoder-decoder")
    model = _with_weights(make(name))
    layout, placeholders = _found(model)
    inputs = lay_out(model, [list(TEXTS[0])], [layout.picture(0)], layout, placeholders)
    return Built(name, model, inputs, tuple(layout.pixels), placeholders, layout)


def make(name: str) -> Any:
    """The tiny model alone, with the weights that transformers draws; also of types that ``build`` refuses.

    Raises:
        NotBuilt: it cannot be made small.
    """
    try:
        config = tiny_config(name)
    except Exception as error:
        raise NotBuilt(f"its configuration cannot be made small: {_short(error)}") from error
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _class(name)(config).eval()
    except Exception as error:
        raise NotBuilt(f"it cannot be made small: {_short(error)}") from error


def _class(name: str) -> Any:
    return getattr(tf, MAPPED[name.partition(":")[0]])


def tiny_config(name: str) -> Any:
    """The small configuration of a type or variant."""
    model_type, _, variant = name.partition(":")
    config = shrink(_defaults(model_type))
    renumber(config, iter(range(140, VOCAB)), {})
    for mend in (MENDED.get(model_type), VARIANTS[name] if variant else None):
        if mend is not None:
            parts = (config.get(part) for part in ("text_config", "vision_config"))
            mend(config, *(part if isinstance(part, dict) else config for part in parts))
    return CONFIG_MAPPING[model_type].from_dict(config)


def _defaults(model_type: str) -> dict[str, Any]:
    config = CONFIG_MAPPING[model_type](**ORIGINAL.get(model_type, {})).to_dict()
    return {
        key: value for key, value in config.items() if key not in ("transformers_version", "architectures")
    }


def _with_weights(model: Any, *, seed: int = 5) -> Any:
    """Weights wide enough that logits differ between tokens, prompts and pictures by more than rounding."""
    head = model.get_output_embeddings() or model.language_model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    # A model with tied embeddings that sees mostly its last token repeats it for ever
    embedding, other = (0.15, 0.4) if tied else (0.5, 0.2)
    generator = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        if weight.ndim >= 2:
            scale = embedding if "embed" in key or "lm_head" in key else other
            weight.data.normal_(0, scale, generator=generator)
        elif "gate" in key and weight.numel() == 1:  # cross-attention that starts closed
            weight.data.fill_(1.0)
    head.weight.data[list(SPECIAL)] = 0
    model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=None)
    return model.eval()


def _found(model: Any) -> tuple[Layout, int]:
    """The first layout, and number of placeholders, that the model accepts and whose picture it sees.

    Raises:
        NotBuilt: there is none.
    """
    errors: list[str] = []
    for layout in layouts(Facts(model.config, arguments(model))):
        for placeholders in range(1, MOST_PLACEHOLDERS + 1):
            try:
                seen = picture_effect(model, layout, placeholders)
            except Exception as error:
                errors.append(_short(error))
                if _raised_by_the_vision_tower(error):
                    break
                continue
            if not seen > 0.01:
                errors.append("its picture does not change the logits")
                break
            if not _accepts(model, layout, placeholders + 1):
                return layout, placeholders
    reasons = {
        re.sub(r"\d+", "#", error): error for error in errors
    }  # the same for other numbers counts once
    raise NotBuilt("no layout of pictures is accepted: " + " | ".join(reasons.values())[:600])


def picture_effect(model: Any, layout: Layout, placeholders: int) -> float:
    """By how much another picture changes the last logits, at most."""
    rows = [
        lay_out(model, [list(TEXTS[0])], [layout.picture(seed)], layout, placeholders) for seed in range(2)
    ]
    with torch.no_grad():
        first, second = (model(**row).logits[0, -1] for row in rows)
    far = float((first - second).abs().max())
    return far if bool(torch.isfinite(first).all()) else float("nan")


def _accepts(model: Any, layout: Layout, placeholders: int) -> bool:
    """A model that does not compare numbers takes fewer placeholders than there are features, but never more."""
    if hasattr(model.config.get_text_config(), "cross_attention_layers"):
        return False  # one placeholder, whatever the picture
    try:
        picture_effect(model, layout, placeholders)
    except Exception:
        return False
    return True


def _raised_by_the_vision_tower(error: Exception) -> bool:
    return any(
        frame.name in ("get_image_features", "joined") for frame in traceback.extract_tb(error.__traceback__)
    )


def _short(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())[:160]
    return f"{type(error).__name__}: {message} ({where.filename.rpartition('/')[2]}:{where.lineno})"
