"""The page of ``keepsight demo``: a comparison's page with the pictures of the demo world and what was said about them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keepsight.demo.splits import SPLITS
from keepsight.eval.chair.report import PerCaption, Report
from keepsight.eval.chair.score import mentions
from keepsight.experiments.compare import NO_DIFFERENCE, Comparison, verdict
from keepsight.reports.caption_examples import caption_examples, short_names
from keepsight.reports.compare_page import context, style_of
from keepsight.reports.compare_tables import difference, spec_parts
from keepsight.reports.number_format import percent
from keepsight.reports.templating import render

if TYPE_CHECKING:
    from keepsight.demo.world import Scene

MOST_PICTURES = 120
"""More pictures would make the page slow to open: each adds about 20 kB."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A method's headline figures, as texts; ``change`` of each is empty for the baseline."""

    style: str
    parts: list[tuple[str, str]]
    before: str
    chair_i: str
    chair_i_change: str
    recall_before: str
    recall: str
    recall_change: str
    doubtful: bool


@dataclass(frozen=True)
class Piece:
    """A stretch of a caption; ``object`` is what it names, None where it names nothing, ``there`` if the picture has it."""

    text: str
    object: str | None = None
    there: bool = False


@dataclass(frozen=True)
class Said:
    """A method's caption of a picture, with how many of the picture's objects it names and how many it invents."""

    style: str
    name: str
    spec: str
    pieces: list[Piece]
    found: int
    there: int
    invented: int


@dataclass(frozen=True)
class Picture:
    """A picture with what is in it and what was said about it; ``source`` is a data URI."""

    number: int
    source: str
    place: str
    objects: tuple[str, ...]
    said: list[Said]
    differ: bool


def page(comparison: Comparison, scenes: Sequence[Scene], *, folders: bool = True) -> str:
    """The whole page as HTML. Pictures are inside it as data URIs; it loads nothing and runs no script.

    Args:
        comparison: of one run on ``scenes``, scored with CHAIR.
        scenes: in the order of the run's questions; at most the first `MOST_PICTURES` are shown.
        folders: whether the footer names the folder of the run.
    """
    split = comparison.merged.runs[0].manifest["bench"]["split"]
    pictures = list(_pictures(comparison, scenes))
    return render(
        "demo_page",
        **context(comparison, folders=folders),
        split=split,
        split_meaning=SPLITS[split],
        cards=list(_cards(comparison)),
        pictures=pictures,
        total=len(comparison.merged.ids),
    )


def _cards(comparison: Comparison) -> Iterator[Card]:
    """One for each method, or for the baseline where it is alone."""
    baseline, *methods = comparison.rows
    for number, row in enumerate(methods, start=1) if methods else [(0, baseline)]:
        changes = row.differences
        yield Card(
            style=style_of(number),
            parts=spec_parts(row.method),
            before=percent(baseline.figures["chair_i"].value),
            chair_i=percent(row.figures["chair_i"].value),
            chair_i_change="" if changes is None else difference(changes["chair_i"]),
            recall_before=percent(baseline.figures["recall"].value),
            recall=percent(row.figures["recall"].value),
            recall_change="" if changes is None else difference(changes["recall"]),
            doubtful=changes is not None and verdict(changes["chair_i"]) == NO_DIFFERENCE,
        )


def _pictures(comparison: Comparison, scenes: Sequence[Scene]) -> Iterator[Picture]:
    specs = [row.method for row in comparison.rows]
    names = short_names(specs)
    family = next(row.score.family for row in comparison.rows if isinstance(row.score, Report))
    for example in caption_examples(comparison)[:MOST_PICTURES]:
        scene = scenes[example.number - 1]
        yield Picture(
            number=example.number,
            source=_data_uri(scene),
            place=scene.context,
            objects=scene.names,
            said=[
                Said(
                    style=style_of(number),
                    name=names[number],
                    spec=specs[number],
                    pieces=list(_pieces(judged, family)),
                    found=judged.correct,
                    there=judged.expected,
                    invented=len(judged.hallucinated),
                )
                for number, judged in enumerate(example.captions)
            ],
            differ=example.differ,
        )


def _pieces(judged: PerCaption, family: str) -> Iterator[Piece]:
    """The caption split at the words that name objects."""
    invented = {mention.span for mention in judged.hallucinated}
    at = 0
    for mention in mentions(judged.caption, family=family):
        start, end = mention.span
        yield Piece(judged.caption[at:start])
        yield Piece(judged.caption[start:end], mention.object, mention.span not in invented)
        at = end
    yield Piece(judged.caption[at:])


def _data_uri(scene: Scene) -> str:
    # Pixel noise makes a PNG of the same picture about four times as large as a JPEG
    file = io.BytesIO()
    scene.image().save(file, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
