"""Training data of the demo model: rendered scenes on disk, patch labels, and token rows that share an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keepsight.demo.model import (
    BOS,
    EOS,
    IMAGE,
    IMAGE_TOKENS,
    PAD,
    PATCH,
    PROMPT,
    SIDE,
    build_tokenizer,
)
from keepsight.demo.prompts import PROMPTS
from keepsight.demo.world import NAMES, Scene, ask, scene, scenes

GRID = SIDE // PATCH
"""The number of patches along a side of a picture."""
PROMPT_WEIGHTS = (0.8, 0.1, 0.1)
"""How often each of ``PROMPTS`` asks for a caption."""
NOTHING = -100
"""The target of tokens that are not to be learned; it is the ``ignore_index`` of torch's cross-entropy."""


def train_tokenizer(seed: int) -> Any:
    """Returns a tokenizer that is trained on captions of 6000 training scenes and on all questions."""
    captions = [f"USER: <image>\n{PROMPT} ASSISTANT: {one.caption()}" for one in scenes("train", 6000, seed)]
    # Questions are repeated, since there are few of them beside the
    # captions, and their words should become tokens as well.
    asked = [f"{ask(name)} ASSISTANT: {answer}" for name in NAMES for answer in ("Yes", "No")] * 20
    return build_tokenizer([*captions, *asked, *PROMPTS])


def render_split(folder: Path, split: str, n: int, seed: int, workers: int) -> None:
    """Draw scenes, and write ``{split}-pixels.npy`` (n, 128, 128, 3) and ``{split}-labels.npy`` (n, 64, 28), both uint8.

    Args:
        folder: the directory of the files; it is created if need be.
        split: the name of the split.
        n: the number of scenes.
        seed: the seed of the scenes.
        workers: the number of processes that draw.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The file is written picture by picture: 26,000 pictures take 1.3 GB of memory.
    pixels = np.lib.format.open_memmap(
        folder / f"{split}-pixels.npy", mode="w+", dtype=np.uint8, shape=(n, SIDE, SIDE, 3)
    )
    labels = np.zeros((n, IMAGE_TOKENS, len(NAMES)), np.uint8)
    with get_context("spawn").Pool(workers) as pool:
        # A scene depends on split, seed and index alone, so the number
        # of workers changes nothing; ``imap`` keeps the order.
        drawn = pool.imap(partial(_draw, split, seed), range(n), chunksize=64)
        for index, (picture, patches) in enumerate(drawn):
            pixels[index] = picture
            labels[index] = patches
    pixels.flush()
    np.save(folder / f"{split}-labels.npy", labels)


def _draw(split: str, seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixels and patch labels of one scene."""
    one = scene(split, index, seed)
    return np.asarray(one.image()), patch_labels(one)


