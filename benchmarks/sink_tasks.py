"""Makes rows for ``sinks.py``: bigram-backcopy rows, the demo's own text rows, and picture rows with either or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from keepsight.demo.model import BOS, IMAGE, IMAGE_TOKENS, SIDE
from keepsight.demo.world import Scene, scenes
from training.demo.train_data import NOTHING, Lines, Row, Rows, Turn, pack, patch_labels

BACKCOPY = "backcopy"
"""The kind of the targets of backcopy rows, beside ``caption`` and ``answer``."""
SYMBOLS = 64
"""The number of symbols of the Markov chain."""
FIRST_SYMBOL = 96
"""The symbols are tokens 96 to 159 of the demo's tokenizer: bytes that occur in no caption and no question."""


class Backcopy:
    """Bigram-backcopy (Guo et al. 2024, arXiv 2410.13835): a Markov chain over 64 symbols with a few triggers.

    The symbol after a trigger is a copy of the one before it; any other symbol is followed by a draw from its row of the
    table. A head that copies must therefore write something after a trigger, and nothing after any other symbol.

    Args:
        triggers: the number of triggers.
        seed: the seed of the chain.
    """

    def __init__(self, triggers: int = 3, seed: int = 0) -> None:
        table = np.random.default_rng(seed).dirichlet(np.full(SYMBOLS, 0.1), size=SYMBOLS)
        usual = np.full(SYMBOLS, 1 / SYMBOLS)
        # So many steps of the chain bring it to its usual distribution, whatever it starts from.
        for _ in range(200):
            usual = usual @ table
        self.sums = table.cumsum(1)
        self.trigger = np.zeros(SYMBOLS, bool)
        # The most frequent symbols are the triggers, so short rows hold some.
        self.trigger[np.argsort(-usual)[:triggers]] = True

    def draw(self, rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
        """Returns ``(rows, length)`` symbols, counted from 0; no row begins with a trigger."""
        drawn = np.empty((rows, length), np.int64)
        # After a trigger in first place there would be nothing to copy.
        drawn[:, 0] = rng.choice(np.flatnonzero(~self.trigger), rows)
        for place in range(1, length):
            before = drawn[:, place - 1]
            # The cumulated sums may end just below 1 by rounding, which would draw a symbol that does not exist.
            follows = (self.sums[before] < rng.random(rows)[:, None]).sum(1).clip(max=SYMBOLS - 1)
            back = drawn[:, max(place - 2, 0)]
            drawn[:, place] = np.where(self.trigger[before], back, follows)
        return drawn

    def ids(self, rng: np.random.Generator, rows: int, length: int, begin: bool = True) -> Tensor:
        """Returns ``(rows, length)`` tokens of the demo's vocabulary; with ``begin`` the first is ``<s>``."""
        drawn = self.draw(rng, rows, length - begin) + FIRST_SYMBOL
        if begin:
            drawn = np.concatenate([np.full((rows, 1), BOS), drawn], 1)
        return torch.from_numpy(drawn)

    def after_trigger(self, ids: Tensor) -> Tensor:
        """Returns where ``ids`` are triggers, so the next token is a copy."""
        known = torch.zeros(FIRST_SYMBOL + SYMBOLS, dtype=torch.bool)
        known[FIRST_SYMBOL:] = torch.from_numpy(self.trigger)
        return known[ids.clamp(max=FIRST_SYMBOL + SYMBOLS - 1)] & (ids < FIRST_SYMBOL + SYMBOLS)


@dataclass(frozen=True)
class Gallery:
    """Drawn scenes, and what the demo's frozen tower makes of them.

    Args:
        scenes: the scenes.
        features: ``(n, 64, 128)``, the tower's image tokens.
        empty: ``(n, 64)`` bool, tokens whose patch holds no object.
    """

    scenes: tuple[Scene, ...]
    features: Tensor
    empty: Tensor


def gallery(tower: torch.nn.Module, split: str, n: int, seed: int = 0) -> Gallery:
    """Draw ``n`` scenes of a split and pass them through the tower once, so training need not do it at every step."""
    drawn = tuple(scenes(split, n, seed))
    features, empty = [], []
    with torch.no_grad():
        for start in range(0, n, 64):
            some = drawn[start : start + 64]
            pixels = torch.from_numpy(np.stack([np.asarray(one.image()) for one in some]))
            pixels = pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
            assert pixels.shape[-2:] == (SIDE, SIDE)
            features.append(tower(pixel_values=pixels).last_hidden_state[:, 1:])
            empty += [torch.from_numpy(patch_labels(one)).sum(-1) == 0 for one in some]
    return Gallery(drawn, torch.cat(features), torch.stack(empty))


def prefix(lines: Lines, picture_first: bool) -> list[int]:
    """Returns the tokens before every turn about a picture: the demo's, or with ``picture_first`` those of the picture at
    the very beginning, with no ``<s>`` before them."""
    if not picture_first:
        return lines.image_prefix
    newline = lines.image_prefix[-1:]
    blank = [token for token in lines.plain_prefix[1:] if token not in newline]
    return [*[IMAGE] * IMAGE_TOKENS, *newline, *blank]


def picture_rows(
    lines: Lines,
    shown: Sequence[Scene],
    rng: np.random.Generator,
    *,
    task: Backcopy | None,
    length: int = 48,
    questions: int = 2,
    picture_first: bool = False,
) -> Rows:
    """Returns one row per picture: a caption, yes/no questions, and with ``task`` a line of backcopy that has nothing to do
    with the picture."""
    begin = prefix(lines, picture_first)
    rows: list[Row] = []
    for one in shown:
        talks = [[lines.describe(one, rng)], *([turn] for turn in lines.ask(one, questions, rng))]
        if task is not None:
            line = task.ids(rng, 1, length, begin=False)[0].tolist()
            # ``pack`` knows captions and answers alone; ``_apart`` gives these targets their own kind afterwards.
            talks.append([Turn(line[:1], line[1:], "answer")])
        rows.append((begin, talks))
    return _apart(pack(rows))


def text_rows(lines: Lines, picked: Sequence[tuple[Scene, Scene]], rng: np.random.Generator) -> Rows:
    """Returns rows of the demo's text stage: a caption, and another caption with three questions about it."""
    rows: list[Row] = []
    for one, other in picked:
        talk = [lines.describe(other, rng, blind=True), *lines.ask(other, 3, rng, user="USER: ")]
        rows.append(([], [[lines.describe(one, rng, blind=True)], talk]))
    return pack(rows)


def backcopy_rows(
    task: Backcopy, rng: np.random.Generator, rows: int, length: int, begin: bool = True
) -> Rows:
    """Returns rows of bigram-backcopy alone, which with ``begin`` start with ``<s>``."""
    ids = task.ids(rng, rows, length + 1, begin)
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None].expand(rows, 1, -1, -1)
    positions = torch.arange(length).expand(rows, -1)
    return Rows(ids[:, :-1], positions, mask, {BACKCOPY: ids[:, 1:]})


def _apart(rows: Rows) -> Rows:
    """Returns the rows with backcopy targets, which ``pack`` knows as answers, as a kind of their own."""
    answers = rows.targets["answer"]
    symbols = (answers >= FIRST_SYMBOL) & (answers < FIRST_SYMBOL + SYMBOLS)
    targets = {
        "caption": rows.targets["caption"],
        "answer": answers.masked_fill(symbols, NOTHING),
        BACKCOPY: answers.masked_fill(~symbols, NOTHING),
    }
    return replace(rows, targets={kind: one for kind, one in targets.items() if (one != NOTHING).any()})
