"""Plants sinks in the demo model's weights, for ``sinks.py --planted``, and measures what they take and what VAR gives back.

A dimension of the residual stream that the model hardly uses is cleared everywhere, then made massive at ``<s>`` and, by
one hidden unit of the projector, at the image tokens that look most like background: three of 64 on average. From layer 2 on
every head's keys read that dimension, along the mean direction of its queries, as strongly as puts the wanted share of
attention there. Values do not read it, so attention on it is lost. The architecture is still the demo's, and nothing
of this was learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from demo_methods import compare_methods, differences
from sink_tasks import Gallery
from torch import Tensor, nn

from keepsight import VAR, Target
from keepsight.analysis.probe import probe
from keepsight.attention_mods.var import scaled_tau, sink_score
from keepsight.demo.model import BOS, PROMPT, load
from keepsight.engines.hf.patching import editing
from keepsight.eval.chair.report import Report
from keepsight.eval.stats.bootstrap import paired
from keepsight.experiments.compare import Comparison, Row
from keepsight.parts import Edit, HookContext
from keepsight.source.prompts import prepare

MASSIVE = 1000.0
"""The value of the planted dimension at ``<s>``, and at image tokens that lie one standard deviation of the detector above
its threshold."""
SINKS = 3 / 64
"""The share of image tokens above the detector's threshold."""
SHARPNESS = 50.0
"""The factor on the input of the detector's GELU, per standard deviation. It is so large that hardly a token falls into the
negative dip of the function."""
FIRST_LAYER = 2
"""The first layer whose heads look for sinks, as it is the first one that VAR acts on."""
SHARES = (0.0, 0.5, 0.7)
"""The wanted shares of a prompt's attention on sinks. At 0 the tokens are massive and empty, but no head looks for them."""
SPLIT = "test-shifted"
RATES = ("chair_i", "chair_s", "recall")


class _Rows(Edit):
    """An edit that observes the rows after the picture."""

    def __init__(self, layers: range) -> None:
        self.layers = frozenset(layers)

    def rows(self, context: HookContext) -> Tensor:
        last = context.image.shape[1] - 1 - context.image.flip(-1).int().argmax(-1)
        return context.row_numbers()[None] > last[:, None]


class _Scores(_Rows):
    """Records a layer's scaled scores, with −inf for what a row may not see."""

    def attn_scores(self, scores: Tensor, image: Tensor, context: HookContext) -> Tensor:
        first = int(context.row_numbers()[self.rows(context)[0]][0])
        # Edits get scores before the mask, so the mask is applied here:
        # row i of these is token ``first + i`` of the prompt.
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(first + 1)
        self.seen = scores.masked_fill(future, -torch.inf)
        return scores


class Meter(_Rows):
    """Adds up where rows after the picture look, by layer: visual sinks, ``<s>``, other image tokens, text.

    It also records what VAR's rule for image-centric heads lets through: the share of heads and rows, and their attention
    on sinks.
    """

    NAMES = ("visual_sinks", "first_token", "other_image", "text", "image_centric", "sinks_in_image_centric")

    def __init__(self, layers: range, dim: int) -> None:
        super().__init__(layers)
        self.dim = dim
        self.sinks: dict[int, Tensor] = {}
        self.total = torch.zeros(len(layers), len(self.NAMES), dtype=torch.float64)
        self.rows_seen = torch.zeros(len(layers), dtype=torch.float64)

    def resid_pre(self, hidden: Tensor, context: HookContext) -> None:
        # The prompt is read in the first pass, and generated tokens are never sinks.
        if context.first == 0:
            high = sink_score(hidden, (self.dim,)) >= scaled_tau(hidden.shape[-1])
            self.sinks[context.layer] = high & context.image

    def attn_pattern(self, probs: Tensor, image: Tensor, context: HookContext) -> Tensor:
        sinks = torch.zeros_like(image)
        known = self.sinks[context.layer]
        sinks[:, : known.shape[1]] = known
        drained, clear = (
            (probs * columns[:, None, None]).sum(-1) for columns in (sinks, image & ~sinks)
        )  # each (batch, heads, rows)
        start = probs[..., 0]
        centric = (drained + clear >= VAR.mass) & (clear >= VAR.ratio * (drained + clear))
        centric &= sinks.any(-1)[:, None, None]
        text = 1 - drained - clear - start
        seen = torch.stack([drained, start, clear, text, centric, (drained + start) * centric], -1)
        self.total[context.layer] += seen.double().sum((0, 1, 2)) / probs.shape[1]
        self.rows_seen[context.layer] += probs.shape[0] * probs.shape[2]
        return probs

    def shares(self) -> dict[str, list[float]]:
        """Returns the mean share of each place, by layer."""
        mean = (self.total / self.rows_seen[:, None]).T.tolist()
        return {name: [round(one, 4) for one in row] for name, row in zip(self.NAMES, mean, strict=True)}


