"""Attention maps: how much attention each object word of a caption pays to each token of the picture."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Event
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from keepsight.analysis.image_grid import token_grid
from keepsight.analysis.modality_dominance import attention_mass_recorder, special_ids
from keepsight.analysis.observers import AttentionObserver, generate_observed
from keepsight.attention_mods.layers import chosen_layers
from keepsight.attention_mods.var import PUBLISHED, VAR, scaled_tau, sink_score
from keepsight.inference.detokenizer import shared_prefix
from keepsight.inference.generation import Generation
from keepsight.parts import Edit, HookContext
from keepsight.target import Target

if TYPE_CHECKING:
    from keepsight.calibration.file import Calibration
    from keepsight.eval.modality_dominance.score import Masses
    from keepsight.method import Method

MASSIVE = 100.0
"""Where no sink dimensions are known, a sink needs an activation of this many times the median of its vector."""


@dataclass(frozen=True)
class SinkRule:
    """When a token counts as a sink: ``sink_score`` over ``dims`` at least ``tau`` at some inner layer.

    Args:
        tau: threshold of the score; it cannot exceed √width.
        dims: sink dimensions. None, where they are not known: all in which a token has a massive activation, at least
            100 times the median of its absolute values, so that no ordinary vector passes for a sink.
    """

    tau: float
    dims: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Captured:
    """What was recorded during one generation.

    Args:
        ids: the generated tokens.
        attention: ``(generated tokens, picture tokens)``: the attention of the row that predicts a token to each token of
            the picture, mean over heads and layers.
        sinks: ``(picture tokens,)``: the largest sink score of each, 0 where no dimension counts.
        masses: the attention of all layers to the picture and to each part of the text.
    """

    ids: tuple[int, ...]
    attention: Tensor
    sinks: Tensor
    masses: Masses


@dataclass(frozen=True)
class WordMap:
    """One object word of a caption, and the attention to the picture with which it was written.

    Args:
        word: as it stands in the caption.
        object: what it names, such as ``dog`` for ``dogs``.
        span: the first letter of the word, and the one after its last.
        tokens: the numbers of the generated tokens that write it.
        attention: the mean over these tokens, one row of numbers for each row of picture tokens.
    """

    word: str
    object: str
    span: tuple[int, int]
    tokens: tuple[int, ...]
    attention: tuple[tuple[float, ...], ...]

    @property
    def share(self) -> float:
        """The part of the attention that went to the picture, from 0 to 1: the sum of ``attention``."""
        return sum(map(sum, self.attention))


@dataclass(frozen=True)
class Sink:
    """A token of the picture that counts as a sink: its place in the grid, counted from 0, and its sink score."""

    row: int
    column: int
    score: float


@dataclass(frozen=True)
class AttentionMap:
    """One caption with a map for each of its object words, and the picture's sinks.

    Args:
        method: the spec of the methods that it was written under; None is the plain model.
        caption: the text.
        grid: rows and columns of the picture's tokens.
        words: the object words, in the order of the caption.
        sinks: tokens of the picture that count as sinks by ``rule``.
        pieces: the text that each generated token adds.
        shares: for each generated token, the part of its attention that went to the picture, over the layers of the maps.
        masses: the attention of all layers to the picture and to each part of the text.
    """

    method: str | None
    caption: str
    grid: tuple[int, int]
    words: tuple[WordMap, ...]
    sinks: tuple[Sink, ...]
    rule: SinkRule
    pieces: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    masses: Masses | None = None


class RecordImageAttention(AttentionObserver):
    """Sums up the attention of the predicting rows to each token of the picture, over heads and layers."""

    def __init__(self, layers: Collection[int]) -> None:
        super().__init__(layers)
        self.sums: dict[int, Tensor] = {}

    def observe(self, given: Tensor, number: int, first_key: int, context: HookContext) -> None:
        columns = context.image[0].nonzero().flatten() - first_key
        kept = columns >= 0  # a sliding window has dropped the rest
        mean = given.new_zeros(len(columns))
        mean[kept] = given[:, columns[kept]].mean(0)
        self.sums[number] = self.sums.get(number, 0) + mean.float().cpu()

    def mean(self, first: int, count: int) -> Tensor:
        """``(count, picture tokens)``: the ``count`` rows from number ``first`` on, mean over heads and layers."""
        return torch.stack([self.sums[number] for number in range(first, first + count)]) / len(self.layers)


class RecordSinkScores(Edit):
    """Keeps the largest sink score of each token of the prompt, over the observed layers."""

    def __init__(self, layers: Collection[int], rule: SinkRule) -> None:
        self.layers = frozenset(layers)
        self.rule = rule
        self.highest: Tensor | None = None

    def resid_pre(self, hidden: Tensor, context: HookContext) -> None:
        here = min(context.first + context.rows, context.prompt) - context.first
        if here <= 0:
            return
        if self.highest is None:
            self.highest = torch.zeros(context.image.shape[1])
        scores = score_sinks(hidden[0, :here], self.rule).cpu()
        part = self.highest[context.first : context.first + here]
        part.copy_(torch.maximum(part, scores))


def score_sinks(hidden: Tensor, rule: SinkRule) -> Tensor:
    """The sink score of each vector ``(…, hidden)`` under a rule, 0 where no dimension counts."""
    if rule.dims is not None:
        return sink_score(hidden, rule.dims)
    x = hidden.float()
    massive = x.abs() >= MASSIVE * x.abs().median(-1, keepdim=True).values
    return sink_score(x, tuple(range(x.shape[-1]))) * massive.any(-1)


def sink_rule(
    target: Target, methods: Sequence[Method] = (), calibration: Calibration | None = None
) -> SinkRule:
    """What counts as a sink in a model: the rule of a VAR among the methods, else that of its calibration, else the
    published dimensions of the checkpoint, else massive activations.

    Raises:
        InvalidParameter, NeedsCalibration: from VAR.
        CalibrationMismatch: the calibration was made for another model.
    """
    width = int(target.text_config.hidden_size)
    for method in methods:
        if isinstance(method, VAR) and method.fraction > 0:
            dims, tau = method.constants(target, width)
            return SinkRule(tau, dims)
    if calibration is not None:
        calibration.check(target)
        if calibration.dims and calibration.tau is not None:
            return SinkRule(calibration.tau, calibration.dims)
    known = PUBLISHED.get(str(target.model.config._name_or_path))
    return SinkRule(scaled_tau(width), known[1] if known and known[0] == width else None)


def capture(
    model: Any,
    inputs: Any,
    *methods: Method,
    layers: tuple[int, ...] | None = None,
    generation: Generation | None = None,
    sinks: SinkRule | None = None,
    special: Collection[int] | None = None,
    answer: Sequence[int] | None = None,
    stop: Event | None = None,
) -> Captured:
    """Generate under ``methods`` and record the attention to the picture.

    The rows that predict tokens are computed with explicit weights, which agree with the model's own kernel up to rounding.

    Args:
        inputs: what the model's processor returned for one prompt with one picture.
        layers: numbers of the layers to average over; default: all.
        generation: greedy unless given; one beam.
        sinks: default: ``sink_rule``.
        special: ids of tokens that are marks and not text; default: ``special_ids`` without a tokenizer.
        answer: tokens that were generated before; they are written again and recorded.
        stop: ends the generation with the token that is being written once it is set, from another thread for example.

    Raises:
        UnsupportedModel: the picture is reached by cross-attention, or the attention cannot be observed (eager).
        InvalidParameter: the model has no such layer; beam search.
        InputError: more than one prompt.
    """
    target = Target(model, inputs)
    target.check_image_in_context("an attention map")
    parts = attention_mass_recorder(target, special)
    count = len(target.layers)
    image_attention = RecordImageAttention(chosen_layers("attention", target, layers, range(count)))
    inner = range(min(2, count), count - 1)
    sink_scores = RecordSinkScores(inner, sinks or sink_rule(target, methods))
    ids = generate_observed(
        target, methods, generation, image_attention, sink_scores, parts, answer=answer, stop=stop
    )
    image = target.image_mask[0].cpu()
    scores = sink_scores.highest
    found = torch.zeros(int(image.sum())) if scores is None else scores[image]
    attention = image_attention.mean(target.prompt - 1, len(ids))
    return Captured(ids, attention, found, parts.masses(target, len(ids)))


def look(
    model: Any,
    processor: Any,
    inputs: Any,
    *methods: Method,
    layers: tuple[int, ...] | None = None,
    generation: Generation | None = None,
    sinks: SinkRule | None = None,
    answer: Sequence[int] | None = None,
    stop: Event | None = None,
) -> AttentionMap:
    """The caption under ``methods`` with one map for every object word in it.

    Arguments and errors are those of ``capture``, and:

    Raises:
        NoTokenGrid: the picture's tokens are not one grid.
    """
    target = Target(model, inputs)
    grid = token_grid(target)
    rule = sinks or sink_rule(target, methods)
    special = special_ids(target, processor.tokenizer)
    seen = capture(
        model,
        inputs,
        *methods,
        layers=layers,
        generation=generation,
        sinks=rule,
        special=special,
        answer=answer,
        stop=stop,
    )
    text, spans = token_spans(processor.tokenizer, seen.ids)
    found = [
        Sink(*divmod(at, grid[1]), score) for at, score in enumerate(seen.sinks.tolist()) if score >= rule.tau
    ]
    spec = "+".join(method.spec for method in methods) or None
    return AttentionMap(
        spec,
        text,
        grid,
        word_maps(text, spans, seen.attention, grid),
        tuple(found),
        rule,
        pieces=tuple(text[start:end] for start, end in spans),
        shares=tuple(seen.attention.sum(-1).tolist()),
        masses=seen.masses,
    )


def token_spans(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of some tokens, and which of its letters each of them adds.

    They are decoded one after another, since what a token writes depends on the tokens before it. A token that adds nothing,
    such as an end mark or half a letter, has an empty span; a letter of several tokens belongs to the last.
    """
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    ends = [0]
    for count in range(1, len(ids) + 1):
        so_far = tokenizer.decode(list(ids[:count]), skip_special_tokens=True)
        ends.append(max(ends[-1], shared_prefix(so_far, text)))
    return text, list(pairwise(ends))


def word_maps(
    text: str, spans: Sequence[tuple[int, int]], attention: Tensor, grid: tuple[int, int]
) -> tuple[WordMap, ...]:
    """One map for every object that CHAIR finds in a caption, in order, repeats included.

    Args:
        spans: which letters each generated token wrote.
        attention: ``(tokens, picture)``.
    """
    from keepsight.eval.chair.score import mentions

    maps = []
    for mention in mentions(text):
        start, end = mention.span
        tokens = tuple(at for at, (first, last) in enumerate(spans) if first < end and last > start)
        mean = attention[list(tokens)].mean(0).reshape(grid)
        maps.append(
            WordMap(text[start:end], mention.object, mention.span, tokens, tuple(map(tuple, mean.tolist())))
        )
    return tuple(maps)
