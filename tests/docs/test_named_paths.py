"""Pages name files that exist, and the page on architecture says what the tests enforce."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import pytest
from test_architecture import DEMO_USERS, ORDER

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED = re.compile(r"(?:keepsight|tests|benchmarks|examples|training|docs)/[\w./-]*\w")
LINKED = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#([\w-]+))?\)")


def without_blocks(text: str) -> str:
    """The text without fenced blocks, in which a path may be anything that a command writes."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(text), flags=re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_in_code_exist(page: Path) -> None:
    spans = re.findall(r"`([^`\n]+)`", without_blocks(page.read_text("utf-8")))
    named = {path for span in spans for path in NAMED.findall(span) if span.startswith(path)}
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in LINKED.findall(without_blocks(page.read_text("utf-8"))):
        target = (page.parent / path).resolve()
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), f"{path}#{anchor}"


def test_anchors_are_those_of_github() -> None:
    assert anchors("# A `b`\n## The demo model's: c, d\n```\n# no\n```\n") == {"a-b", "the-demo-models-c-d"}


def test_the_order_of_imports_is_the_enforced_one() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    (block,) = re.findall(r"```text\n(errors <.*?)```", text, flags=re.DOTALL)
    written = [tuple(re.findall(r"\w+", names)) for names in block.split("<")]
    assert written == list(ORDER)
    users = re.search(r"and only (.+?) may import it", text, flags=re.DOTALL)
    assert users is not None
    assert set(re.findall(r"`(\w+)`", users[1])) == DEMO_USERS


def test_every_folder_and_every_file_of_the_engine_is_described() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    layout = text.partition("```text\n")[2].partition("```")[0]
    for name in chain.from_iterable((*ORDER, ("demo",))):
        entry = name if (ROOT / "keepsight" / name).is_dir() else f"{name}.py"
        assert re.search(rf"(^|\s){re.escape(entry)}", layout), entry
    engines = [ROOT / "keepsight" / "engines" / name for name in ("hf", "vllm")]
    files = {path.name for folder in engines for path in folder.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^\| `(\w+\.py)` \|", text, flags=re.MULTILINE)) == files