@torch.no_grad()
def quietest_dimension(model: Any, inputs: Any) -> int:
    """Returns the dimension with the least share of the residual stream's energy, over layers and tokens."""
    states = model(**inputs, output_hidden_states=True).hidden_states[:-1]
    # Shares of each token's energy are compared, so layers and tokens with long vectors do not decide alone.
    energy = [x.square() / x.square().sum(-1, keepdim=True) for x in states]
    return int(torch.stack([one.mean((0, 1)) for one in energy]).mean(0).argmin())


@torch.no_grad()
def clear(model: Any, dim: int) -> None:
    """Change the weights so that nothing writes the dimension any more, and the head does not read it."""
    decoder = model.model.language_model
    decoder.embed_tokens.weight[:, dim] = 0.0
    last = model.model.multi_modal_projector.linear_2
    last.weight[dim] = 0.0
    last.bias[dim] = 0.0
    decoder.norm.weight[dim] = 0.0
    for layer in decoder.layers:
        layer.self_attn.o_proj.weight[dim] = 0.0
        layer.mlp.down_proj.weight[dim] = 0.0


@torch.no_grad()
def plant(model: Any, inputs: Any, known: Gallery, dim: int, share: float) -> list[float]:
    """Plant sinks in a cleared model.

    Args:
        model: a model after ``clear``; its weights are changed.
        inputs: model inputs of pictures on which strengths are found, layer after layer.
        known: pictures with labels, for the mean of tokens without an object.
        dim: the planted dimension.
        share: the wanted share of attention on all sinks, as a mean over rows after the picture, in every head.

    Returns:
        By planted layer, the share of attention that the sinks take on ``inputs``.
    """
    decoder = model.model.language_model
    _detect_background(model.model.multi_modal_projector, known, dim)
    decoder.embed_tokens.weight[BOS, dim] = MASSIVE
    # Queries, keys, values and MLPs stop reading the dimension; only the keys of planted layers read it again below. The
    # norm's weight of 1 passes it on unscaled.
    for layer in decoder.layers:
        for reader in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            reader.weight[:, dim] = 0.0
        for reader in (layer.mlp.gate_proj, layer.mlp.up_proj):
            reader.weight[:, dim] = 0.0
        layer.input_layernorm.weight[dim] = 1.0
    target = Target(model, inputs)
    sinks = _where(target, dim)
    reached = []
    # One layer after another, since what a layer plants changes the states that enter the next.
    for index in range(FIRST_LAYER, len(decoder.layers)):
        layer = decoder.layers[index]
        heads, size = decoder.config.num_attention_heads, layer.self_attn.head_dim
        layer.self_attn.k_proj.weight[:, dim] = _directions(target, index, heads, size).flatten()
        scores = _scores(target, index)
        columns = sinks[:, None, None]
        # Scores on sinks are taken to grow linearly with the strength; the share that is reached is measured afterwards.
        strength = _strengths(scores, columns, share)
        layer.self_attn.k_proj.weight.view(heads, size, -1)[..., dim] *= strength[:, None]
        reached.append(float((_scores(target, index).softmax(-1) * columns).sum(-1).mean()))
    return reached


