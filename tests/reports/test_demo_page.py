from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from standin import standin

from keepsight import M3ID, VCD
from keepsight.eval.chair import score as chair
from keepsight.eval.chair.captions import Caption
from keepsight.experiments.demo_comparison import Comparison, compare
from keepsight.reports.demo_chart import Dot, Line, draw
from keepsight.reports.demo_page import page

VOID = {"meta", "img", "input", "br", "line", "circle"}


class Reader(HTMLParser):
    """Collects tags with their attributes and checks that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str, style: str | None = None) -> list[dict[str, str | None]]:
        return [
            attrs
            for name, attrs in self.tags
            if name == tag and (style is None or attrs.get("class") == style)
        ]


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    model, processor = standin()
    return compare(model, processor, [VCD(noise_step=999), M3ID(decay=0.5)], n=4, batch=4, max_new_tokens=10)


def test_the_page_needs_nothing_else(comparison: Comparison) -> None:
    text = page(comparison)
    read = Reader(text)
    assert not read.all("script")
    assert not read.all("link")
    images = [attrs["src"] or "" for attrs in read.all("img")]
    assert len(images) == 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in images)
    assert not re.findall(r"https?://|url\(|@import", text)


def test_every_mention_is_marked_for_what_it_is(comparison: Comparison) -> None:
    read = Reader(page(comparison))
    judged = [row for entry in comparison.entries for row in entry.report.captions]
    invented = sum(len(row.hallucinated) for row in judged)
    mentioned = sum(len(row.generated) for row in judged)
    struck = [attrs["title"] or "" for attrs in read.all("s", "no") if "title" in attrs]
    underlined = [attrs["title"] or "" for attrs in read.all("span", "yes") if "title" in attrs]
    assert invented > 0
    assert (len(struck), len(underlined)) == (invented, mentioned - invented)
    assert all(title.startswith("not in the picture: ") for title in struck)
    named = {title.removeprefix("not in the picture: ") for title in struck}
    assert named == {mention.object for row in judged for mention in row.hallucinated}


def test_the_page_says_what_it_is_about(comparison: Comparison) -> None:
    text = page(comparison)
    for words in (
        "model demo",
        "split test-shifted",
        "4 pictures",
        "say nothing about other models",
        "noise_step=999",
    ):
        assert words in text
    for row in comparison.to_json()["rows"]:
        assert f"{100 * row['chair_i']:.1f}" in text


def test_captions_are_escaped(comparison: Comparison) -> None:
    wicked = '<script>alert(1)</script> a dog & "cat" <b>'
    captions = [Caption(scene.image_id, wicked) for scene in comparison.scenes]
    truth = {scene.image_id: scene.names for scene in comparison.scenes}
    entries = tuple(replace(entry, report=chair.score(captions, truth)) for entry in comparison.entries)
    text = page(replace(comparison, entries=entries, model="<i>"))
    assert not Reader(text).all("script")
    assert "&lt;script&gt;" in text
    assert "<i>" not in text


def test_a_page_without_methods_or_figures_still_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = standin()
    greedy = compare(model, processor, [], n=1, max_new_tokens=4)
    silent = chair.score([Caption(greedy.scenes[0].image_id, "")], {greedy.scenes[0].image_id: ()})
    for one in (greedy, replace(greedy, entries=(replace(greedy.entries[0], report=silent),))):
        read = Reader(page(one))
        assert len(read.all("img")) == 1


def test_the_chart_is_to_scale() -> None:
    """Axis 10 to 50 % in steps of 10: 20 % stands a quarter of the way, 40 % three quarters."""
    svg = draw(
        "a rate", [Line("a", "way-0", Dot(0.2, 0.1, 0.3), None), Line("b", "way-1", Dot(0.4, 0.3, 0.5), None)]
    )
    read = Reader(svg)
    ticks = [float(attrs["x"] or 0) for attrs in read.all("text", "tick")]
    dots = [float(attrs["cx"] or 0) for attrs in read.all("circle")]
    assert re.findall(r'class="tick"[^>]*>(\d+)<', svg) == ["10", "20", "30", "40", "50"]
    left, right = ticks[0], ticks[-1]
    assert dots == [pytest.approx(left + (right - left) * share, abs=0.1) for share in (0.25, 0.75)]


def test_a_chart_of_one_value_has_an_axis() -> None:
    svg = draw("a rate", [Line("a", "way-0", Dot(1.0, 1.0, 1.0), Dot(1.0, 1.0, 1.0))])
    assert len(re.findall('class="tick"', svg)) >= 2
    assert "nan" not in svg


def test_labels_are_escaped(comparison: Comparison) -> None:
    svg = draw('a "rate"', [Line("<a>", "way-0", Dot(0.2, 0.1, 0.3), None)])
    assert "&lt;a&gt;" in svg
    assert 'aria-label="a &quot;rate&quot;"' in svg
