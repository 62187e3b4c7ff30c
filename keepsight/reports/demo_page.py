"""A comparison as one HTML page that needs nothing else: headline figures, chart, table, and the pictures themselves."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from keepsight.demo.splits import SPLITS
from keepsight.experiments.demo_comparison import RATES
from keepsight.reports.demo_chart import Dot, Line, draw

if TYPE_CHECKING:
    from keepsight.demo.world import Scene
    from keepsight.eval.chair.report import PerCaption
    from keepsight.experiments.demo_comparison import Comparison, Entry

WAYS = 6
"""Colours in the style sheet; further methods start again behind greedy's."""
MOST_PICTURES = 120
LIMITS = (
    "These figures are from the drawn demo world and the tiny model that comes with Keepsight. They show what the methods"
    " do to that model, and say nothing about other models."
)
HEADINGS = {
    "chair_s": ("CHAIR_s", "captions that invent an object, in %"),
    "chair_i": ("CHAIR_i", "mentions that are invented, in %"),
    "recall": ("Recall", "objects there that are named, in %"),
}


def page(comparison: Comparison) -> str:
    """The whole page. Pictures are inside it as data URIs; it loads nothing and runs no script."""
    result = comparison.to_json()
    n, split = result["n"], result["split"]
    style = files("keepsight.reports").joinpath("page.css").read_text(encoding="utf-8")
    title = f"Keepsight demo: {n} drawn pictures, {split}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<p class="eyebrow">Keepsight {escape(result["versions"]["keepsight"])} · model {escape(result["model"])}
 · split {escape(split)} · {n} pictures · seed {result["seed"]}</p>
<h1>What the model invents, and what is taken back</h1>
<p class="lead">A small vision-language model describes drawn pictures. It has learned what usually comes together, and names
 it even when it is not there.</p>
<p class="soft">Split <strong>{escape(split)}</strong>: {escape(SPLITS[split])}. {escape(LIMITS)}</p>
<div class="headlines">
{_headlines(result["rows"])}</div>
{_charts(result["rows"])}
<h2>All figures</h2>
<div class="scroll">
{_table(result["rows"])}</div>
<p class="note">In %, with 95 % bootstrap intervals over pictures. CHAIR_s: captions that invent an object. CHAIR_i:
 mentions that are invented. Recall: objects in the pictures that are named. Cost: time to generate over that of greedy,
 measured in this run on one machine. Greedy cut: greedy, each caption cut to as many mentions as the method made; a method
 that merely says less is no better than that.</p>
{_gallery(comparison)}
{_footer(result)}
</main>
</body>
</html>
"""


def _headlines(rows: Sequence[Mapping[str, Any]]) -> str:
    greedy = rows[0]
    cards = [] if len(rows) > 1 else [_greedy_card(greedy)]
    for at, row in enumerate(rows[1:], 1):
        name, settings = _spec(row["method"])
        change = row["difference"]
        cards.append(
            f'<div class="headline {_way(at)}"><span class="name">{name}</span>{settings}'
            f'<div class="big"><span>{_percent(greedy["chair_i"])} →</span> {_percent(row["chair_i"])} %</div>'
            f"<p>of mentioned objects are invented: {_points(change['chair_i'])} points.<br>"
            f"Recall {_percent(greedy['recall'])} → {_percent(row['recall'])} %: {_points(change['recall'])} points."
            f"{_doubt(change['chair_i'])}</p></div>\n"
        )
    return "".join(cards)


def _doubt(change: Mapping[str, Any]) -> str:
    low, high = change["ci"]
    return (
        ""
        if low is None or low > 0 or high < 0
        else "<br>The interval of CHAIR_i holds zero: no effect is shown."
    )


def _greedy_card(greedy: Mapping[str, Any]) -> str:
    return (
        f'<div class="headline way-0"><span class="name">greedy</span><div class="big">{_percent(greedy["chair_i"])} %</div>'
        f"<p>of mentioned objects are invented. Recall {_percent(greedy['recall'])} %.</p></div>\n"
    )


def _charts(rows: Sequence[Mapping[str, Any]]) -> str:
    panels = []
    for rate, direction in (("chair_i", "lower is better"), ("recall", "higher is better")):
        lines = [
            Line(_spec(row["method"])[0], _way(at), dot, _dot(row.get("greedy_cut"), rate))
            for at, row in enumerate(rows)
            if (dot := _dot(row, rate)) is not None
        ]
        heading, meaning = HEADINGS[rate]
        if lines:
            panels.append(
                f'<div class="panel"><h3>{heading} <span>{meaning}; {direction}</span></h3>'
                f"{draw(f'{heading}: {meaning}', lines)}</div>"
            )
    return f'<div class="panels">{"".join(panels)}</div>'


def _dot(row: Mapping[str, Any] | None, rate: str) -> Dot | None:
    if row is None or row[rate] is None or row["ci"][rate] is None:
        return None
    return Dot(row[rate], *row["ci"][rate])


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    headings = "".join(
        f"<th>{heading}</th>" for heading in ("CHAIR_s", "CHAIR_i", "Recall", "Words", "Mentions", "Cost")
    )
    lines = []
    for at, row in enumerate(rows):
        name, settings = _spec(row["method"])
        lines.append(_row(f"{name}{settings}", row, f"{row['cost']:.1f}×", _way(at)))
        if "greedy_cut" in row:
            lines.append(_row("greedy cut", row["greedy_cut"], "", "cut"))
    return f"<table><thead><tr><th></th>{headings}</tr></thead><tbody>\n{''.join(lines)}</tbody></table>\n"


def _row(name: str, row: Mapping[str, Any], cost: str, style: str) -> str:
    cells = "".join(
        f"<td>{_percent(row[rate])}<small>{_interval(row['ci'][rate])}</small></td>" for rate in RATES
    )
    counts = "".join(f"<td>{_number(row[figure])}</td>" for figure in ("length", "mentions"))
    return f'<tr class="{style}"><th scope="row">{name}</th>{cells}{counts}<td>{cost}</td></tr>\n'


def _gallery(comparison: Comparison) -> str:
    shown = comparison.scenes[:MOST_PICTURES]
    cards = "".join(_picture(at, scene, comparison.entries) for at, scene in enumerate(shown))
    n = len(comparison.scenes)
    which = f"The first {len(shown)} of {n} pictures" if len(shown) < n else "All of them"
    return f"""<section>
