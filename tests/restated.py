"""Greedy generation through ``eager.run``, step by step from scratch, next to the package's own scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from eager import embed
from families import FAMILIES, IMAGE, SPECIAL
from torch import Tensor

from keepsight import Method, mitigate
from keepsight.target import TOKEN_KEYS

PROMPT = [1, 10, 11, 12, 13]
NAMES = ["llava", "internvl"]
"""Two families with different text decoders: Llama and Qwen2, the second with biased projections."""
STEPS = 5


def compare(
    name: str, recipe: Method, logits: Callable[[Any, dict[str, Tensor], Tensor, int], Tensor]
) -> None:
    """The package's scores at every step equal ``logits(model, inputs, generated, prompt_length)`` up to a constant.

    Also that they differ from plain generation by much more than the tolerance, so that agreement means something. Both for
    a prompt with one picture, and for the same prompt with two of them.
    """
    for inputs in (FAMILIES[name].inputs([PROMPT]), two_pictures(name)):
        _compare(name, recipe, logits, inputs)


def two_pictures(name: str, prompt: list[int] = PROMPT) -> dict[str, Any]:
    """One prompt with a picture after each of its first two ids."""
    family = FAMILIES[name]
    one, other = (family.inputs([prompt], seed=seed) for seed in (0, 1))
    picture = family.picture(1)[0][0]
    ids = torch.tensor([[prompt[0], *picture, prompt[1], *picture, *prompt[2:]]])
    inputs = {
        # Idefics lists the pictures of a prompt in the second dimension.
        key: torch.cat([value, other[key]], dim=1 if "pixel_attention_mask" in one else 0)
        for key, value in one.items()
        if key not in TOKEN_KEYS
    }
    if family.token_types:
        inputs[family.token_types] = (ids == IMAGE).long()
    if name == "paligemma":
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **inputs}


def _compare(
    name: str,
    recipe: Method,
    logits: Callable[[Any, dict[str, Tensor], Tensor, int], Tensor],
    inputs: dict[str, Any],
) -> None:
    model = FAMILIES[name].model()
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
