"""The captions of a CHAIR comparison picture by picture, for pages and terminals that show some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keepsight.eval.chair.report import PerCaption, Report
from keepsight.experiments.compare import Comparison
from keepsight.reports.compare_tables import spec_parts


@dataclass(frozen=True, kw_only=True)
class CaptionExample:
    """A picture, and what every method said about it.

    Args:
        number: the number of the picture in the run, from 1.
        id: the id of the question that was asked about it.
        captions: the judged captions, one for each row of the comparison, the baseline's first.
    """

    number: int
    id: str
    captions: tuple[PerCaption, ...]

    @property
    def differ(self) -> bool:
        """Whether the methods said different things."""
        return len({one.caption for one in self.captions}) > 1


def caption_examples(comparison: Comparison) -> tuple[CaptionExample, ...]:
    """All pictures that a comparison of captions judged, in the order of the run; empty for POPE and BEAF."""
    judged = [row.score.captions for row in comparison.rows if isinstance(row.score, Report)]
    if not judged:
        return ()
    numbers = {item.id: number for number, item in enumerate(comparison.merged.runs[0].items, start=1)}
    return tuple(
        CaptionExample(number=numbers[asked], id=asked, captions=captions)
        # All methods were judged on the same questions in the same order, so their captions of one picture stand at the
        # same place.
        for asked, captions in zip(comparison.merged.ids, zip(*judged, strict=True), strict=True)
    )


def short_names(specs: Sequence[str]) -> list[str]:
    """The specs without their settings where the names alone tell them apart, else the specs themselves.

    >>> short_names(["greedy", "m3id:decay=0.05"])
    ['greedy', 'm3id']
    """
    names = ["+".join(name for name, _ in spec_parts(spec)) for spec in specs]
    return names if len(set(names)) == len(names) else list(specs)
