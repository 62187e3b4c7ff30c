"""Configurations of transformers' image-text-to-text types, made small.

``SIZES`` and ``LISTS`` are general rules on the entries of a configuration, by name. What they do not cover stands in
``MENDED``, by type; ``VARIANTS`` are changes of a type that matter in themselves.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB = 160
LAYERS = 4
SPECIAL = range(136, VOCAB)
"""Ids of placeholders and markers."""

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


Mend = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], None]
"""Changes (configuration, its text part, its vision part) in place; parts that are missing are the whole."""
MENDED: dict[str, Mend] = {}
VARIANTS: dict[str, Mend] = {}


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
    config["vision_config"] = shrink(defaults("gemma4_vision")) | {
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
    text |= {
        "num_key_value_heads": 4, "qk_rope_head_dim": 0, "linear_head_dim": 8, "linear_num_heads": 4, "index_head_dim": 8,
        "index_n_heads": 4,
    }  # fmt: skip


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
        "num_key_value_heads": 4, "head_dim": 8, "qk_head_dim": 8, "index_topk": 64, "index_head_dim": 8,
        "index_n_heads": 4, "per_layer_config": {},
    }  # fmt: skip
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
    config["vision_config"] = defaults("gemma4_unified_vision") | {
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


@mends("got_ocr2", "pp_chart2table")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    vision["image_size"] = 32


@mends("granite_docling")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    vision["scale_factor"] = 2
    text |= {
        "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 0.35,
    }  # fmt: skip


@mends("hunyuan_vl")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text |= {"head_dim": 8, "rope_parameters": {**ROPE, "mrope_section": [1, 1, 1, 1]}}


@mends("inkling2", "inkling2_loop")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    text |= {"unpadded_vocab_size": VOCAB, "n_layers_per_attn_res_block": 1}
    vision["projection_hidden_dim"] = 32
    if config["model_type"] == "inkling2_loop":  # the two layers in the middle run twice
        text |= {
            "loop_layer_index_start": 1,
            "loop_layer_index_end": 3,
            "loop_num_passes": 2,
            "loop_gate_rank": 8,
        }


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


def variant(name: str) -> Callable[[Mend], Mend]:
    def register(mend: Mend) -> Mend:
        VARIANTS[name] = mend
        return mend

    return register


@variant("gemma4:kv_shared")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    """The last two layers have no keys and values of their own, as in Gemma 4 E2B and E4B."""
    text["num_kv_shared_layers"] = 2


@variant("llama4:repaired")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    """The type's own configuration; what is repaired is the model (``REPAIRS`` in ``mapped.py``)."""


@variant("minimax_m3_vl:sparse")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    """Every layer attends to the two blocks of two keys that an indexer selects."""
    text |= {
        "index_block_size": 2, "index_topk_blocks": 2, "index_local_blocks": 1,
        "layer_types": ["minimax_m3_sparse"] * LAYERS,
    }  # fmt: skip


@variant("mistral_large4:sparse")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    """Every layer attends to the four keys that an indexer selects."""
    text["index_topk"] = 4


@variant("dots3_note:sparse")
@variant("hy_v4_vl:sparse")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    """Indexed layers attend to the four keys that an indexer selects."""
    text["index_topk"] = 4


@variant("qwen4_exp:sparse")
def _(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    """Indexed layers attend to the two blocks of two keys that an indexer selects."""
    text["indexer_budget"] = 4


def text_decoder(model_type: str, **arguments: Any) -> Mend:
    """A variant with another text decoder."""

    def mend(config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
        text = shrink(defaults(model_type)) | {"tie_word_embeddings": False} | arguments
        renumber(text, iter(SPECIAL), {})
        config["text_config"] = text

    return mend


VARIANTS["llava:opt"] = text_decoder("opt", ffn_dim=48)
VARIANTS["llava:gpt_neox"] = text_decoder("gpt_neox")
VARIANTS["llava:gpt2"] = text_decoder("gpt2", n_positions=512)


def tiny_config(name: str) -> Any:
    """The small configuration of a type or variant."""
    model_type, _, variant = name.partition(":")
    config = shrink(defaults(model_type))
    renumber(config, iter(range(140, VOCAB)), {})
    for mend in (MENDED.get(model_type), VARIANTS[name] if variant else None):
        if mend is not None:
            parts = (config.get(part) for part in ("text_config", "vision_config"))
            mend(config, *(part if isinstance(part, dict) else config for part in parts))
    return CONFIG_MAPPING[model_type].from_dict(config)


def defaults(model_type: str) -> dict[str, Any]:
    """The configuration that a type has without arguments, as a dictionary."""
    config = CONFIG_MAPPING[model_type]().to_dict()
    return {
        key: value for key, value in config.items() if key not in ("transformers_version", "architectures")
    }
