"""Tells processors when assisted decoding shows them draft tokens instead of the model's own scores.

Any draft is right, since the model itself has the last word about every token. To contrast drafts would cost a full forward
for each of them and change nothing in the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from keepsight.engines.hf.patching import watching_candidates

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Drafts:
    """Whether candidate tokens are being drafted for one generation."""

    def __init__(self) -> None:
        self.under_way = False

    def change(self, under_way: bool) -> None:
        self.under_way = under_way


@contextmanager
def watching_drafts(model: PreTrainedModel) -> Iterator[Drafts]:
    """Inside the block the yielded object knows whether ``generate`` of ``model`` is drafting."""
    drafts = Drafts()
    with watching_candidates(model, drafts.change):
        yield drafts
