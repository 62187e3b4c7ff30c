"""The text with which two prompts begin alike: read once, its keys and values go into both caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Shared:
    """The beginning of a pass's prompt, which the main pass reads as well and the pass itself leaves out.

    Args:
        rows: ``(rows,)`` which row of the main pass each row of this one begins like.
        columns: ``(rows, tokens)`` where in it those tokens stand; anywhere for padding, at which nobody looks.
    """

    rows: Tensor
    columns: Tensor

    @property
    def tokens(self) -> int:
        return int(self.columns.shape[1])

    def looks_back(self, mask: Tensor | None) -> bool:
        """Whether under a mask ``(rows, 1, tokens, keys)`` of the whole prompt, None for causal, nothing here looks ahead.

        Only then are these tokens the same whatever follows them. Columns below 0 are passed over.
        """
        if mask is None:
            return True
        if mask.ndim != 4:
            return False
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        seen = seen.any(1).expand(max(mask.shape[0], int(self.rows.max()) + 1), -1, -1)
        seen = seen[self.rows[:, None], self.columns.clamp(min=0)]
        ahead = torch.arange(seen.shape[-1], device=seen.device) > self.columns[..., None]
        return not bool((seen & ahead & (self.columns >= 0)[..., None]).any())

    def of(self, main: Tensor) -> Tensor:
        """The main pass's ``(rows, heads, tokens, dim)`` at those places."""
        columns = self.columns[:, None, :, None].expand(-1, main.shape[1], -1, main.shape[3])
        return main.index_select(0, self.rows).gather(2, columns)


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt on its way into the first layer.

    Args:
        states: ``(rows, tokens, width)``.
        mask: ``(prompts, tokens)``, 1 where a token counts; several rows in succession may have one prompt.
        given: what else the layer is given.
    """

    states: Tensor
    mask: Tensor
    given: dict[str, Any]

    def starts(self) -> Tensor:
        """``(rows,)``: the place of each row's first token that counts."""
        firsts = self.mask.to(self.states.device).long().argmax(-1)
        return firsts.repeat_interleave(self.states.shape[0] // firsts.shape[0])

    def rotary(self, rows: Tensor, places: Tensor) -> list[Tensor]:
        """The rotary tables at ``(some, tokens)`` places, each ``(…, some, tokens, dim)``."""
        tables = self.given.get("position_embeddings")
        if not isinstance(tables, tuple):
            return []
        every = [table.expand(*table.shape[:-3], self.states.shape[0], *table.shape[-2:]) for table in tables]
        return [table[..., rows, places, :] for table in every]


def beginning(main: Prompt, own: Prompt) -> Shared | None:
    """What a branch's prompt begins with that the main one begins with too, seen by the states and positions themselves.

    In a padded batch rows begin at different places; what can be left out is the same number of columns in all of them. None
    where that is no column.
    """
    device, count = main.states.device, own.states.shape[0]
    rows = torch.arange(count, device=device)[:, None]
    main_rows = rows * (main.states.shape[0] // count)
    first, own_first = main.starts()[main_rows], own.starts()[:, None]
    # The last token of a branch's prompt is what it is asked about
    longest = torch.minimum(main.states.shape[1] - first, own.states.shape[1] - 1 - own_first)
    if int(longest.max()) <= 0:
        return None  # a prompt of one token
    steps = torch.arange(int(longest.max()), device=device)
    steps = torch.minimum(steps, (longest - 1).clamp(min=0))  # shorter rows look at their last place again
    here, there = (main_rows, first + steps), (rows, own_first + steps)
    alike = (main.states[here] == own.states[there]).all(-1)
    alike &= torch.arange(alike.shape[1], device=device) < longest
    for table, own_table in zip(main.rotary(*here), own.rotary(*there), strict=True):
        alike &= (table == own_table).all(-1).reshape(-1, *alike.shape).all(0)
    tokens = int((own_first[:, 0] + alike.long().cumprod(-1).sum(-1)).min())
    if not tokens:
        return None
    columns = first + (torch.arange(tokens, device=device) - own_first).clamp(min=0)
    return Shared(main_rows[:, 0], columns)
