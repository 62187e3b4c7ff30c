from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from keepsight.errors import InputError
from keepsight.eval.annotations import load_truth
from keepsight.eval.errors import EmptyFile, MalformedFile, UnknownFamily, UnknownObject

INSTANCES = {
    "images": [{"id": 1}, {"id": 2}, {"id": 3}],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 17},
        {"id": 11, "image_id": 1, "category_id": 62, "iscrowd": 1},
        {"id": 12, "image_id": 2, "category_id": 17},
    ],
    "categories": [{"id": 17, "name": "cat"}, {"id": 62, "name": "chair"}],
}
REFERENCES = {
    "images": [{"id": 1}],
    "annotations": [{"id": 20, "image_id": 1, "caption": "A kitten looks at two men."}],
}


def saved(tmp_path: Path, name: str, content: object) -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_instances_and_references_are_joined_for_the_asked_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [saved(tmp_path, "instances.json", INSTANCES), saved(tmp_path, "captions.json", REFERENCES)]
    truth = load_truth(paths, ["1", 3, 9])
    # Crowds count, image 3 is known to be empty, image 2 was not asked for, image 9 is unknown.
    assert truth == {1: {"cat", "chair", "person"}, 3: set()}
    assert capsys.readouterr().out == ""


def test_references_are_read_by_the_family(tmp_path: Path, nltk_data: Path) -> None:
    path = saved(tmp_path, "captions.json", REFERENCES)
    assert load_truth([path], [1], "pattern") == {1: {"cat", "person"}}
    # WordNet knows "men" as a word of its own, which names nobody.
    assert load_truth([path], [1], "wordnet") == {1: {"cat"}}


def test_lists_of_objects_in_every_form(tmp_path: Path) -> None:
    entries = [
        {"image_id": "COCO_val2014_000000000001.jpg", "objects": ["sofa", "cat"]},
        {"image_id": "b", "objects": []},
    ]
    expected = {1: {"couch", "cat"}, "b": set()}
    lines = "\n".join(map(json.dumps, entries))
    assert load_truth([saved(tmp_path, "a.jsonl", lines)], [1, "b"]) == expected
    assert load_truth([saved(tmp_path, "a.json", entries)], [1, "b"]) == expected
    assert load_truth([saved(tmp_path, "one.jsonl", json.dumps(entries[0]))], [1]) == {1: {"couch", "cat"}}
    compact = {"categories": ["couch", "cat"], "objects": {"1": [0, 1], "b": [], "5": [1]}}
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(compact).encode()))
    assert load_truth([tmp_path / "a.json.gz"], [1, "b"]) == expected


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("", EmptyFile, "is empty"),
        ("{", MalformedFile, "is not JSON"),
        ("[" * 100_000, MalformedFile, "is not JSON that can be read"),
        (
            '{"image_id": 1, "objects": ["cat"]}\n{"image_id": 2}',
            MalformedFile,
            ":2: the key 'objects' is missing",
        ),
        ('{"image_id": 1, "objects": "cat"}', MalformedFile, ":1: 'objects' must be a list of names"),
        ('{"image_id": 1, "objects": [3]}', MalformedFile, ":1: an object is named by a text, not 3"),
        (
            '{"image_id": 1, "objects": ["tabel"]}',
            UnknownObject,
            ":1: 'tabel' is not an object.*did you mean",
        ),
        ({"categories": ["cat"], "objects": {"1": [4]}}, MalformedFile, "numbers of categories"),
        ({"categories": ["cat"], "objects": [4]}, MalformedFile, "numbers of categories"),
        ({"annotations": [{"id": 1}], "images": []}, MalformedFile, "an entry lacks 'image_id'"),
        (
            {
                "annotations": [{"id": 1, "image_id": 1, "category_id": 1}],
                "categories": [{"id": 1, "name": "tower"}],
            },
            UnknownObject,
            "'tower'",
        ),
        ({"info": {}}, MalformedFile, "the key 'objects' is missing"),
        ("[1]", MalformedFile, "entry 1: an object with 'objects' was expected"),
    ],
)
def test_errors_name_the_file(tmp_path: Path, content: object, error: type[Exception], message: str) -> None:
    path = saved(tmp_path, "truth.json", content)
    with pytest.raises(error, match=message) as caught:
        load_truth([path], [1])
    assert str(path) in str(caught.value)


def test_nothing_given_wrong_family_and_bad_archives(tmp_path: Path) -> None:
    with pytest.raises(EmptyFile, match="no ground truth"):
        load_truth([], [1])
    with pytest.raises(UnknownFamily):
        load_truth([tmp_path / "x"], [1], "patern")
    with pytest.raises(InputError, match="cannot be read"):
        load_truth([tmp_path / "gone.json.gz"], [1])
    with pytest.raises(MalformedFile, match="is not gzipped"):
        load_truth([saved(tmp_path, "a.json.gz", "{}")], [1])
