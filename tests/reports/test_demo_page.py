from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from standin import standin

from keepsight.demo.world import Scene, scenes
from keepsight.eval.chair import score as chair
from keepsight.eval.chair.captions import Caption
from keepsight.eval.chair.report import PerCaption, Report
from keepsight.experiments.compare import Comparison, compare
from keepsight.experiments.decoding_config import build_configs
from keepsight.experiments.manifest import RunConfig
from keepsight.experiments.open_benchmark import demo_benchmark
from keepsight.experiments.runner import execute
from keepsight.reports import demo_page
from keepsight.reports.demo_page import page

SPLIT, N = "test-shifted", 4
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


def ran(folder: Path, specs: list[str], n: int = N, longest: int = 10) -> Comparison:
    plan = RunConfig(
        bench=demo_benchmark("chair", SPLIT, n),
        ways=build_configs(specs),
        max_new_tokens=longest,
        batch=n,
    )
    return compare([execute(plan, *standin(), folder, weights={"sha256": "of the stand-in"})], resamples=200)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return ran(tmp_path_factory.mktemp("demo") / "run", ["vcd:noise_step=999", "m3id:decay=0.5"])


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return scenes(SPLIT, N)


def judged_in(comparison: Comparison) -> list[PerCaption]:
    return [one for row in comparison.rows if isinstance(row.score, Report) for one in row.score.captions]


def test_the_page_needs_nothing_else(comparison: Comparison, drawn: list[Scene]) -> None:
    text = page(comparison, drawn)
    read = Reader(text)
    assert not read.all("script")
    assert not read.all("link")
    images = [attrs["src"] or "" for attrs in read.all("img")]
    assert len(images) == N
    assert all(source.startswith("data:image/jpeg;base64,") for source in images)
    assert not re.findall(r"https?://|url\(|@import", text)


def test_every_mention_is_marked_for_what_it_is(comparison: Comparison, drawn: list[Scene]) -> None:
    read = Reader(page(comparison, drawn))
    judged = judged_in(comparison)
    invented = sum(len(row.hallucinated) for row in judged)
    mentioned = sum(len(row.generated) for row in judged)
    struck = [attrs["title"] or "" for attrs in read.all("s", "no") if "title" in attrs]
    underlined = [attrs["title"] or "" for attrs in read.all("span", "yes") if "title" in attrs]
    assert invented > 0
    assert (len(struck), len(underlined)) == (invented, mentioned - invented)
    assert all(title.startswith("not in the picture: ") for title in struck)
    named = {title.removeprefix("not in the picture: ") for title in struck}
    assert named == {mention.object for row in judged for mention in row.hallucinated}


def test_the_page_says_what_it_is_about(comparison: Comparison, drawn: list[Scene]) -> None:
    text = page(comparison, drawn)
    for words in (
        "model demo",
        f"split {SPLIT}",
        "4 pictures",
        "say nothing about other models",
        "noise_step=999",
        "of the stand-in",
    ):
        assert words in text
    for row in comparison.rows:
        assert f"{100 * (row.figures['chair_i'].value or 0):.1f}" in text
    assert len(Reader(text).all("svg")) == 2


def test_a_folder_that_is_gone_is_not_named(comparison: Comparison, drawn: list[Scene]) -> None:
    folder = str(comparison.merged.runs[0].folder)
    assert folder in page(comparison, drawn)
    assert folder not in page(comparison, drawn, folders=False)


def test_captions_and_the_manifest_are_escaped(comparison: Comparison, drawn: list[Scene]) -> None:
    wicked = '<script>alert(1)</script> a dog & "cat" <b>\x00'
    report = chair.score(
        [Caption(scene.image_id, wicked) for scene in drawn],
        {scene.image_id: scene.names for scene in drawn},
    )
    run = comparison.merged.runs[0]
    marked = replace(run, manifest={**run.manifest, "model": "<i>"})
    text = page(
        replace(
            comparison,
            rows=tuple(replace(row, score=report) for row in comparison.rows),
            merged=replace(comparison.merged, runs=(marked,)),
        ),
        drawn,
    )
    assert not Reader(text).all("script")
    assert "&lt;script&gt;" in text
    assert "model &lt;i&gt;" in text
    assert "<i>" not in text
    assert "␀" in text
    assert "\x00" not in text


def test_a_page_without_methods_or_figures_still_stands(tmp_path: Path) -> None:
    greedy = ran(tmp_path / "run", [], n=1, longest=4)
    (scene,) = scenes(SPLIT, 1)
    silent = chair.score([Caption(scene.image_id, "")], {scene.image_id: ()})
    mute = replace(greedy, rows=(replace(greedy.rows[0], score=silent),))
    for one in (greedy, mute):
        text = page(one, [scene])
        assert len(Reader(text).all("img")) == 1
    assert "<em>nothing</em>" in text


def test_only_so_many_pictures_are_shown(
    comparison: Comparison, drawn: list[Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_page, "MOST_PICTURES", 3)
    text = page(comparison, drawn)
    assert len(Reader(text).all("img")) == 3
    assert "The first 3 of 4 pictures" in text
