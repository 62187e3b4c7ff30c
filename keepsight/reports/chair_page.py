"""A CHAIR score as one HTML page that needs nothing else: the figures, and the captions with unsupported words marked."""

from __future__ import annotations

from collections import Counter
from html import escape
from importlib.resources import files

from keepsight.eval.chair.report import Mention, PerCaption, Report

MOST_CAPTIONS = 5000
MOST_CLEAN = 1000
MOST_LETTERS = 4000
MOST_OBJECTS = 12

# Rates in per cent, lengths as they are: attribute, name, factor, meaning.
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
SWITCH = '<label class="filter"><input type="checkbox" id="only"> only those with unsupported words</label>\n'


def page(report: Report, *, source: str) -> str:
    """The whole page; it loads nothing and runs no script.

    Captions with unsupported words come first, those with the most on top, then the others in their order. At
    most `MOST_CAPTIONS` are shown, of those without an unsupported word at most `MOST_CLEAN`, and of one caption
    the first `MOST_LETTERS` letters; the page says what it leaves out.

    Args:
        source: what was scored, such as the name of the file of captions.
    """
    import keepsight

    style = files("keepsight.reports").joinpath("chair_page.css").read_text(encoding="utf-8")
    about = (
        f"Keepsight {keepsight.__version__} · CHAIR, family {report.family} · vocabulary {report.vocabulary}"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>CHAIR: {_text(source)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<p class="eyebrow">{_text(about)}</p>
<h1>{_text(source)}</h1>
<p class="lead">{_captions(report.n)}; {_verdict(report)}.</p>
<div class="headlines">
{_headlines(report)}</div>
<div class="columns">
<section>
<h2>All figures</h2>
{_table(report)}</section>
{_objects(report)}</div>
<p class="note">{_intervals(report)}Scores of the other family, or of another vocabulary, must not be compared with
 these.</p>
{_list(report)}
</main>
</body>
</html>
"""


def _intervals(report: Report) -> str:
    if not report.resamples:
        return ""
    return f"95 %: bootstrap intervals over images ({report.resamples} resamples, seed {report.seed}). "


def _verdict(report: Report) -> str:
    guilty = sum(bool(row.hallucinated) for row in report.captions)
    if not guilty:
        return "none names an object that is not in its image"
    return f"{guilty:,} name{'s' if guilty == 1 else ''} an object that is not in the image"


def _captions(n: int) -> str:
    return "1 caption" if n == 1 else f"{n:,} captions"


def _headlines(report: Report) -> str:
    cards = []
    for name, label, scale, gloss in FIGURES[:HEADLINES]:
        value, bounds = _figure(report, name, scale)
        unit = "" if value == "–" else " %"
        cards.append(
            f'<div class="headline {name}"><span class="name">{label}</span><div class="big">{value}{unit}</div>'
            f"<p>{gloss.removeprefix('% ')}{f'<br>95 %: {bounds}' if bounds else ''}</p></div>\n"
        )
    return "".join(cards)


def _figure(report: Report, name: str, scale: int) -> tuple[str, str]:
    value, bounds = getattr(report, name), report.ci[name]
    return (
        "–" if value is None else f"{scale * value:.1f}",
        "" if bounds is None else f"{scale * bounds[0]:.1f}–{scale * bounds[1]:.1f}",
    )


def _table(report: Report) -> str:
    rows = []
    for name, label, scale, gloss in FIGURES:
        value, bounds = _figure(report, name, scale)
        rows.append(f"<tr><th>{label}<small>{gloss}</small></th><td>{value}</td><td>{bounds}</td></tr>\n")
    return (
        "<table><thead><tr><th></th><th>score</th><th>95 %</th></tr></thead>\n<tbody>\n"
        + "".join(rows)
        + "</tbody></table>\n"
    )


def _objects(report: Report) -> str:
    """What is made up most often, of how many times it is named at all."""
    made_up = Counter(mention.object for row in report.captions for mention in row.hallucinated)
    if not made_up:
        return ""
    named = Counter(name for row in report.captions for name in row.generated)
    most = made_up.most_common(MOST_OBJECTS)
    rows = "".join(
        f'<tr><th>{_text(name)}</th><td class="bar"><i style="width:{100 * count / most[0][1]:.0f}%"></i></td>'
        f"<td>{count}</td><td>{named[name]}</td></tr>\n"
        for name, count in most
    )
    more = (
        f"<p class='note'>The {len(most)} first of {len(made_up)} objects.</p>"
        if len(made_up) > len(most)
        else ""
    )
    return (
        "<section>\n<h2>Made up most often</h2>\n<table><thead><tr><th></th><th></th><th>unsupported</th><th>named</th></tr>"
        f"</thead>\n<tbody>\n{rows}</tbody></table>\n{more}</section>\n"
    )


def _list(report: Report) -> str:
    guilty = sorted(
        (row for row in report.captions if row.hallucinated), key=lambda row: -len(row.hallucinated)
    )
    clean = [row for row in report.captions if not row.hallucinated]
    first = guilty[:MOST_CAPTIONS]
    rest = clean[: min(MOST_CLEAN, MOST_CAPTIONS - len(first))]
    left = [
        f"{_captions(total - shown)} {what}"
        for total, shown, what in (
            (len(guilty), len(first), "with unsupported words"),
            (len(clean), len(rest), "without"),
        )
        if total > shown
    ]
    note = (
        f'<p class="note">Left out: {" and ".join(left)}. The JSON file of --json holds all.</p>\n'
        if left
        else ""
    )
    both = bool(first and rest)
    switch = (
        '<label class="filter"><input type="checkbox" id="only"> only those with unsupported words</label>\n'
        if both
        else ""
    )
    return (
        f'<section class="captions">\n<h2>Captions</h2>\n<p class="soft">Words for objects that are not in the image are '
        f"<mark>marked</mark>, with the object they stand for.</p>\n{switch}{note}"
        + "".join(map(_row, [*first, *rest]))
        + "</section>"
    )


def _row(row: PerCaption) -> str:
    kind = "guilty" if row.hallucinated else "clean"
    bad, all_of_them = len(row.hallucinated), len(row.generated)
    tally = f"{bad} of {all_of_them} mentions unsupported" if all_of_them else "names no object"
    return (
        f'<article class="{kind}"><h3>{_text(str(row.image_id))} <span>{tally}</span></h3>'
        f'<p dir="auto">{_marked(row.caption, row.hallucinated)}</p></article>\n'
    )


def _marked(caption: str, unsupported: tuple[Mention, ...]) -> str:
    pieces, at = [], 0
    shown = caption[:MOST_LETTERS]
    for mention in sorted(unsupported, key=lambda one: one.span):
        start, end = mention.span
        if end > len(shown):
            break
        word = shown[start:end]
        plain = mention.object.lower() in (word.lower(), mention.word)
        stands_for = "" if plain else f"<i> {_text(mention.object)}</i>"
        title = _text(f"{mention.object}: not in the image")
        pieces += [_text(shown[at:start]), f'<mark title="{title}">{_text(word)}{stands_for}</mark>']
        at = end
    rest = len(caption) - len(shown)
    more = f' <span class="soft">… and {rest:,} more letters</span>' if rest else ""
    return "".join([*pieces, _text(shown[at:]), more]) or '<span class="soft">(empty)</span>'


def _text(text: str) -> str:
    """Escaped; control characters, which a page may not hold, as the pictures Unicode has for them."""
    return escape(
        "".join(
            chr(0x2400 + ord(c)) if c < " " and c not in "\t\n" else "␡" if c == "\x7f" else c for c in text
        )
    )
