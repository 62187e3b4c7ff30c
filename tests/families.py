"""Tiny random models of every family under test, built from their configuration classes: no download.

Each family makes a model and left-padded inputs as its own processor would lay them out. Weights are drawn wide
enough that logits differ between tokens, pictures and prompts by more than rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from torch import Tensor

VOCAB = 99
IMAGE, START, END, BREAK = 90, 91, 92, 93
SPECIAL = list(range(88, VOCAB))
"""Ids that random weights must not sample: placeholders and markers."""

TEXT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "head_dim": 8,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass(frozen=True)
class Family:
    name: str
    config: Callable[[], Any]
    picture: Callable[[int], tuple[list[list[int]], dict[str, Tensor]]]
    """rows -> (the ids that stand for each row's picture, the image tensors)."""
    model_class: str
    token_types: str | None = None

    def model(self) -> Any:
        return _build(self.name)

    def inputs(self, prompts: list[list[int]], *, seed: int = 0, before: int = 1) -> dict[str, Any]:
        """Prompts of text ids, with the picture after the first ``before`` of them. Left-padded."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pictures, tensors = self.picture(len(prompts))
        rows = [
            prompt[:before] + picture + prompt[before:]
            for prompt, picture in zip(prompts, pictures, strict=True)
        ]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, **tensors}
        if self.token_types:
            inputs[self.token_types] = (ids == IMAGE).long()
        if self.name == "paligemma":
            inputs["token_type_ids"] = torch.zeros_like(ids)
        if self.name == "mllama":
            inputs |= _mllama_mask(ids, mask)
        return inputs

    def album(self, prompts: list[list[int]], places: list[tuple[int, ...]]) -> dict[str, Any]:
        """Prompts of text ids with several pictures each, one before the text id at every place. Left-padded.

        Only for families whose image tensors hold one picture after the other.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pictures, tensors = self.picture(sum(map(len, places)))
        left, rows = iter(pictures), []
        for prompt, before in zip(prompts, places, strict=True):
            row: list[int] = []
            for i, token in enumerate(prompt):
                row += [piece for _ in range(before.count(i)) for piece in next(left)]
                row.append(token)
            rows.append(row)
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        types = {self.token_types: (ids == IMAGE).long()} if self.token_types else {}
        return {"input_ids": ids, "attention_mask": mask, **tensors, **types}

    def text_only(self, prompt: list[int]) -> dict[str, Any]:
        """One prompt written without a picture."""
        ids = torch.tensor([prompt])
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.token_types or self.name == "paligemma":
            inputs[self.token_types or "token_type_ids"] = torch.zeros_like(ids)
        return inputs

    def uncached_logits(self, inputs: dict[str, Any], generated: Tensor) -> Tensor:
        """Next-token logits ``(vocab,)`` of one unpadded prompt and what follows it: one full forward, no cache."""
        model = self.model()
        new = len(generated)
        inputs = dict(inputs)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], generated[None]], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        for key in ("token_type_ids", "mm_token_type_ids"):
            if key in inputs:
                value = 1 if self.name == "paligemma" else 0
                inputs[key] = torch.cat([inputs[key], inputs[key].new_full((1, new), value)], dim=1)
        if "cross_attention_mask" in inputs:
            mask = inputs["cross_attention_mask"]
            inputs["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].repeat(1, new, 1, 1)], dim=1)
        with torch.no_grad():
            return model(**inputs, use_cache=False).logits[0, -1]

    def row(self, prompts: list[list[int]], index: int, *, seed: int = 0) -> dict[str, Any]:
        """Row ``index`` of ``inputs(prompts)`` as a batch of its own, without its padding."""
        both = self.inputs(prompts, seed=seed)
        alone = self.inputs([prompts[index]], seed=seed)
        share = {key: len(value) // len(prompts) for key, value in both.items()}
        for key, value in both.items():
            if key not in {
                "input_ids",
                "attention_mask",
                "token_type_ids",
                "mm_token_type_ids",
                "cross_attention_mask",
            }:
                alone[key] = value[index * share[key] : (index + 1) * share[key]]
        return alone


@functools.cache
def _build(name: str) -> Any:
    family = FAMILIES[name]
    torch.manual_seed(sum(map(ord, name)))
    model = getattr(tf, family.model_class)(family.config()).eval()
    generator = torch.Generator().manual_seed(7)
    for key, weight in model.named_parameters():
        if weight.ndim >= 2:
            scale = 0.6 if "embed" in key or "lm_head" in key else 0.25
            if (
                "gemma" in name
            ):  # tied embeddings: a model that sees mostly its last token repeats it for ever
                scale = 0.12 if "embed" in key or "lm_head" in key else 0.5
            weight.data.normal_(0, scale, generator=generator)
        elif "gate" in key:  # Mllama's cross-attention starts closed
            weight.data.fill_(1.0)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 2
    return model


def _pixels(*shape: int) -> Tensor:
    return torch.randn(*shape)


def _llava() -> Any:
    vision = tf.CLIPVisionConfig(**VISION, image_size=16, patch_size=8, projection_dim=32)
    return tf.LlavaConfig(
        vision_config=vision, text_config=tf.LlamaConfig(**TEXT), image_token_id=IMAGE, image_seq_length=4,
        vision_feature_layer=-1, tie_word_embeddings=False,
    )  # fmt: skip


def _llava_next() -> Any:
    vision = tf.CLIPVisionConfig(**VISION, image_size=16, patch_size=8, projection_dim=32)
    return tf.LlavaNextConfig(
        vision_config=vision, text_config=tf.LlamaConfig(**TEXT), image_token_id=IMAGE, vision_feature_layer=-1,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]], tie_word_embeddings=False,
    )  # fmt: skip