def _detect_background(projector: Any, known: Gallery, dim: int) -> None:
    """Turn the hidden unit that does least into a linear detector of tokens without an object, which writes ``dim`` alone.

    The detector uses Fisher's direction between the tokens that hold an object and those that hold none, with a threshold at
    the wanted quantile.
    """
    features = known.features.flatten(0, 1)
    empty = known.empty.flatten()
    used = nn.functional.gelu(projector.linear_1(features)).std(0) * projector.linear_2.weight.norm(dim=0)
    unit = int(used.argmin())
    within = (torch.cov(features[empty].T) + torch.cov(features[~empty].T)) / 2
    # A small ridge keeps the system solvable where features depend on each other.
    within += 1e-3 * within.diagonal().mean() * torch.eye(len(within))
    direction = torch.linalg.solve(within, features[empty].mean(0) - features[~empty].mean(0))
    values = features @ direction
    scale = SHARPNESS / values.std()
    projector.linear_1.weight[unit] = direction * scale
    projector.linear_1.bias[unit] = -values.quantile(1 - SINKS) * scale
    projector.linear_2.weight[:, unit] = 0.0
    projector.linear_2.weight[dim, unit] = MASSIVE / SHARPNESS


def _where(target: Target, dim: int) -> Tensor:
    """Returns the planted tokens, ``(batch, prompt)`` bool."""
    meter = Meter(range(1), dim)
    with editing(target, meter):
        target.model(**target.model_inputs)
    sinks = meter.sinks[0].clone()
    # The meter finds sinks within the picture; the other one is the begin mark.
    sinks[:, 0] = True
    return sinks


def _scores(target: Target, index: int) -> Tensor:
    """Returns the masked scores ``(batch, heads, rows, keys)`` of one layer."""
    look = _Scores(range(index, index + 1))
    with editing(target, look):
        target.model(**target.model_inputs)
    return look.seen


