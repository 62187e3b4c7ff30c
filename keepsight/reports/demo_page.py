"""The page of ``keepsight demo``: the page of a comparison with the demo world's pictures and what was said about them."""

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
"""How many pictures the page shows. More would make it slow to open, since each adds about 20 kB."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A method's headline figures as texts. The changes are empty for the baseline; ``doubtful`` marks a change that is
    not clear."""

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
    """A stretch of a caption.

    Args:
        text: the stretch.
        object: the object that it names; None where it names none.
        there: whether the picture has this object.
    """

    text: str
    object: str | None = None
    there: bool = False


@dataclass(frozen=True)
class Said:
    """A method's caption of a picture.

    Args:
        style, name, spec: the method's CSS class, its short name and its spec.
        pieces: the caption, split at the words that name objects.
        found: how many of the picture's objects it names.
        there: how many objects the picture has.
        invented: how many of its mentions name something that is not there.
    """

    style: str
    name: str
    spec: str
    pieces: list[Piece]
    found: int
    there: int
    invented: int


@dataclass(frozen=True)
class Picture:
    """A picture on the page.

    Args:
        number: its number in the run, from 1.
        source: the picture itself, as a data URI.
        place, objects: the scene's context, and what is in it.
        said: the captions, one for each row of the comparison.
        differ: whether the methods said different things.
    """

    number: int
    source: str
    place: str
    objects: tuple[str, ...]
    said: list[Said]
    differ: bool


def page(comparison: Comparison, scenes: Sequence[Scene], *, folders: bool = True) -> str:
    """The whole page as HTML. Pictures are inside it as data URIs; it loads nothing and runs no script.

    Args:
        comparison: a comparison of one run on ``scenes``, scored with CHAIR.
        scenes: the scenes in the order of the run's questions; at most the first `MOST_PICTURES` are shown.
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
    """One card for each method, or one for the baseline if it is alone."""
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
    """The pictures that the page shows."""
    specs = [row.method for row in comparison.rows]
    names = short_names(specs)
    family = next(row.score.family for row in comparison.rows if isinstance(row.score, Report))
    for example in caption_examples(comparison)[:MOST_PICTURES]:
        # A picture that some method failed on is not among the examples, so the scene is found by its number and not by
        # its place.
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
    """The caption split at all words that name objects."""
    invented = {mention.span for mention in judged.hallucinated}
    at = 0
    # The report keeps the places of invented objects alone, and the page marks those that are there as well, so the
    # caption is read once more.
    for mention in mentions(judged.caption, family=family):
        start, end = mention.span
        yield Piece(judged.caption[at:start])
        yield Piece(judged.caption[start:end], mention.object, mention.span not in invented)
        at = end
    yield Piece(judged.caption[at:])


def _data_uri(scene: Scene) -> str:
    """The picture of a scene as a data URI."""
    # The pictures hold pixel noise, which makes a PNG about four times as large as a JPEG.
    file = io.BytesIO()
    scene.image().save(file, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
