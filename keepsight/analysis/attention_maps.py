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
"""Where no sink dimensions are known, a sink needs an activation of at least this many times the median of its vector.

``attention_sinks.LEAST_OUTLIER`` asks for the same factor.
"""


@dataclass(frozen=True)
class SinkRule:
    """The rule by which a token counts as a sink: its ``sink_score`` over ``dims`` reaches ``tau`` at some inner layer.

    Args:
        tau: threshold of the score; it cannot exceed √width.
        dims: sink dimensions. None, where they are not known: then all dimensions count in which a token has a massive
            activation, at least 100 times the median of its absolute values, so that no ordinary vector passes for a sink.
    """

    tau: float
    dims: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Captured:
    """What was recorded during one generation.

    Args:
        ids: the generated tokens.
        attention: ``(generated tokens, picture tokens)``: the attention of the row that predicts a token to each token of
            the picture, as a mean over heads and layers.
        sinks: ``(picture tokens,)``: the largest sink score of each over the inner layers, 0 where no dimension counts.
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
        word: the word as it stands in the caption.
        object: the object that it names, such as ``dog`` for ``dogs``.
        span: where the word begins and ends in the caption, in characters; the end is excluded.
        tokens: the numbers of the generated tokens that write it.
        attention: the mean over these tokens, with one row of numbers for each row of picture tokens.
    """

    word: str
    object: str
    span: tuple[int, int]
    tokens: tuple[int, ...]
    attention: tuple[tuple[float, ...], ...]

    @property
    def share(self) -> float:
        """The share of the attention that went to the picture, from 0 to 1: the sum of ``attention``."""
        return sum(map(sum, self.attention))


@dataclass(frozen=True)
class Sink:
    """A token of the picture that counts as a sink: its place in the grid, counted from 0, and its sink score."""

    row: int
    column: int
    score: float