def patch_labels(one: Scene) -> np.ndarray:
    """Returns the categories ``(64, 28)`` whose box covers 30 % of each of the 64 patches or has its centre there."""
    labels = np.zeros((GRID, GRID, len(NAMES)), np.uint8)
    edges = np.arange(GRID) * PATCH
    for placed in one.objects:
        x, y, width, height = placed.box
        across = np.clip(np.minimum(edges + PATCH, x + width) - np.maximum(edges, x), 0, None)
        down = np.clip(np.minimum(edges + PATCH, y + height) - np.maximum(edges, y), 0, None)
        kind = NAMES.index(placed.name)
        labels[..., kind] |= (np.outer(down, across) >= 0.3 * PATCH**2).astype(np.uint8)
        # A small object may cover less than 30 % of every patch, and would have no label without
        # its centre. The centre of an object at the edge may lie outside the picture.
        row, column = (int(min(max(c, 0), SIDE - 1) // PATCH) for c in (y + height / 2, x + width / 2))
        labels[row, column, kind] = 1
    return labels.reshape(IMAGE_TOKENS, len(NAMES))


class Pictures:
    """The rendered pictures and patch labels of a split, read from disk.

    Args:
        folder: where ``render_split`` wrote them.
        split: the name of the split.
    """

    def __init__(self, folder: Path, split: str) -> None:
        # Mapped files are shared by all worker processes, which would otherwise hold a copy each.
        self.pixels = np.load(folder / f"{split}-pixels.npy", mmap_mode="r")
        self.labels = np.load(folder / f"{split}-labels.npy", mmap_mode="r")

    def batch(self, indices: Sequence[int], device: torch.device) -> Tensor:
        """Returns pixel values as the processor would give them: (n, 3, 128, 128), from -1 to 1."""
        picked = torch.from_numpy(np.stack([self.pixels[i] for i in indices])).to(device)
        return picked.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


@dataclass(frozen=True)
class Rows:
    """Token rows for the language model.

    Args:
        ids: ``(rows, length)``, padded on the right.
        positions: ``(rows, length)``, the position of each token.
        mask: ``(rows, 1, length, length)`` bool, which token sees which.
        targets: by kind ``(rows, length)``, the next token where it is to be learned, else ``NOTHING``.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    targets: dict[str, Tensor]

    def to(self, device: torch.device) -> Rows:
        """Returns the rows on a device."""
        moved = {kind: target.to(device) for kind, target in self.targets.items()}
        return Rows(self.ids.to(device), self.positions.to(device), self.mask.to(device), moved)


@dataclass(frozen=True)
class Turn:
    """A prompt (token ids), the answer to learn (token ids), and the kind of loss that it counts towards."""

    prompt: list[int]
    answer: list[int]
    kind: str


Row = tuple[list[int], Sequence[Sequence[Turn]]]
"""A prefix shared by the row's conversations, and the conversations."""


class Lines:
    """Tokens of prompts, captions and questions, joined from pieces as the processor would tokenize the whole prompt."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokens = partial(tokenizer.encode, add_special_tokens=False)
        self._memo: dict[str, list[int]] = {}
        blank = self._piece("USER: ")
        self.image_prefix = [BOS, *blank, *[IMAGE] * IMAGE_TOKENS, *self._piece("\n")]
        self.plain_prefix = [token for token in self.image_prefix if token != IMAGE]

    def _piece(self, text: str) -> list[int]:
        """Returns the tokens of a text that occurs again and again, from a memory of them."""
        if text not in self._memo:
            self._memo[text] = self._tokens(text)
        return self._memo[text]

    def describe(self, one: Scene, rng: np.random.Generator, blind: bool = False) -> Turn:
        """Returns the turn that asks for a caption.

        Args:
            one: the scene to describe.
            rng: draws the wording of the question.
            blind: whether the turn starts a conversation without any image, with the text that stands before one.
        """
        prompt = PROMPTS[int(rng.choice(len(PROMPTS), p=PROMPT_WEIGHTS))]
        caption = self._tokens(f" {one.caption()}")
        before = self.plain_prefix if blind else []
        return Turn([*before, *self._piece(f"{prompt} ASSISTANT:")], [*caption, EOS], "caption")

    def ask(self, one: Scene, n: int, rng: np.random.Generator, user: str = "") -> list[Turn]:
        """Returns ``n`` yes/no turns about random categories, each equally likely to be present or absent.

        Args:
            one: the scene to ask about.
            n: the number of questions.
            rng: draws the categories.
            user: the text before the question, which is ``"USER: "`` in the middle of a conversation.
        """
        absent = [name for name in NAMES if name not in one.names]
        turns = []
        for there in rng.random(n) < 0.5:
            pool = one.names if there else absent
            question = self._piece(f"{user}{ask(pool[int(rng.integers(len(pool)))])} ASSISTANT:")
            turns.append(Turn(question, [*self._piece(" Yes" if there else " No"), EOS], "answer"))
        return turns


def pack(rows: Sequence[Row]) -> Rows:
    """Returns token rows made from ``(shared prefix, conversations)``.

    Every conversation of a row sees the row's prefix and itself only, with positions that go on after the prefix:
    what the model would see if each stood alone. This lets one image serve a caption and several questions.
    """
    built = [_build(prefix, conversations) for prefix, conversations in rows]
    length = max(len(ids) for ids, *_ in built)

    def column(part: int, fill: int) -> Tensor:
        return torch.tensor([[*row[part], *[fill] * (length - len(row[part]))] for row in built])

    # The owner of a token is 0 for the prefix, the number of its conversation, or -1 for padding.
    ids, positions, owner = column(0, PAD), column(1, 0), column(2, -1)
    # Padding sees padding, since a row that sees nothing has no softmax.
    seen = (owner[:, None, :] == owner[:, :, None]) | ((owner == 0)[:, None, :] & (owner >= 0)[:, :, None])
    mask = (seen & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
    targets = {"caption": column(3, NOTHING), "answer": column(4, NOTHING)}
    return Rows(ids, positions, mask, targets)


def _build(prefix: list[int], conversations: Sequence[Sequence[Turn]]) -> tuple[list[int], ...]:
    """Returns ids, positions, owners, and the targets of captions and of answers for one row."""
    ids = list(prefix)
    positions = list(range(len(prefix)))
    owner = [0] * len(prefix)
    targets: dict[str, list[int]] = {kind: [NOTHING] * len(prefix) for kind in ("caption", "answer")}
    for number, turns in enumerate(conversations, start=1):
        start = len(ids)
        for turn in turns:
            ids += turn.prompt + turn.answer
            for kind, target in targets.items():
                lesson = turn.answer if kind == turn.kind else [NOTHING] * len(turn.answer)
                # A target stands at the token before the one to be learned: the last token of the prompt
                # predicts the first of the answer, and the answer's last token predicts nothing.
                target += [NOTHING] * (len(turn.prompt) - 1) + lesson + [NOTHING]
        positions += range(len(prefix), len(prefix) + len(ids) - start)
        owner += [number] * (len(ids) - start)
    return ids, positions, owner, targets["caption"], targets["answer"]
