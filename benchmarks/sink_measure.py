"""Measures a decoder for ``sinks.py``: attention on the first token, massive activations, and sinks in pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sink_tasks import BACKCOPY, Backcopy, Gallery, backcopy_rows, picture_rows, prefix, text_rows
from torch import Tensor
from torch.nn.functional import cross_entropy

from keepsight.analysis.probe import probe
from keepsight.demo.model import IMAGE, PROMPT
from keepsight.source.prompts import prepare
from training.demo.train_data import NOTHING, Lines, Rows, pack

SINK_HEAD = 0.3
"""A head is a sink if it gives the first token more than this on average (Gu et al. 2024, arXiv 2410.10781)."""
SKIPPED = 8
"""The number of first rows that are left out: where a row sees few tokens, each of them gets much attention."""


@contextmanager
def _explicit(model: Any) -> Iterator[None]:
    """Open a block in which the model computes attention weights explicitly, since fast kernels do not return them."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def _read(model: Any, rows: Rows, features: Tensor | None = None) -> Any:
    """Returns a decoder's states and attention on packed rows.

    Args:
        model: the model.
        rows: the token rows.
        features: ``(rows, 64, 128)``, the tower's image tokens before the projector; None without pictures.
    """
    embedded = model.get_input_embeddings()(rows.ids)
    if features is not None:
        shown = model.model.multi_modal_projector(features)
        embedded = embedded.masked_scatter((rows.ids == IMAGE)[..., None], shown)
    with _explicit(model):
        return model.model.language_model(
            inputs_embeds=embedded,
            # Eager attention adds its mask to the scores, where other kernels take a mask of truth values.
            attention_mask=torch.where(rows.mask, 0.0, torch.finfo(torch.float32).min),
            position_ids=rows.positions,
            use_cache=False,
            output_attentions=True,
            output_hidden_states=True,
        )


def massive_figures(states: Tensor) -> dict[str, float | int]:
    """Returns for tokens ``(…, hidden)`` the means of max |x| / rms and of max |x| / median |x|, and the dimension that
    holds the maximum most often."""
    size = states.flatten(0, -2).abs()
    peak = size.amax(-1)
    return {
        "max_over_rms": _short(peak / size.square().mean(-1).sqrt()),
        "max_over_median": _short(peak / size.median(-1).values),
        "dimension": int(size.argmax(-1).mode().values),
    }


def _short(values: Tensor) -> float:
    """Returns the mean, rounded to three digits."""
    return round(float(values.mean()), 3)


def first_token(attention: Sequence[Tensor], learned: Tensor, states: Sequence[Tensor]) -> dict[str, Any]:
    """Returns by layer the attention that the first token gets and how massive it is; and the sink rate.

    Args:
        attention: by layer ``(batch, heads, rows, keys)``.
        learned: ``(batch, rows)`` bool, the rows that count.
        states: by layer ``(batch, rows, hidden)``, the states before it.
    """
    column = torch.stack([one[..., 0] for one in attention])
    weight = learned[None, :, None].float()
    by_head = (column * weight).sum((1, 3)) / weight.sum((1, 3))
    layers = []
    for index, x in enumerate(states):
        # Padding is no token to compare with, so only rows that count are looked at.
        others = x[:, 1:][learned[:, 1:]]
        layers.append(
            {
                "mass_mean": _short(by_head[index]),
                "mass_of_highest_head": _short(by_head[index].max()),
                "heads_above_0.3": int((by_head[index] > SINK_HEAD).sum()),
                "first_token": massive_figures(x[:, 0]),
                "norm_over_median_norm": _short(x[:, 0].norm(dim=-1) / others.norm(dim=-1).median()),
                "largest_max_over_rms_elsewhere": _short(
                    (others.abs().amax(-1) / others.square().mean(-1).sqrt()).max()
                ),
            }
        )
    return {"sink_rate": round(float((by_head > SINK_HEAD).float().mean()), 4), "layers": layers}


def backcopy_figures(
    model: Any, task: Backcopy, length: int, begin: bool = True, rows: int = 64
) -> dict[str, Any]:
    """Returns held-out losses in nats, after triggers and elsewhere, and what the first token gets."""
    # The seed is one that no step of training uses, so the rows are new to the model.
    made = backcopy_rows(task, np.random.default_rng(991), rows, length, begin)
    read = _read(model, made)
    with torch.no_grad():
        logits = model.lm_head(read.last_hidden_state)
    loss = cross_entropy(logits.flatten(0, 1), made.targets[BACKCOPY].flatten(), reduction="none")
    copied = task.after_trigger(made.ids).flatten()
    learned = torch.ones(made.ids.shape, dtype=torch.bool)
    learned[:, :SKIPPED] = False
    return {
        "rows": rows,
        "length": length,
        "loss_after_trigger": _short(loss[copied]),
        "loss_elsewhere": _short(loss[~copied]),
        **first_token(read.attentions, learned, read.hidden_states[:-1]),
    }


def text_figures(model: Any, lines: Lines, known: Gallery, rows: int = 32) -> dict[str, Any]:
    """Returns what the first token gets on captions without a picture."""
    pairs = list(zip(known.scenes[:rows], known.scenes[rows : 2 * rows], strict=True))
    made = text_rows(lines, pairs, np.random.default_rng(992))
    read = _read(model, made)
    learned = torch.stack([target != NOTHING for target in made.targets.values()]).any(0)
    return {"rows": rows, **first_token(read.attentions, learned, read.hidden_states[:-1])}