<h2>The pictures</h2>
<p class="soft">{which}, in order. <span class="yes">Underlined</span> words name what is there,
 <s class="no">struck</s> words what is not.</p>
<label class="filter"><input type="checkbox" id="differing"> only where the captions differ</label>
<div class="gallery">
{cards}</div>
</section>"""


def _picture(at: int, scene: Scene, entries: Sequence[Entry]) -> str:
    judged = [entry.report.captions[at] for entry in entries]
    same = " same" if len({one.caption for one in judged}) == 1 else ""
    objects = "".join(f"<li>{escape(name)}</li>" for name in scene.names)
    said = "".join(
        f'<dt class="{_way(i)}" title="{escape(entry.method)}">{_spec(entry.method)[0]}</dt>'
        f"<dd>{_marked(one)}<small>{one.correct} of {one.expected} found, {len(one.hallucinated)} invented</small></dd>"
        for i, (entry, one) in enumerate(zip(entries, judged, strict=True))
    )
    about = escape(f"a drawn {scene.context} with " + ", ".join(scene.names))
    return (
        f'<article class="picture{same}"><img src="{_data_uri(scene)}" width="128" height="128" alt="{about}">'
        f'<div><ul class="objects"><li class="place">{at + 1} · {escape(scene.context)}</li>{objects}</ul>'
        f'<dl class="said">{said}</dl></div></article>\n'
    )


def _marked(judged: PerCaption) -> str:
    """The caption as HTML: what it names underlined where it is there, struck where it is not."""
    from keepsight.eval.chair.score import mentions

    invented = {mention.span for mention in judged.hallucinated}
    pieces, at = [], 0
    for mention in mentions(judged.caption):
        start, end = mention.span
        word, name = escape(judged.caption[start:end]), escape(mention.object)
        pieces.append(escape(judged.caption[at:start]))
        if mention.span in invented:
            pieces.append(f'<s class="no" title="not in the picture: {name}">{word}</s>')
        else:
            pieces.append(f'<span class="yes" title="in the picture: {name}">{word}</span>')
        at = end
    return "".join([*pieces, escape(judged.caption[at:])]) or "<em>nothing</em>"


def _footer(result: Mapping[str, Any]) -> str:
    hardware, versions = result["hardware"], result["versions"]
    libraries = ", ".join(f"{name} {number}" for name, number in versions.items())
    weights = (
        f"weights sha256 {result['weights_sha256']}" if result["weights_sha256"] else "weights not digested"
    )
    machine = (
        f"{hardware['cpu']}, {hardware['threads']} of {hardware['cores']} cores used, on {hardware['device']}"
    )
    facts = (
        f"Model {result['model']}, split {result['split']}, {result['n']} pictures, seed {result['seed']}, greedy search,"
        f" batches of {result['batch']}; {result['metric']}; {machine}; {libraries}; {weights}."
    )
    return f"<footer><p>{escape(LIMITS)}</p><p>{escape(facts)}</p></footer>"


def _data_uri(scene: Scene) -> str:
    # JPEG: pixel noise makes a PNG of the same picture about four times as large
    file = io.BytesIO()
    scene.image().save(file, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _spec(spec: str) -> tuple[str, str]:
    """A method's name and its settings, as HTML."""
    name, _, settings = spec.partition(":")
    return escape(name), f"<code>{escape(settings)}</code>" if settings else ""


def _way(at: int) -> str:
    return f"way-{at if at < WAYS else 1 + (at - 1) % (WAYS - 1)}"


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.1f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{_percent(bounds[0])}–{_percent(bounds[1])}"


def _points(difference: Mapping[str, Any]) -> str:
    def signed(change: float | None) -> str:
        return "–" if change is None else f"{100 * change:+.1f}".replace("-", "−")

    low, high = difference["ci"]
    return f"{signed(difference['value'])} [{signed(low)}, {signed(high)}]"
