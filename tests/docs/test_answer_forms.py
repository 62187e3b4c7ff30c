"""The tables of forms in the docs are those of the code, and the files that the docs score are in their writers' forms."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from keepsight.eval import answer_shapes
from keepsight.eval.answer_shapes import Shape

DOCS = Path(__file__).parents[2] / "docs"


def rows(shapes: tuple[Shape, ...]) -> list[str]:
    """The rows of the table of forms."""
    found = []
    for shape in shapes:
        keys = ", ".join(f"`{key}`" for key in shape.keys)
        without = "; not " + ", ".join(f"`{key}`" for key in shape.without) if shape.without else ""
        found.append(f"| {shape.writer} | {keys}{without} | `{shape.answer}` |")
    return found


@pytest.mark.parametrize(
    ("page", "name"), [("pope.md", "YES_NO"), ("chair.md", "CAPTIONS"), ("amber.md", "AMBER")]
)
def test_tables_of_forms_are_those_of_the_code(page: str, name: str) -> None:
    text = (DOCS / page).read_text("utf-8")
    (table,) = re.findall(rf"<!-- forms: {name} -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert table.strip().split("\n")[2:] == rows(getattr(answer_shapes, name))


def test_counts_of_repope_in_the_docs_add_up() -> None:
    text = (DOCS / "pope.md").read_text("utf-8")
    found = re.findall(
        r"^\| (random|popular|adversarial) \| ([\d,]+) \| ([\d,]+) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.M
    )
    assert len(found) == 3
    for _, questions, kept, _, _, left_out in found:
        assert int(questions.replace(",", "")) - int(kept.replace(",", "")) == int(left_out)


def test_the_examples_score_files_in_the_forms_of_their_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of docs/pope.md for LLaVA-Align's and PAINT's answers, on files as these projects write them."""
    from docs.test_snippets import coco, yes_no

    from keepsight.cli.main import app

    page = (DOCS / "pope.md").read_text("utf-8")
    commands = [
        line
        for line in page.split("\n")
        if line.startswith("keepsight pope score") and ("paint.jsonl" in line or "a.jsonl" in line)
    ]
    assert len(commands) == 2
    coco(tmp_path)
    yes_no(tmp_path)
    monkeypatch.chdir(tmp_path)
    wanted = {
        "r.jsonl": ("LLaVA, VCD, LLaVA-Align, ClearSight", "text", "id", 2),
        "paint.jsonl": ("PAI, PAINT", "ans", "order", 1),
    }
    for command in commands:
        result = CliRunner().invoke(app, [*command.split()[1:], "--json", "out.json"])
        assert result.exit_code == 0, result.output
        written = json.loads((tmp_path / "out.json").read_text())
        read, first = written["read"][0], written["splits"][0]
        assert (read["form"], read["answer"], written["matched"], first["n"]) == wanted[read["file"]]
        assert [reply["decision"] for reply in first["answers"]] == ["yes"] * first["n"]
