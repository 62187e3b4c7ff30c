"""A tiny Qwen2-VL with random weights, a tokenizer and a processor, whose heads of 64 vLLM's attention on a CPU takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from keepsight.demo.model import checkpoint

MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PROMPT = "USER: <|vision_start|><|image_pad|><|vision_end|> Describe this image. ASSISTANT:"


def build(folder: Path) -> Path:
    """Writes the checkpoint into ``folder`` and returns it."""
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
    )

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(checkpoint() / "tokenizer.json"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    start, end, image, video = (tokenizer.convert_tokens_to_ids(mark) for mark in MARKS)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
    }  # fmt: skip
    vision = {
        "depth": 2, "embed_dim": 128, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
    }  # fmt: skip
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=image, video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(7)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            scale = 0.5 if "embed_tokens" in name or "lm_head" in name else 0.12
            weight.data.normal_(0, scale, generator=generator)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
    model.save_pretrained(folder)
    pixels: dict[str, Any] = {"min_pixels": 56 * 56, "max_pixels": 84 * 84}
    Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels), tokenizer=tokenizer, chat_template="{{ messages }}",
        video_processor=_video_processor(),
    ).save_pretrained(folder)  # fmt: skip
    written = json.loads((folder / "config.json").read_text())
    written["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(written, indent=1))
    return folder


def _video_processor() -> Any:
    from transformers import Qwen2VLVideoProcessor

    return Qwen2VLVideoProcessor()
