"""Tells processors when assisted decoding shows them draft tokens instead of the model's own scores.

Any draft is right, since the model itself has the last word about every token. To contrast drafts would cost a full forward
for each of them and change nothing in the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING

from keepsight.engines.hf.patching import watching_candidates

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Drafts:
    """Whether candidate tokens are being drafted for one generation."""

    def __init__(self) -> None:
        self._threads: set[int] = set()

    @property
    def under_way(self) -> bool:
        """Whether the calling thread is drafting. Another thread may draft for another generation of the same model."""
        return get_ident() in self._threads

    def change(self, under_way: bool) -> None:
        """Note that the calling thread has begun, or ended, to draft."""
        if under_way:
            self._threads.add(get_ident())
        else:
            self._threads.discard(get_ident())


@contextmanager
def watching_drafts(model: PreTrainedModel) -> Iterator[Drafts]:
    """Inside the block the yielded object knows whether ``generate`` of ``model`` is drafting."""
    drafts = Drafts()
    with watching_candidates(model, drafts.change):
        yield drafts
