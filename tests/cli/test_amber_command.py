"""``keepsight amber score``: what it prints and writes, and what it refuses in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

ANNOTATIONS = [
    {"id": 1, "type": "generative", "truth": ["man", "dog"], "hallu": ["cat"]},
    {"id": 2, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 3, "type": "discriminative-attribute-state", "truth": "no"},
    {"id": 4, "type": "discriminative-relation", "truth": "yes"},
]
RESPONSES = [
    {"id": 1, "response": "man cat"},
    {"id": 2, "response": "No"},
    {"id": 3, "response": "\x1b[31m"},
    {"id": 4, "response": "Yes."},
]
QUERIES = [{"id": one["id"], "image": "AMBER_1.jpg"} for one in ANNOTATIONS]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command's arguments, for files of which no noun needs a tagger."""
    monkeypatch.setattr("keepsight.eval.chair.wordnet.nouns", str.split)
    contents = {
        "said": RESPONSES,
        "annotations": ANNOTATIONS,
        "relations": {"man": ["person"], "dog": [], "cat": []},
        "queries": QUERIES,
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "safe.txt").write_text("orange\n")
    options = {"annotations": "annotations.json", "relations": "relations.json", "safe-words": "safe.txt"}
    return [
        "amber",
        "score",
        str(tmp_path / "said.json"),
        *(part for name, file in options.items() for part in (f"--{name}", str(tmp_path / file))),
    ]


def test_prints_both_parts_with_their_n(run: Callable[..., object], files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = run(*files, "--json", out)
    assert result.exit_code == 0, result.output
    text = result.stdout
    shown = {line.split()[0]: line.split()[1] for line in text.splitlines() if line[:1].isalpha()}
    assert "convention exact, similarity exact" in text
    assert "Descriptions, 1 of 1" in text
    assert "Answers, 3 of 3, parser strict; no is the positive class" in text
    assert (shown["CHAIR"], shown["Cover"], shown["Hal"], shown["Cog"]) == ("50.0", "50.0", "100.0", "100.0")
    assert (shown["all"], shown["existence"], shown["state"]) == ("66.7", "100.0", "0.0")
    assert "1 of 3 answers could not be read" in text
    assert "\x1b" not in text
    assert "AMBER score  58.3" in text
    assert "not part of the official script" in " ".join(text.split())
    assert "--queries gives the pictures" in " ".join(text.split())
    written = json.loads(out.read_text())
    assert (written["generative"]["chair"], written["generative"]["of"]) == (0.5, 1)
    assert written["discriminative"]["types"]["all"]["recall"] == 0.5
    assert written["amber_score"] == pytest.approx((0.5 + 2 / 3) / 2)


def test_the_official_convention_is_named(
    run: Callable[..., object], files: list[str], tmp_path: Path
) -> None:
    result = run(*files, "--convention", "official", "--queries", tmp_path / "queries.json")
    assert result.exit_code == 0, result.output
    assert "parser official (exactly Yes or No)" in result.stdout
    assert "intervals are those of the exact convention" in " ".join(result.stdout.split())
    assert "--queries" not in result.stdout


@pytest.mark.parametrize(
    ("responses", "absent", "parts"),
    [(RESPONSES[:1], "Answers", (True, False)), (RESPONSES[1:], "Descriptions", (False, True))],
)
def test_either_part_alone(
    run: Callable[..., object],
    files: list[str],
    tmp_path: Path,
    responses: object,
    absent: str,
    parts: tuple[bool, bool],
) -> None:
    (tmp_path / "said.json").write_text(json.dumps(responses))
    result = run(*files, "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    assert absent not in result.stdout
    assert "AMBER score" not in result.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["generative"] is not None, written["discriminative"] is not None) == parts
    assert written["amber_score"] is None


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("said", [], (), "said.json: holds no response"),
        ("said", [{"id": 9, "response": "a"}], (), "said.json, entry 1: there is no annotation of id 9"),
        ("said", RESPONSES * 2, (), "said.json, entry 5: id 1 was answered before"),
        ("said", [{"id": 2, "error": "x"}], (), "all of them failed"),
        (
            "annotations",
            [{"id": 1, "type": "relation", "truth": "maybe"}],
            (),
            "annotations.json, entry 1: 'truth'",
        ),
        ("annotations", [ANNOTATIONS[0] | {"truth": ["elk"]}, *ANNOTATIONS[1:]], (), "the object 'elk'"),
        ("relations", [], (), "relations.json: an object that maps words"),
        ("said", RESPONSES, ("--convention", "exakt"), "no convention 'exakt'"),
        ("said", RESPONSES, ("--similarity", "bert"), "no word similarity is called 'bert'"),
        ("said", RESPONSES, ("--parser", "strickt"), "no parser is called 'strickt'"),
        ("said", RESPONSES, ("--queries", "{folder}/gone.json"), "gone.json: cannot be read"),
        ("said", RESPONSES, ("--json", "{folder}"), "is a folder"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    refused: Callable[..., str],
    files: list[str],
    tmp_path: Path,
    name: str,
    content: object,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    filled = [argument.format(folder=tmp_path) for argument in arguments]
    out = tmp_path / "out.json"
    if "--json" not in filled:
        filled += ["--json", str(out)]
    assert message in refused(*files, *filled)
    assert not out.exists()
