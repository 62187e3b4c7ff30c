from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

INSTANCES = {
    "images": [{"id": 1}, {"id": 2}],
    "annotations": [{"id": 5, "image_id": 2, "category_id": 1, "segmentation": [[1.0, 2.0]]}],
    "categories": [{"id": 1, "name": "cat"}],
}
REFERENCES = {
    "images": [{"id": 1}],
    "annotations": [{"id": 6, "image_id": 1, "caption": "A woman and a puppy."}],
}
SAID = '{"image_id": 1, "caption": "A girl with a cat."}\n{"image_id": 2, "caption": "A cat."}\n'


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))
    (tmp_path / "captions.json").write_text(json.dumps(REFERENCES))
    (tmp_path / "said.jsonl").write_text(SAID)
    return tmp_path


def test_what_is_written_scores_like_what_it_was_made_of(run: Callable, files: Path) -> None:
    sources = ("--annotations", files / "instances.json", "--references", files / "captions.json")
    result = run("truth", *sources)
    assert result.exit_code == 0, result.output
    kept = files / "chair-truth-pattern.json"
    assert result.output == f"{kept}: 2 images, 1.5 objects each, family pattern, vocabulary coco\n"
    content = json.loads(kept.read_text())
    assert [source["file"] for source in content["sources"]] == ["instances.json", "captions.json"]
    names = content["categories"]
    assert {k: [names[at] for at in v] for k, v in content["objects"].items()} == {
        "1": ["dog", "person"],
        "2": ["cat"],
    }
    reports = []
    for at, truth in enumerate([sources, ("--ground-truth", kept)]):
        out = files / f"{at}.json"
        assert run("chair", files / "said.jsonl", *truth, "--json", out).exit_code == 0
        reports.append(json.loads(out.read_text()))
    assert reports[0] == reports[1]
    assert reports[0]["chair_i"] == pytest.approx(1 / 3)


def test_it_is_refused_for_another_family_or_vocabulary(
    run: Callable, refused: Callable, files: Path
) -> None:
    kept = files / "kept.json"
    assert run("truth", "--annotations", files / "instances.json", "--out", kept).exit_code == 0
    score = ("chair", files / "said.jsonl", "--ground-truth", kept)
    assert "was made with family 'pattern', not 'wordnet'" in refused(*score, "--family", "wordnet")
    (files / "zoo.txt").write_text("cat, tabby\n")
    message = refused(*score, "--synonyms", files / "zoo.txt")
    assert "was made with the vocabulary 'coco', another than 'zoo.txt' is now" in message


def test_own_vocabulary_and_annotations(run: Callable, refused: Callable, files: Path) -> None:
    zoo, out, kept = files / "zoo.txt", files / "out.json", files / "kept.json"
    zoo.write_text("cat, tabby\nlady, woman\n")
    sources = (
        "--annotations",
        files / "instances.json",
        "--references",
        files / "captions.json",
        "--synonyms",
        zoo,
    )
    result = run("chair", files / "said.jsonl", *sources, "--json", out)
    assert result.exit_code == 0, result.output
    assert "CHAIR, family pattern, vocabulary zoo.txt (" in result.output
    assert json.loads(out.read_text())["vocabulary"]["name"] == "zoo.txt"
    assert run("truth", *sources, "--out", kept).exit_code == 0
    assert run("chair", files / "said.jsonl", "--ground-truth", kept, "--synonyms", zoo).exit_code == 0
    zoo.write_text("dog, puppy\n")
    assert "'cat' is not an object of the vocabulary" in refused("chair", files / "said.jsonl", *sources)
    zoo.write_text("dog, puppy\ncat, puppy\n")
    assert f"{zoo}:2: 'puppy' names 'dog' already (line 1)" in refused(
        "chair", files / "said.jsonl", *sources
    )


def test_nothing_is_overwritten_or_half_written(refused: Callable, files: Path) -> None:
    source = files / "instances.json"
    before = source.read_text()
    assert "one of the files to read" in refused("truth", "--annotations", source, "--out", source)
    assert source.read_text() == before
    (files / "broken.json").write_text(before[:-5])
    out = files / "out.json"
    assert "broken.json: is not JSON" in refused(
        "truth", "--annotations", files / "broken.json", "--out", out
    )
    (files / "none.json").write_text('{"images": [], "annotations": []}')
    assert "knows no image" in refused("truth", "--annotations", files / "none.json", "--out", out)
    assert "cannot be read" in refused("truth", "--annotations", files / "gone.json", "--out", out)
    assert not out.exists()
