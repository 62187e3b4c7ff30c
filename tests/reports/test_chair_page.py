from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from keepsight.eval.chair.captions import Caption
from keepsight.eval.chair.report import Report
from keepsight.eval.chair.score import score
from keepsight.reports import chair_page
from keepsight.reports.chair_page import page

SAID = [
    Caption("a<b", "A cat & a dog. <script>alert(1)</script>"),
    Caption(2, "Nothing."),
    Caption(3, "Two puppies, a kitten and a couch."),
]
TRUTH = {"a<b": ["cat"], 2: [], 3: []}


class Checker(HTMLParser):
    """Every tag closes, in order; what is marked is gathered."""

    VOID = ("meta", "input", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(report: Report) -> str:
    html = page(report, source="said <1>.jsonl")
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert not checker.tags & {"script", "link", "img", "iframe"}
    assert not re.search(r"https?://|url\(|@import", html)
    assert "said &lt;1&gt;.jsonl" in html
    return html


def test_figures_intervals_family_and_n_are_on_the_page() -> None:
    html = checked(score(SAID, TRUTH, resamples=50))
    assert "3 captions; 2 name an object that is not in the image." in html
    assert "family pattern · vocabulary coco" in html
    assert '<div class="big">66.7 %</div>' in html
    assert "50 resamples, seed 0" in html
    assert re.search(r"<th>dog</th>.*<td>2</td><td>2</td>", html)


def test_words_are_marked_with_what_they_stand_for_and_everything_is_escaped() -> None:
    html = checked(score(SAID, TRUTH, resamples=0))
    assert 'a <mark title="dog: not in the image">dog</mark>. &lt;script&gt;alert(1)&lt;/script&gt;' in html
    assert '<mark title="dog: not in the image">puppies<i> dog</i></mark>' in html
    assert "A cat &amp; a" in html
    assert "bootstrap" not in html


def test_captions_with_most_unsupported_words_come_first() -> None:
    html = checked(score(SAID, TRUTH, resamples=0))
    places = [html.index(f"<h3>{name} <span>") for name in ("3", "a&lt;b", "2")]
    assert places == sorted(places)
    assert html.count('<article class="guilty">') == 2
    assert 'id="only"' in html


def test_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chair_page, "MOST_CAPTIONS", 5)
    monkeypatch.setattr(chair_page, "MOST_CLEAN", 2)
    monkeypatch.setattr(chair_page, "MOST_LETTERS", 12)
    said = [Caption(at, "a dog" if at < 4 else "a sunny place") for at in range(12)]
    html = checked(score(said, dict.fromkeys(range(12), ()), resamples=0))
    assert html.count("<article") == 5
    assert "Left out: 7 captions without." in html
    assert "… and 1 more letters" in html


def test_control_characters_empty_captions_and_no_figures() -> None:
    report = score([Caption(1, "a\x00b\x1b[31m\x7f"), Caption(2, "")], {1: [], 2: []}, resamples=5)
    html = checked(report)
    assert "a␀b␛[31m␡" in html
    assert "(empty)" in html
    assert '<div class="big">–</div>' in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", html)
    assert "none names an object that is not in its image" in html
