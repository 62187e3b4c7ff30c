"""Tiny models with attention sinks planted in their weights: one dimension, massive on the first token and on one of the
picture's, and heads that look for it. And the same models without.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import families
import torch
import transformers as tf
from families import BREAK, END, FAMILIES, IMAGE
from torch import Tensor, nn

NAMES = ["llava", "internvl", "idefics3", "mistral3"]
WIDTH, LAYERS, HEADS, TOKENS = 64, 6, 4, 64
DIM, SPOT = 11, 37
CONSTANT = 20
"""A dimension that every text token holds, so that queries can ask for the sink."""


class WithSink(nn.Module):
    """A projector whose output has a massive value at one place."""

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = self.projector(*args, **kwargs).clone()
        out[..., SPOT, DIM] = 1000.0
        return out


def build(name: str, *, sinks: bool = True, seed: int = 0) -> Any:
    """A model of a family, six layers deep, whose picture makes 64 tokens."""
    with patch.dict(families.TEXT, hidden_size=WIDTH, num_hidden_layers=LAYERS, head_dim=16):
        config = FAMILIES[name].config()
    config.vision_config.image_size = [64, 64] if name == "internvl" else 64
    if name in ("llava", "internvl"):
        config.image_seq_length = TOKENS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(tf, FAMILIES[name].model_class)(config).eval()
        for key, weight in model.named_parameters():
            if weight.ndim >= 2:
                weight.data.normal_(0, 0.5 if "embed" in key else 0.12)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 2
    if sinks:
        _plant(model)
    return model


@torch.no_grad()
def _plant(model: Any) -> None:
    owner = "connector" if hasattr(model.model, "connector") else "multi_modal_projector"
    setattr(model.model, owner, WithSink(getattr(model.model, owner)))
    embedding = model.get_input_embeddings().weight
    embedding[:, DIM] = 0.0
    embedding[:, CONSTANT] = 3.0
    embedding[1, DIM] = 1000.0
    slow = torch.arange(7, WIDTH, 16)  # the pair of a head's entries that its rotary embedding turns least
    for layer in model.get_decoder().layers:
        for projection, dim, size in (
            (layer.self_attn.q_proj, CONSTANT, 1.0),
            (layer.self_attn.k_proj, DIM, 1.2),
        ):
            rows = slow[slow < projection.weight.shape[0]]
            projection.weight[rows, dim] = size


def prompt(name: str, seed: int = 0, question: tuple[int, ...] = (10, 11, 12, 13)) -> dict[str, Tensor]:
    """Inputs with a random picture after the first token."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 1, 3, 64, 64) if name == "idefics3" else (1, 3, 64, 64)
    picture = [IMAGE] * TOKENS
    if name == "mistral3":
        picture = ([IMAGE] * 8 + [BREAK]) * 8
        picture[-1] = END
    ids = torch.tensor([[1, *picture, *question]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(shape, generator=generator),
    }
    if name == "idefics3":
        inputs["pixel_attention_mask"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    if name == "mistral3":
        inputs["image_sizes"] = torch.tensor([[64, 64]])
    return inputs