@dataclass(frozen=True)
class AttentionMap:
    """One caption with an attention map for each of its object words, and the picture's sinks.

    Args:
        method: the spec of the methods that it was written under; None is the plain model.
        caption: the text.
        grid: the numbers of rows and columns of the picture's tokens.
        words: the object words, in the order of the caption.
        sinks: the tokens of the picture that count as sinks by ``rule``.
        rule: the rule that the sinks were found by.
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
        # In a layer with a sliding window the cache may have dropped the first tokens of the picture. They get no
        # attention any more, so they count as 0.
        kept = columns >= 0
        mean = given.new_zeros(len(columns))
        mean[kept] = given[:, columns[kept]].mean(0)
        # The engine calls the layers of a pass one after another, so the sum
        # over layers builds up here; ``mean`` divides it by their number.
        self.sums[number] = self.sums.get(number, 0) + mean.float().cpu()

    def mean(self, first: int, count: int) -> Tensor:
        """Returns ``count`` rows from number ``first`` on, ``(count, picture tokens)``, as means over heads and layers."""
        return torch.stack([self.sums[number] for number in range(first, first + count)]) / len(self.layers)


class RecordSinkScores(Edit):
    """Keeps the largest sink score of each token of the prompt, over the observed layers."""

    def __init__(self, layers: Collection[int], rule: SinkRule) -> None:
        self.layers = frozenset(layers)
        self.rule = rule
        self.highest: Tensor | None = None

    def resid_pre(self, hidden: Tensor, context: HookContext) -> None:
        # The picture stands in the prompt, so generated tokens need no score. A prompt that is
        # read in chunks comes here in several passes, of which each fills in its own part.
        here = min(context.first + context.rows, context.prompt) - context.first
        if here <= 0:
            return
        if self.highest is None:
            # No sink score is below 0, so 0 loses against every score.
            self.highest = torch.zeros(context.image.shape[1])
        scores = score_sinks(hidden[0, :here], self.rule).cpu()
        part = self.highest[context.first : context.first + here]
        part.copy_(torch.maximum(part, scores))


def score_sinks(hidden: Tensor, rule: SinkRule) -> Tensor:
    """Returns the sink score ``(…)`` of each vector ``(…, hidden)`` under a rule, 0 where no dimension counts."""
    if rule.dims is not None:
        return sink_score(hidden, rule.dims)
    x = hidden.float()
    massive = x.abs() >= MASSIVE * x.abs().median(-1, keepdim=True).values
    # The score over all dimensions is that of the largest entry. That entry is massive if
    # any entry is, so this equals the score over the massive dimensions alone.
    return sink_score(x, tuple(range(x.shape[-1]))) * massive.any(-1)


def sink_rule(
    target: Target, methods: Sequence[Method] = (), calibration: Calibration | None = None
) -> SinkRule:
    """Returns what counts as a sink in a model.

    That is the rule of a VAR among the methods, else that of the calibration, else the published dimensions of the
    checkpoint, else massive activations.

    Raises:
        InvalidParameter, NeedsCalibration: VAR has no constants for this model.
        CalibrationMismatch: the calibration was made for another model.
    """
    width = int(target.text_config.hidden_size)
    # A VAR among the methods comes first, so the map marks the very tokens that it takes
    # attention from. A VAR of fraction 0 changes nothing, and need not have any constants.
    for method in methods:
        if isinstance(method, VAR) and method.fraction > 0:
            dims, tau = method.constants(target, width)
            return SinkRule(tau, dims)
    if calibration is not None:
        calibration.check(target)
        if calibration.dims and calibration.tau is not None:
            return SinkRule(calibration.tau, calibration.dims)
    # Published dimensions are numbers of entries in vectors of the published width. Under the same
    # name there may be a model of another width, in which these numbers mean nothing.
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
        model: an image-text-to-text model of transformers.
        inputs: what the model's processor returned for one prompt with one picture.
        methods: the methods to generate under; none is the plain model.
        layers: numbers of the layers to average over; default: all.
        generation: how tokens are chosen, with one beam; default: greedy search.
        sinks: the rule for sinks; default: what ``sink_rule`` gives.
        special: ids of tokens that are marks and not text; default: ``special_ids`` without a tokenizer.
        answer: tokens that were generated before. They are written again, whatever the model would choose now, and
            recorded.
        stop: an event that ends the generation with the token that is being written once it is set, for example by
            another thread.

    Raises:
        UnsupportedModel: the picture is reached by cross-attention, or the attention cannot be observed (eager).
        InvalidParameter: the model has no such layer; beam search.
        InputError: more than one prompt.
    """
    target = Target(model, inputs)
    target.check_image_in_context("an attention map")
    parts = attention_mass_recorder(target, special)
    count = len(target.layers)
    image_attention = RecordImageAttention(
        chosen_layers("attention", target, layers, range(count), in_attention=True)
    )
    # These are the layers in which VAR acts by default. A model of three layers or fewer has
    # none of them, so no score is recorded and no token counts as a sink.
    inner = range(min(2, count), count - 1)
    sink_scores = RecordSinkScores(inner, sinks or sink_rule(target, methods))
    ids = generate_observed(
        target, methods, generation, image_attention, sink_scores, parts, answer=answer, stop=stop
    )
    image = target.image_mask[0].cpu()
    scores = sink_scores.highest
    found = torch.zeros(int(image.sum())) if scores is None else scores[image]
    # The last token of the prompt predicts the first token of the answer.
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
    """Returns the caption under ``methods`` with one map for every object word in it.

    Arguments and errors are those of ``capture``, and:

    Raises:
        NoTokenGrid: the picture's tokens are not one grid.
    """
    target = Target(model, inputs)
    # A picture that has no grid is refused here, before the time of a generation is spent on it.
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
    """Returns the text of some tokens, and for each token the span of characters that it adds.

    The tokens are decoded one after another, since what a token writes depends on the tokens before it. A token that adds
    nothing, such as an end mark or half a character, has an empty span; a character of several tokens belongs to the last
    of them.
    """
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    ends = [0]
    for count in range(1, len(ids) + 1):
        so_far = tokenizer.decode(list(ids[:count]), skip_special_tokens=True)
        # A character that is not complete yet decodes to a replacement character, which differs from the whole text
        # there. Spans must not overlap, so an end never lies before the one of the token before it.
        ends.append(max(ends[-1], shared_prefix(so_far, text)))
    return text, list(pairwise(ends))


def word_maps(
    text: str, spans: Sequence[tuple[int, int]], attention: Tensor, grid: tuple[int, int]
) -> tuple[WordMap, ...]:
    """Returns one map for every object that CHAIR finds in a caption, in order, repeats included.

    Args:
        text: the caption.
        spans: for each generated token the span of characters that it wrote.
        attention: ``(tokens, picture)``, as ``Captured.attention`` holds it.
        grid: the numbers of rows and columns of the picture's tokens.
    """
    from keepsight.eval.chair.score import mentions

    maps = []
    for mention in mentions(text):
        start, end = mention.span
        # Tokens need not end where words do, so every token counts that writes at least one character of the word.
        tokens = tuple(at for at, (first, last) in enumerate(spans) if first < end and last > start)
        mean = attention[list(tokens)].mean(0).reshape(grid)
        maps.append(
            WordMap(text[start:end], mention.object, mention.span, tokens, tuple(map(tuple, mean.tolist())))
        )
    return tuple(maps)
