from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import fuzz

from keepsight.errors import InputError, InvalidParameter
from keepsight.eval.errors import EmptyFile, MalformedFile, TooFewObjects
from keepsight.eval.pope.build import Annotated, build, question_text
from keepsight.eval.pope.object_lists import read_pictures

NAMES = ["cat", "dog", "orange", "bus", "umbrella", "sofa", "lamp", "kite"]
WORLD = st.lists(
    st.lists(st.sampled_from(NAMES), unique=True, min_size=2, max_size=5), min_size=6, max_size=14
).map(lambda rows: [Annotated(image=f"{at}.jpg", objects=tuple(row)) for at, row in enumerate(rows)])


def pictures(*objects: str) -> list[Annotated]:
    return [Annotated(image=f"{at}.jpg", objects=tuple(row.split())) for at, row in enumerate(objects)]


@given(WORLD, st.integers(0, 5))
@settings(max_examples=60)
def test_laws_of_the_questions(world: list[Annotated], seed: int) -> None:
    try:
        built = build(world, images=4, per_image=2, seed=seed)
    except TooFewObjects:
        return
    shown = {picture.image: picture.objects for picture in world}
    assert len({picture.image for picture in built.images}) == 4
    positives = {
        kind: [q.object for q in asked if q.label == "yes"] for kind, asked in built.questions.items()
    }
    assert len({tuple(names) for names in positives.values()}) == 1
    for asked in built.questions.values():
        assert [q.question_id for q in asked] == list(range(1, 17))
        assert [q.label for q in asked] == ["yes", "no"] * 8
        for at, picture in enumerate(built.images):
            six = asked[4 * at : 4 * at + 4]
            assert {q.image for q in six} == {picture.image}
            assert [q.object for q in six[::2]] == list(picture.objects[:2])
            negatives = [q.object for q in six[1::2]]
            assert len(set(negatives)) == 2
            assert not set(negatives) & set(shown[picture.image])
            assert set(negatives) <= set(built.counts)
    again = build(world, images=4, per_image=2, seed=seed)
    assert again.files() == built.files()


def test_popular_and_adversarial_take_the_most_frequent_that_fit() -> None:
    world = pictures("cat dog", "cat dog", "cat bus", "cat orange", "lamp kite", "lamp cat bus")
    built = build(world, images=6, per_image=2, seed=0)
    assert built.counts == {"cat": 5, "dog": 2, "bus": 2, "orange": 1, "lamp": 2, "kite": 1}
    asked = {kind: {} for kind in built.questions}
    for kind, questions in built.questions.items():
        for yes, no in zip(questions[::2], questions[1::2], strict=True):
            asked[kind][yes.image, yes.object] = no.object
    # In 4.jpg there are a lamp and a kite. The most frequent absent object is a cat, then come dog, bus by order met.
    assert asked["popular"]["4.jpg", "lamp"] == "cat"
    # A lamp is seen with a kite, which is there, and then with a cat
    assert asked["adversarial"]["4.jpg", "lamp"] == "cat"
    # An orange is seen with cats alone, which is in its picture: any absent object will do
    assert asked["adversarial"]["3.jpg", "orange"] in {"dog", "bus", "lamp", "kite"}


def test_random_objects_come_from_the_one_stream_in_the_official_order() -> None:
    world = pictures("cat dog", "bus kite", "lamp sofa")
    built = build(world, images=2, per_image=1, seed=7)
    stream = random.Random(7)
    drawn = stream.sample(world, 2)
    names = [*drawn[0].objects, *drawn[1].objects]
    expected = []
    for picture in drawn:
        while (name := stream.choice(names)) in picture.objects:
            pass
        expected.append(name)
    assert [q.object for q in built.questions["random"][1::2]] == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dog", "Is there a dog in the image?"),
        ("orange", "Is there an orange in the image?"),
        ("umbrella", "Is there an umbrella in the image?"),
        ("hot dog", "Is there a hot dog in the image?"),
    ],
)
def test_articles_change_and_nothing_else(name: str, text: str) -> None:
    assert question_text(name) == text


def test_what_cannot_be_built_is_refused_at_once() -> None:
    world = pictures("cat dog", "cat dog", "cat")
    with pytest.raises(TooFewObjects, match="only 2 of 3 have 2 objects"):
        build(world, images=3, per_image=2)
    # Nothing is absent: the official builder would look for ever
    with pytest.raises(TooFewObjects, match="only 0 are not in it"):
        build(world, images=2, per_image=2)
    for wrong in ({"images": 0}, {"per_image": 0}):
        with pytest.raises(InvalidParameter):
            build(world, **wrong)


def test_files_are_one_question_a_line(tmp_path: Path) -> None:
    files = build(pictures("cat dog", "bus kite"), images=2, per_image=1, seed=0).files("zoo")
    assert sorted(files) == [
        "zoo_co_occur.json", "zoo_ground_truth_objects.json", "zoo_pope_adversarial.json",
        "zoo_pope_popular.json", "zoo_pope_random.json",
    ]  # fmt: skip
    lines = files["zoo_pope_random.json"].splitlines()
    assert len(lines) == 4
    assert list(json.loads(lines[0])) == ["question_id", "image", "text", "label"]


