"""What may be edited inside a decoder, and where: the vocabulary of attention edits and steering.

An ``Edit`` overrides the seams it needs; ``attach`` calls them and owns every hook. Three depths of attention edits:
scale what a head puts out (any kernel), change scores before the softmax, change probabilities after it. The last
two name the query rows they touch; only those are recomputed with explicit weights, all others stay with the fast
kernel, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Site:
    """Where in a generation an edit stands.

    Rows and columns are counted from the start of the padded prompt, whatever part of it a forward pass holds.
    """

    layer: int
    first: int
    """Row number of the pass's first token."""
    rows: int
    """Tokens in this pass."""
    prompt: int
    """Length of the padded prompt."""
    image: Tensor
    """``(batch, prompt)`` bool: where the prompt holds the picture; batch as generate() expanded it."""

    @property
    def last_prompt_row(self) -> int | None:
        """Index, within this pass, of the prompt's last token; None when the pass does not hold it."""
        index = self.prompt - 1 - self.first
        return index if 0 <= index < self.rows else None

    def row_numbers(self) -> Tensor:
        """``(rows,)``: the number of every row of this pass."""
        return torch.arange(self.first, self.first + self.rows, device=self.image.device)

    def image_columns(self, keys: int, first_key: int) -> Tensor:
        """``(batch, keys)`` bool: which of ``keys`` columns, beginning with number ``first_key``, are the picture."""
        columns = self.image.new_zeros(self.image.shape[0], max(self.prompt, first_key + keys))
        columns[:, : self.prompt] = self.image
        return columns[:, first_key : first_key + keys]


class Edit:
    """One edit. Every seam that is not overridden costs nothing. Fresh for every generation: state may live in it."""

    layers: frozenset[int] = frozenset()

    def rows(self, site: Site) -> Tensor:
        """``(batch, rows)`` bool on the site's device: query rows whose scores or probabilities are edited.

        The same in every layer of a pass. Here: all of them.
        """
        return torch.ones(site.image.shape[0], site.rows, dtype=torch.bool, device=site.image.device)

    def scores(self, scores: Tensor, image: Tensor, site: Site) -> Tensor:
        """New scaled scores ``(batch, heads, some rows, keys)``, before the mask; ``image`` is ``(batch, keys)``."""
        return scores

    def probabilities(self, probs: Tensor, image: Tensor, site: Site) -> Tensor:
        """New attention probabilities ``(batch, heads, some rows, keys)``, float32, rows summing to 1."""
        return probs

    def heads(self, out: Tensor, site: Site) -> Tensor:
        """New head outputs ``(batch, rows, heads, head_dim)``, before the output projection."""
        return out

    def enter(self, hidden: Tensor, site: Site) -> None:
        """Read the residual stream ``(batch, rows, hidden)`` before the layer."""

    def leave(self, hidden: Tensor, site: Site) -> Tensor:
        """New residual stream after the layer."""
        return hidden

    def mlp(self, hidden: Tensor, site: Site) -> Tensor:
        """New output of the layer's MLP, before it is added to the residual stream."""
        return hidden

    def overrides(self, seam: str) -> bool:
        return getattr(type(self), seam) is not getattr(Edit, seam)

    @property
    def weighs(self) -> bool:
        """Whether attention weights are needed explicitly."""
        return self.overrides("scores") or self.overrides("probabilities")