def _llava_next_picture(rows: int) -> tuple[list[list[int]], dict[str, Tensor]]:
    # 16x32 picture: base tile of 4 tokens, two tiles of 2x2 joined to 2x4 plus a newline per row
    return [[IMAGE] * (4 + 2 * 5)] * rows, {
        "pixel_values": _pixels(rows, 3, 3, 16, 16),
        "image_sizes": torch.tensor([[16, 32]] * rows),
    }


def _onevision() -> Any:
    vision = tf.SiglipVisionConfig(**VISION, image_size=16, patch_size=8, vision_use_head=False)
    return tf.LlavaOnevisionConfig(
        vision_config=vision, text_config=tf.Qwen2Config(**TEXT), image_token_id=IMAGE, video_token_id=94,
        vision_feature_layer=-1, image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]], tie_word_embeddings=False,
    )  # fmt: skip


def _qwen_vision() -> dict[str, Any]:
    return {"depth": 2, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}


def _qwen_tokens() -> dict[str, Any]:
    return {
        "image_token_id": IMAGE,
        "video_token_id": 94,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }


def _rope() -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}


def _qwen2_vl() -> Any:
    return tf.Qwen2VLConfig(
        vision_config={**_qwen_vision(), "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
        text_config={**TEXT, "rope_parameters": _rope()}, **_qwen_tokens(), tie_word_embeddings=False,
    )  # fmt: skip


def _qwen2_5_vl() -> Any:
    return tf.Qwen2_5_VLConfig(
        vision_config={
            **_qwen_vision(), "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32,
            "window_size": 16, "fullatt_block_indexes": [1],
        },
        text_config={**TEXT, "rope_parameters": _rope()}, **_qwen_tokens(), tie_word_embeddings=False,
    )  # fmt: skip


def _qwen3_vl() -> Any:
    return tf.Qwen3VLConfig(
        vision_config={
            **_qwen_vision(), "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        },
        text_config={**TEXT, "rope_parameters": _rope()}, **_qwen_tokens(), tie_word_embeddings=False,
    )  # fmt: skip


def _qwen_picture(rows: int) -> tuple[list[list[int]], dict[str, Tensor]]:
    # 4x6 patches merged 2x2: 6 tokens; a patch is 3 channels x 2 frames x 4 x 4
    return [[START, *[IMAGE] * 6, END]] * rows, {
        "pixel_values": _pixels(rows * 24, 96),
        "image_grid_thw": torch.tensor([[1, 4, 6]] * rows),
    }


def _internvl() -> Any:
    return tf.InternVLConfig(
        vision_config={**VISION, "image_size": [16, 16], "patch_size": [4, 4]},
        text_config=tf.Qwen2Config(**TEXT), image_token_id=IMAGE, image_seq_length=4, downsample_ratio=0.5,
        vision_feature_layer=-1, tie_word_embeddings=False,
    )  # fmt: skip


def _gemma3() -> Any:
    return tf.Gemma3Config(
        text_config={
            **TEXT, "sliding_window": 8, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={**VISION, "image_size": 16, "patch_size": 4, "vision_use_head": False},
        image_token_id=IMAGE, boi_token_id=START, eoi_token_id=END, mm_tokens_per_image=4,
    )  # fmt: skip


def _paligemma() -> Any:
    return tf.PaliGemmaConfig(
        text_config={**TEXT, "model_type": "gemma"},
        vision_config={**VISION, "image_size": 16, "patch_size": 8, "vision_use_head": False},
        image_token_id=IMAGE, projection_dim=32,
    )  # fmt: skip


def _idefics3() -> Any:
    return tf.Idefics3Config(
        text_config=tf.LlamaConfig(**TEXT), vision_config={**VISION, "image_size": 16, "patch_size": 4},
        image_token_id=IMAGE, scale_factor=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip


def _smolvlm() -> Any:
    return tf.SmolVLMConfig(
        text_config=tf.LlamaConfig(**TEXT), vision_config={**VISION, "image_size": 16, "patch_size": 4},
        image_token_id=IMAGE, scale_factor=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip


def _mistral3() -> Any:
    return tf.Mistral3Config(
        text_config=tf.MistralConfig(**{**TEXT, "sliding_window": None}),
        vision_config=tf.PixtralVisionConfig(**VISION, image_size=16, patch_size=4), image_token_id=IMAGE,
        spatial_merge_size=2, vision_feature_layer=-1, tie_word_embeddings=False,
    )  # fmt: skip


def _mistral3_picture(rows: int) -> tuple[list[list[int]], dict[str, Tensor]]:
    return [[IMAGE, IMAGE, BREAK, IMAGE, IMAGE, END]] * rows, {
        "pixel_values": _pixels(rows, 3, 16, 16),
        "image_sizes": torch.tensor([[16, 16]] * rows),
    }


def _pixtral() -> Any:
    return tf.LlavaConfig(
        text_config=tf.MistralConfig(**{**TEXT, "sliding_window": None}),
        vision_config=tf.PixtralVisionConfig(**{**VISION, "hidden_size": 24, "head_dim": 6}, image_size=16, patch_size=8),
        image_token_id=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=False,
    )  # fmt: skip


def _mllama() -> Any:
    return tf.MllamaConfig(
        text_config={
            **TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 4,
            "image_size": 16, "patch_size": 8, "max_num_tiles": 1, "vision_output_dim": 64,
            "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]],
        },
        image_token_id=IMAGE,
    )  # fmt: skip


def _mllama_picture(rows: int) -> tuple[list[list[int]], dict[str, Tensor]]:
    return [[IMAGE]] * rows, {
        "pixel_values": _pixels(rows, 1, 1, 3, 16, 16),
        "aspect_ratio_ids": torch.ones(rows, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(rows, 1, 1, dtype=torch.long),
    }


def _mllama_mask(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    seen = ((ids == IMAGE).cumsum(-1) > 0).long() * mask
    return {"cross_attention_mask": seen[:, :, None, None]}


def _plain(count: int, *shape: int) -> Callable[[int], tuple[list[list[int]], dict[str, Tensor]]]:
    return lambda rows: ([[IMAGE] * count] * rows, {"pixel_values": _pixels(rows, *shape)})


def _gemma3_picture(rows: int) -> tuple[list[list[int]], dict[str, Tensor]]:
    return [[START, *[IMAGE] * 4, END]] * rows, {"pixel_values": _pixels(rows, 3, 16, 16)}


def _idefics_picture(rows: int) -> tuple[list[list[int]], dict[str, Tensor]]:
    return [[IMAGE] * 4] * rows, {
        "pixel_values": _pixels(rows, 1, 3, 16, 16),
        "pixel_attention_mask": torch.ones(rows, 1, 16, 16, dtype=torch.bool),
    }


FAMILIES = {
    family.name: family
    for family in (
        Family("llava", _llava, _plain(4, 3, 16, 16), "LlavaForConditionalGeneration"),
        Family("llava_next", _llava_next, _llava_next_picture, "LlavaNextForConditionalGeneration"),
        Family("llava_onevision", _onevision, _llava_next_picture, "LlavaOnevisionForConditionalGeneration"),
        Family(
            "qwen2_vl",
            _qwen2_vl,
            _qwen_picture,
            "Qwen2VLForConditionalGeneration",
            token_types="mm_token_type_ids",
        ),
        Family(
            "qwen2_5_vl",
            _qwen2_5_vl,
            _qwen_picture,
            "Qwen2_5_VLForConditionalGeneration",
            token_types="mm_token_type_ids",
        ),
        Family(
            "qwen3_vl",
            _qwen3_vl,
            _qwen_picture,
            "Qwen3VLForConditionalGeneration",
            token_types="mm_token_type_ids",
        ),
        Family("internvl", _internvl, _plain(4, 3, 16, 16), "InternVLForConditionalGeneration"),
        Family(
            "gemma3", _gemma3, _gemma3_picture, "Gemma3ForConditionalGeneration", token_types="token_type_ids"
        ),
        Family("paligemma", _paligemma, _plain(4, 3, 16, 16), "PaliGemmaForConditionalGeneration"),
        Family("idefics3", _idefics3, _idefics_picture, "Idefics3ForConditionalGeneration"),
        Family("smolvlm", _smolvlm, _idefics_picture, "SmolVLMForConditionalGeneration"),
        Family("mistral3", _mistral3, _mistral3_picture, "Mistral3ForConditionalGeneration"),
        Family("pixtral", _pixtral, _mistral3_picture, "LlavaForConditionalGeneration"),
        Family("mllama", _mllama, _mllama_picture, "MllamaForConditionalGeneration"),
    )
}