COCO = {
    "images": [
        {"id": 2, "file_name": "b.jpg"},
        {"id": 1, "file_name": "a.jpg"},
        {"id": 3, "file_name": "c.jpg"},
    ],
    "annotations": [
        {"image_id": 1, "category_id": 7},
        {"image_id": 2, "category_id": 5, "iscrowd": 1},
        {"image_id": 1, "category_id": 5},
        {"image_id": 1, "category_id": 7},
    ],
    "categories": [{"id": 5, "name": "dog"}, {"id": 7, "name": "bus"}],
}
SPOKEN = {
    "images": COCO["images"],
    "annotations": [{"image_id": 2, "caption": "A dog on a sofa"}, {"image_id": 3, "caption": "two cats"}],
}


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_coco_files_keep_the_order_of_images_and_annotations(tmp_path: Path) -> None:
    instances, captions = write(tmp_path / "i.json", COCO), write(tmp_path / "c.json", SPOKEN)
    found = read_pictures([instances])
    assert [(one.image, one.objects) for one in found] == [
        ("b.jpg", ("dog",)),
        ("a.jpg", ("bus", "dog")),
        ("c.jpg", ()),
    ]
    spoken = read_pictures([instances], references=[captions])
    assert [one.objects for one in spoken] == [("dog", "couch"), ("bus", "dog"), ("cat",)]


LINES = '{"image": "a.jpg", "objects": ["dog", "cat", "dog"]}\n\n{"image_id": "x-1", "objects": []}'
COMPACT = {"categories": ["dog", "cat"], "objects": {"42": [1, 0], "7": []}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (LINES, {"a.jpg": ("dog", "cat"), "x-1": ()}),
        ([{"image_id": 42, "objects": ["dog"]}], {"im_000042.jpg": ("dog",)}),
        (COMPACT, {"im_000042.jpg": ("cat", "dog"), "im_000007.jpg": ()}),
    ],
)
def test_lists_of_objects_are_read(tmp_path: Path, content: object, expected: dict) -> None:
    found = read_pictures([write(tmp_path / "o.json", content)], image_name="im_{:06d}.jpg")
    assert {one.image: one.objects for one in found} == expected


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ("", EmptyFile, "is empty"),
        ("[]", EmptyFile, "no picture"),
        ("{", MalformedFile, "not JSON"),
        ("3", MalformedFile, "an object with 'objects' was expected"),
        (
            '{"image": "a", "objects": ["dog"]}\n{"image": "b"}',
            MalformedFile,
            r":2: the key 'objects' is missing",
        ),
        ([{"image": "a", "objects": "dog"}], MalformedFile, "entry 1: 'objects' must be a list"),
        ([{"image": "a", "objects": [3]}], MalformedFile, "a name must be a text, not 3"),
        ([{"image": "a", "objects": [" "]}], MalformedFile, "a name must be a text"),
        ([{"image": None, "objects": []}], MalformedFile, "a name must be a text, not null"),
        ({"categories": ["dog"], "objects": {"1": [1]}}, MalformedFile, "image '1'"),
        ({"categories": ["dog"], "objects": {"1": [True]}}, MalformedFile, "image '1'"),
        ({"categories": "dog", "objects": {}}, MalformedFile, "must be a list of names"),
        ({**COCO, "categories": []}, MalformedFile, "unknown, 7"),
        ({**COCO, "images": [{"id": 1}]}, MalformedFile, "file_name"),
        ({**COCO, "annotations": [3]}, MalformedFile, "COCO's form"),
    ],
)
def test_bad_objects_are_named(tmp_path: Path, content: object, error: type[InputError], words: str) -> None:
    path = write(tmp_path / "o.json", content)
    with pytest.raises(error, match=words) as caught:
        read_pictures([path])
    assert str(path) in str(caught.value)


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(EmptyFile, match="--annotations"):
        read_pictures([])
    path = write(tmp_path / "o.json", [{"image_id": 1, "objects": []}])
    for template in ("{", "{:06x}{1}", "{0.real.nothing}", "{a}"):
        with pytest.raises(InvalidParameter, match="012d"):
            read_pictures([path], image_name=template)
    packed = tmp_path / "o.json.gz"
    packed.write_bytes(b"not gzip")
    with pytest.raises(MalformedFile, match="gzipped"):
        read_pictures([packed])
    packed.write_bytes(gzip.compress(b"[]" * 99)[:20] + b"broken in the middle")
    with pytest.raises(MalformedFile, match="gzipped"):
        read_pictures([packed])


def test_broken_files_of_objects_are_refused_by_name(tmp_path: Path) -> None:
    good = [
        json.dumps(COCO).encode(),
        json.dumps(SPOKEN).encode(),
        b'{"image": "a.jpg", "objects": ["dog", "cat"]}\n{"image_id": 42, "objects": []}\n',
        b'{"categories": ["dog", "cat"], "objects": {"42": [1, 0]}}',
    ]
    outcome = fuzz(lambda path: read_pictures([path]), good, tmp_path / "o.json", times=600, seed=1)
    assert min(outcome) > 60
