"""Greedy generation through ``eager.run``, step by step from scratch, next to the package's own scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from eager import embed
from families import FAMILIES, SPECIAL
from torch import Tensor

from keepsight import Method, mitigate

PROMPT = [1, 10, 11, 12, 13]
NAMES = ["llava", "internvl"]
"""Two families with different text decoders: Llama and Qwen2, the second with biased projections."""
STEPS = 5


def compare(
    name: str, recipe: Method, logits: Callable[[Any, dict[str, Tensor], Tensor, int], Tensor]
) -> None:
    """The package's scores at every step equal ``logits(model, inputs, generated, prompt_length)`` up to a constant.

    Also that they differ from plain generation by much more than the tolerance, so that agreement means something.
    """
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs([PROMPT])
    options: dict[str, Any] = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "suppress_tokens": SPECIAL}
    kept = [i for i in range(99) if i not in SPECIAL and i != 2]
    with mitigate(model, recipe):
        out = model.generate(**inputs, **options, output_scores=True, return_dict_in_generate=True)
    plain = model.generate(**inputs, **options, output_scores=True, return_dict_in_generate=True)
    length = inputs["input_ids"].shape[1]
    for step, scores in enumerate(out.scores):
        expected = logits(model, inputs, out.sequences[:, length : length + step], length)
        ours = scores[0, kept].log_softmax(-1)
        torch.testing.assert_close(ours, expected[kept].log_softmax(-1), atol=1e-5, rtol=1e-5)
    moved = (out.scores[0][0, kept].log_softmax(-1) - plain.scores[0][0, kept].log_softmax(-1)).abs().max()
    assert moved > 0.01


def stream(model: Any, inputs: dict[str, Tensor], generated: Tensor) -> Tensor:
    """The embedded prompt with its picture, and what was generated."""
    with torch.no_grad():
        return torch.cat([embed(model, inputs), model.get_input_embeddings()(generated[0])])


def text_stream(model: Any, generated: Tensor) -> Tensor:
    with torch.no_grad():
        return model.get_input_embeddings()(torch.cat([torch.tensor(PROMPT), generated[0]]))