def picture_figures(
    model: Any, processor: Any, lines: Lines, known: Gallery, picture_first: bool = False, rows: int = 32
) -> dict[str, Any]:
    """Returns where the rows of true captions look, how massive image tokens are, and what ``keepsight calibrate`` says."""
    rng = np.random.default_rng(993)
    begin = prefix(lines, picture_first)
    made = pack([(begin, [[lines.describe(one, rng)]]) for one in known.scenes[:rows]])
    found = probe(model, prompts(processor, lines, known, picture_first, rows), prompt=PROMPT)
    kept = ("largest_energy", "largest_outlier", "visual_flagged", "attention_ratio", "visual_peak")
    return {
        **_pictured(model, made, len(begin), "caption", known),
        "calibrate": {
            "supported": found.supported,
            "reasons": list(found.reasons),
            "dims": list(found.dims),
            "tau": found.tau,
            **{key: found.evidence[key] for key in kept if key in found.evidence},
        },
    }


def beside_figures(
    model: Any, lines: Lines, known: Gallery, task: Backcopy, picture_first: bool, rows: int = 32
) -> dict[str, Any]:
    """Returns where rows of backcopy under a picture look, which need nothing of the picture."""
    rng = np.random.default_rng(994)
    shown = known.scenes[:rows]
    made = picture_rows(lines, shown, rng, task=task, questions=0, picture_first=picture_first)
    return _pictured(model, made, len(prefix(lines, picture_first)), BACKCOPY, known)


def _pictured(model: Any, made: Rows, begin: int, kind: str, known: Gallery) -> dict[str, Any]:
    """Returns by layer where the rows that learn ``kind`` look, and how massive image tokens are.

    Args:
        model: the model.
        made: the token rows, of which each holds a picture.
        begin: the number of tokens before every turn: the picture, and some text that is the same in all rows.
        kind: the kind of targets whose rows count.
        known: the pictures of the rows.
    """
    rows = len(made.ids)
    read = _read(model, made, known.features[:rows])
    learned = made.targets[kind] != NOTHING
    # All rows begin with the same prefix, so the first one tells where the picture stands in each.
    image = (made.ids == IMAGE)[0]
    shared = torch.arange(len(image)) < begin
    empty = known.empty[:rows].float()
    layers = []
    for attention, x in zip(read.attentions, read.hidden_states[:-1], strict=True):
        weight = learned[:, None, :, None].float()
        everywhere = (attention * weight).sum(2) / weight.sum(2)  # (batch, heads, keys)
        seen = everywhere[..., image]
        tokens = x[:, image]
        energy = tokens.abs().amax(-1) / tokens.square().mean(-1).sqrt()
        layers.append(
            {
                "picture": _short(seen.sum(-1)),
                "text_of_prefix": _short((everywhere * (shared & ~image)).sum(-1)),
                "tokens_without_object": _short((seen * empty[:, None]).sum(-1)),
                "highest_token": _short(seen.mean(1).amax(-1)),
                "highest_token_of_any_head": _short(seen.amax(-1).mean(0).max()),
                "image_tokens": massive_figures(tokens),
                "largest_max_over_rms": round(float(energy.max()), 3),
            }
        )
    return {
        "pictures": rows,
        "share_of_tokens_without_object": _short(empty),
        **first_token(read.attentions, learned, read.hidden_states[:-1]),
        "picture_by_layer": layers,
    }


def prompts(processor: Any, lines: Lines, known: Gallery, picture_first: bool, n: int) -> list[Any]:
    """Returns the model inputs of one question about each of the first ``n`` pictures."""
    made = []
    for one in known.scenes[:n]:
        inputs = prepare(processor, [one.image()], PROMPT)
        # The demo's chat template does not write the picture first, so the beginning of the prompt is replaced.
        if picture_first:
            asked = inputs["input_ids"][0, len(lines.image_prefix) :].tolist()
            inputs["input_ids"] = torch.tensor([[*prefix(lines, True), *asked]])
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        made.append(inputs)
    return made


def headline(figures: dict[str, Any]) -> str:
    """Returns the figures that matter, on one line."""
    layers = figures["layers"]
    best = max(one["mass_of_highest_head"] for one in layers)
    mean = max(one["mass_mean"] for one in layers)
    rms = max(one["first_token"]["max_over_rms"] for one in layers)
    said = (
        f"sink rate {figures['sink_rate']:.2f}, first token gets {mean:.2f} in its best layer, {best:.2f} in its best"
        f" head; max/rms {rms:.1f} of {math.sqrt(128):.1f}"
    )
    if "picture_by_layer" in figures:
        pictured = figures["picture_by_layer"]
        top = max(one["highest_token"] for one in pictured)
        peak = max(one["largest_max_over_rms"] for one in pictured)
        said += f"; highest image token {top:.3f}, image max/rms {peak:.1f}"
    if "calibrate" in figures:
        said += f", calibrate: {'accepted' if figures['calibrate']['supported'] else 'not confirmed'}"
    return said
