"""A CHAIR score as one HTML page that needs no other file: figures, and captions with unsupported words marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from keepsight.eval.chair.report import PerCaption, Report
from keepsight.reports.templating import render

MOST_CAPTIONS = 5000
MOST_CLEAN = 1000
MOST_LETTERS = 4000
MOST_OBJECTS = 12

# Each figure's attribute of the report, its name, the factor it is shown with, and its meaning. Rates are shown in per cent,
# and lengths as they are.
FIGURES = (
    ("chair_s", "CHAIR_s", 100, "% of captions that name an object not in the image"),
    ("chair_i", "CHAIR_i", 100, "% of mentions that are not in the image"),
    ("recall", "recall", 100, "% of the images' objects that are named"),
    ("precision", "precision", 100, "% of the objects named that are in the image"),
    ("f1", "F1", 100, "harmonic mean of precision and recall, in %"),
    ("mentions", "mentions", 1, "objects named in a caption, repeats counted"),
    ("length", "length", 1, "words and marks in a caption"),
    ("no_object", "no object", 100, "% of captions that name no object"),
)
HEADLINES = 3
"""How many of the figures, from the first on, stand as cards on top of the page."""


@dataclass(frozen=True)
class Figure:
    """A figure as the page writes it; ``interval`` is empty where there is no interval."""

    name: str
    label: str
    value: str
    interval: str
    meaning: str


@dataclass(frozen=True)
class InventedObject:
    """An object that captions made up.

    Args:
        name: the object.
        width: the width of its bar, in per cent of the largest.
        unsupported: how many mentions of it no picture supports.
        named: how many mentions of it there are.
    """

    name: str
    width: int
    unsupported: int
    named: int


@dataclass(frozen=True)
class Piece:
    """A stretch of a caption.

    Args:
        text: the stretch.
        object: what an unsupported word stands for; None for all other text.
    """

    text: str
    object: str | None = None
    stands_for: bool = False
    """Whether the object's name differs from the word, so that the reader needs to see both."""


@dataclass(frozen=True)
class ShownCaption:
    """A caption on the page.

    Args:
        image_id: the picture.
        kind: ``guilty`` if a word is unsupported, else ``clean``; it decides the style.
        tally: how many mentions are unsupported, in words.
        pieces: the text, split at the unsupported words.
        more: how many letters are left out, as text; empty for none.
    """

    image_id: str
    kind: str
    tally: str
    pieces: tuple[Piece, ...]
    more: str


def page(report: Report, *, source: str) -> str:
    """The whole page as HTML; it loads nothing and runs no script.

    Captions with unsupported words come first, those with the most on top, then the others in their order. At most
    `MOST_CAPTIONS` are shown, at most `MOST_CLEAN` of those without an unsupported word, and of one caption the first
    `MOST_LETTERS` letters. The page says what it leaves out.

    Args:
        report: the score.
        source: what was scored, such as the name of the file of captions.
    """
    import keepsight

    figures = [_figure(report, *one) for one in FIGURES]
    # Sorting keeps the order of the file among captions with equally many unsupported words.
    guilty = sorted(
        (row for row in report.captions if row.hallucinated), key=lambda row: -len(row.hallucinated)
    )
    clean = [row for row in report.captions if not row.hallucinated]
    first = guilty[:MOST_CAPTIONS]
    rest = clean[: min(MOST_CLEAN, MOST_CAPTIONS - len(first))]
    invented = Counter(mention.object for row in report.captions for mention in row.hallucinated)
    return render(
        "chair_page",
        version=keepsight.__version__,
        source=source,
        report=report,
        captions=_captions(report.n),
        verdict=_verdict(len(guilty)),
        headlines=figures[:HEADLINES],
        figures=figures,
        objects=_objects(report, invented),
        distinct_objects=len(invented),
        both_kinds=bool(first and rest),
        left_out=[
            f"{_captions(total - shown)} {what}"
            for total, shown, what in (
                (len(guilty), len(first), "with unsupported words"),
                (len(clean), len(rest), "without"),
            )
            if total > shown
        ],
        # The template takes the captions one by one, so that thousands of them do not stand in memory twice.
        shown=map(_shown, [*first, *rest]),
    )


def _verdict(guilty: int) -> str:
    """The sentence part that says how many captions name an object that is not in the image."""
    if not guilty:
        return "none names an object that is not in its image"
    return f"{guilty:,} name{'s' if guilty == 1 else ''} an object that is not in the image"


def _captions(n: int) -> str:
    """A number of captions with its noun."""
    return "1 caption" if n == 1 else f"{n:,} captions"


def _figure(report: Report, name: str, label: str, scale: int, meaning: str) -> Figure:
    """One of `FIGURES` with its value and interval as texts."""
    value, bounds = getattr(report, name), report.ci[name]
    return Figure(
        name=name,
        label=label,
        value="–" if value is None else f"{scale * value:.1f}",
        interval="" if bounds is None else f"{scale * bounds[0]:.1f}–{scale * bounds[1]:.1f}",
        meaning=meaning,
    )


def _objects(report: Report, invented: Counter[str]) -> list[InventedObject]:
    """The objects that are made up most often, with how many times each is named at all."""
    if not invented:
        return []
    named = Counter(name for row in report.captions for name in row.generated)
    most = invented.most_common(MOST_OBJECTS)
    # The bar of the most frequent object is full, and the others are in proportion.
    largest = most[0][1]
    return [InventedObject(name, round(100 * count / largest), count, named[name]) for name, count in most]


def _shown(row: PerCaption) -> ShownCaption:
    """A caption as the page shows it."""
    unsupported, mentions = len(row.hallucinated), len(row.generated)
    left = len(row.caption) - MOST_LETTERS
    return ShownCaption(
        image_id=str(row.image_id),
        kind="guilty" if row.hallucinated else "clean",
        tally=f"{unsupported} of {mentions} mentions unsupported" if mentions else "names no object",
        pieces=tuple(piece for piece in _pieces(row) if piece.text),
        more=f"{left:,}" if left > 0 else "",
    )


def _pieces(row: PerCaption) -> Iterator[Piece]:
    """The first `MOST_LETTERS` letters of a caption, split at its unsupported words."""
    text, at = row.caption[:MOST_LETTERS], 0
    for mention in sorted(row.hallucinated, key=lambda one: one.span):
        start, end = mention.span
        # A word that the cut goes through is shown as plain text, since half a word must not be marked.
        if end > len(text):
            break
        word = text[start:end]
        yield Piece(text[at:start])
        yield Piece(word, mention.object, mention.object.lower() not in (word.lower(), mention.word))
        at = end
    yield Piece(text[at:])
