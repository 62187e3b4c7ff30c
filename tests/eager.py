"""A slow LLaVA in plain tensor operations, for tests: every formula of the papers written out once more, sharing no code.

One unpadded prompt, no cache, float32. ``run`` goes through the decoder layer by layer and lets a test change what it likes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Change = Callable[[int, Tensor], Tensor]


def nothing(_layer: int, value: Tensor) -> Tensor:
    return value


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    half = x.shape[-1] // 2
    angles = positions[:, None] * theta ** (-torch.arange(half) / half)
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def embed(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """``(tokens, hidden)``: text embeddings with the picture's features in their places."""
    ids = inputs["input_ids"][0]
    hidden = model.get_input_embeddings()(ids).clone()
    if "pixel_values" in inputs:
        features = torch.cat(list(model.model.get_image_features(inputs["pixel_values"]).pooler_output))
        hidden[ids == model.config.image_token_id] = features
    return hidden


@torch.no_grad()
def run(
    model: Any,
    hidden: Tensor,
    *,
    scores: Change = nothing,
    probabilities: Change = nothing,
    heads: Change = nothing,
    mlp: Change = nothing,
    enter: Change = nothing,
    leave: Change = nothing,
) -> tuple[Tensor, list[Tensor]]:
    """Logits of the last token, and the residual stream after every layer. Changes get ``(layer, value)``:

    scores and probabilities ``(heads, tokens, tokens)``, heads ``(tokens, heads, dim)``, the others ``(tokens, hidden)``.
    """
    text, decoder = model.config.text_config, model.get_decoder()
    count, groups, dim = text.num_attention_heads, text.num_key_value_heads, text.head_dim
    positions, eps = torch.arange(len(hidden)).float(), text.rms_norm_eps
    future = torch.ones(len(hidden), len(hidden), dtype=torch.bool).triu(1)
    stream = []
    for index, layer in enumerate(decoder.layers):
        hidden = enter(index, hidden)
        x = rms(hidden, layer.input_layernorm.weight, eps)

        def split(projection: Any, number: int, x: Tensor = x) -> Tensor:
            return projection(x).view(len(x), number, dim).transpose(0, 1)

        attention = layer.self_attn
        theta = text.rope_parameters["rope_theta"]
        query = rotate(split(attention.q_proj, count), positions, theta)
        key = rotate(split(attention.k_proj, groups), positions, theta).repeat_interleave(
            count // groups, dim=0
        )
        value = split(attention.v_proj, groups).repeat_interleave(count // groups, dim=0)
        raw = scores(index, query @ key.transpose(-1, -2) / dim**0.5)
        weights = probabilities(index, raw.masked_fill(future, -torch.inf).softmax(-1))
        out = heads(index, (weights @ value).transpose(0, 1))
        hidden = hidden + attention.o_proj(out.reshape(len(hidden), -1))
        x = rms(hidden, layer.post_attention_layernorm.weight, eps)
        gated = torch.nn.functional.silu(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x)
        hidden = leave(index, hidden + mlp(index, layer.mlp.down_proj(gated)))
        stream.append(hidden)
    logits = model.get_output_embeddings()(rms(hidden, decoder.norm.weight, eps)[-1])
    return logits, stream