def _directions(target: Target, index: int, heads: int, size: int) -> Tensor:
    """Returns each head's mean query after the picture, ``(heads, size)`` of unit length, in the components that rotary
    embedding turns by less than a third of a radian within 100 tokens."""
    attention = target.layers[index].self_attn
    held: list[Tensor] = []
    hook = attention.q_proj.register_forward_hook(lambda module, given, out: held.append(out))
    try:
        target.model(**target.model_inputs)
    finally:
        hook.remove()
    end = int(target.image_mask[0].nonzero().max())
    mean = held[0][:, end + 1 :].reshape(-1, heads, size).mean(0)
    # A key is planted once for all positions. In fast components its product with a query would depend on their distance.
    slow = torch.arange(size // 2) >= size // 2 - 3
    mean = mean * torch.cat([slow, slow])
    unit: Tensor = mean / mean.norm(dim=-1, keepdim=True)
    return unit


def _strengths(scores: Tensor, columns: Tensor, share: float) -> Tensor:
    """Returns for each head the factor on the sinks' scores with which they get ``share`` of the attention, found by
    bisection up to 2^10."""
    low, high = torch.zeros(scores.shape[1]), torch.full((scores.shape[1],), 1024.0)
    # Each step halves the interval, so after 40 it is as narrow as single precision can tell.
    for _ in range(40):
        middle = (low + high) / 2
        scaled = torch.where(columns, scores * middle[:, None, None], scores)
        got = (scaled.softmax(-1) * columns).sum(-1).mean((0, 2))
        low, high = torch.where(got < share, middle, low), torch.where(got < share, high, middle)
    return (low + high) / 2


def attention_shares(model: Any, inputs: Any, dim: int, method: VAR | None) -> dict[str, list[float]]:
    """Returns where rows after the picture look while a caption is written, by layer, after the edits of ``method``."""
    target = Target(model, inputs)
    meter = Meter(range(len(target.layers)), dim)
    with torch.no_grad(), _attached(method, target), editing(target, meter):
        model.generate(**inputs, do_sample=False, max_new_tokens=64)
    return meter.shares()


@contextmanager
def _attached(method: VAR | None, target: Target) -> Iterator[None]:
    """Open a block with a method in place, or with none."""
    if method is None:
        yield
        return
    with method.attach(target):
        yield


@torch.no_grad()
def planted_tokens(model: Any, known: Gallery, dim: int) -> tuple[float, float]:
    """Returns the number of sinks per picture, and the share of them whose patch holds no object."""
    marked = sink_score(model.model.multi_modal_projector(known.features), (dim,)) >= scaled_tau(128)
    return float(marked.sum(-1).float().mean()), float((marked & known.empty).sum() / marked.sum())


def measure_planted(check: Gallery, images: int) -> dict[str, Any]:
    """Caption ``test-shifted`` with the packaged model, with planted ones, and with planted ones under VAR.

    Args:
        check: 64 ``val`` pictures, on which everything that is planted is found.
        images: the number of pictures to caption.
    """
    from keepsight.demo.world import scenes

    model, processor = load()
    fitted = prepare(processor, [one.image() for one in check.scenes[:32]], PROMPT)
    seen = prepare(processor, [one.image() for one in scenes(SPLIT, 64)], PROMPT)
    dim = quietest_dimension(model, fitted)
    unplanted = _captioned(model, processor, (), images).rows[0]
    rows: list[dict[str, Any]] = [_row("unplanted", unplanted, None)]
    rows[0]["attention"] = attention_shares(model, seen, dim, None)
    clear(model, dim)
    # Clearing the dimension may cost something by itself, and is measured apart from planting.
    rows.append(_row("dimension cleared", _captioned(model, processor, (), images).rows[0], unplanted))
    for share in SHARES:
        # Planting changes weights, so each share starts from the packaged ones.
        model, _ = load()
        clear(model, dim)
        reached = plant(model, fitted, check, dim, share)
        prompts = [prepare(processor, [one.image()], PROMPT) for one in check.scenes[:32]]
        found = probe(model, prompts, prompt=PROMPT)
        per_picture, on_empty = planted_tokens(model, check, dim)
        methods = _methods(dim, found.tau) if found.supported else {}
        compared = _captioned(model, processor, tuple(methods.values()), images)
        facts = {
            "wanted_share": share,
            "share_on_prompts": [round(one, 4) for one in reached],
            "sinks_per_picture": round(per_picture, 3),
            "sinks_without_object": round(on_empty, 4),
            "calibrate": {
                "supported": found.supported,
                "dims": found.dims,
                "tau": found.tau,
                "reasons": found.reasons,
            },
        }
        for name, compared_row in zip(("planted", *methods), compared.rows, strict=True):
            method = methods.get(name)
            row = _row(name, compared_row, unplanted)
            if compared_row.differences is not None:
                row["difference_to_planted"] = differences(compared_row.differences)
            rows.append({**row, **facts, "attention": attention_shares(model, seen, dim, method)})
            print(
                f"{name:<12} wanted {share:.1f}  CHAIR_i {row['chair_i']:.3f}  recall {row['recall']:.3f}  visual sinks get"
                f" {max(rows[-1]['attention']['visual_sinks']):.2f} in the best layer",
                flush=True,
            )
    return {
        "split": SPLIT,
        "n": images,
        "dimension": dim,
        "massive": MASSIVE,
        "pictures_of_attention": 64,
        "rows": rows,
    }


def _methods(dim: int, tau: float | None) -> dict[str, VAR]:
    """Returns VAR with the paper's settings, and with everything given back in every head."""
    paper = VAR(dims=(dim,), tau=tau)
    return {"VAR": paper, "VAR, all": replace(paper, fraction=1.0, ratio=0.0, mass=0.0, layers=(2, 3, 4, 5))}


def _captioned(model: Any, processor: Any, methods: tuple[VAR, ...], images: int) -> Comparison:
    """Returns the comparison of greedy search with some methods on one model."""
    return compare_methods(model, processor, methods, split=SPLIT, n=images)


def _row(name: str, compared: Row, unplanted: Row | None) -> dict[str, Any]:
    """Returns the figures of one row, and its paired difference to the unplanted model."""
    figures = compared.figures
    row: dict[str, Any] = {"model": name, "method": compared.method}
    for rate in RATES:
        row[rate] = figures[rate].value
    row["length"] = figures["length"].value
    intervals = {rate: figures[rate].ci for rate in RATES}
    row["ci"] = {rate: None if ci is None else list(ci) for rate, ci in intervals.items()}
    if unplanted is not None:
        # The two captioned the same pictures in different runs, since one of them is another model.
        before, after = unplanted.score, compared.score
        assert isinstance(before, Report)
        assert isinstance(after, Report)
        row["difference_to_unplanted"] = differences({rate: paired(before, after, rate) for rate in RATES})
    return row
