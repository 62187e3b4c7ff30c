"""The demo world: scenes from their arguments alone, habits kept or broken, captions that say what is there."""

import contextlib
import io
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from keepsight.demo import world
from keepsight.demo.world import (
    NAMES,
    SPLITS,
    Scene,
    WorldError,
    annotations,
    questions,
    scene,
    scenes,
)

NAME = re.compile(rf"\b({'|'.join(sorted(NAMES, key=len, reverse=True))})\b")
SYNONYMS = Path(__file__).parents[2] / ".." / "shared" / "data" / "chair" / "synonyms.txt"


def share(picked: Sequence[Scene], there: str, given: str) -> float:
    """The share of the scenes with ``given`` that have ``there`` as well."""
    having = [one for one in picked if given in one.names]
    return sum(there in one.names for one in having) / len(having)


def test_a_scene_depends_on_its_arguments_alone() -> None:
    world._draw.cache_clear()
    first = np.asarray(scene("val", 7, seed=3).image())
    caption = scene("val", 7, seed=3).caption()
    world._draw.cache_clear()
    scene("test", 1).image()
    again = scene("val", 7, seed=3)
    assert np.array_equal(first, np.asarray(again.image()))
    assert caption == again.caption()
    assert first.shape == (128, 128, 3)
    assert scene("val", 7, seed=4).items != again.items


def test_a_picture_handed_out_can_be_drawn_on_without_changing_the_scene() -> None:
    one = scene("val", 2)
    before = np.asarray(one.image()).copy()
    one.image().paste((0, 0, 0), (0, 0, 128, 128))
    assert np.array_equal(before, np.asarray(one.image()))


def test_image_ids_and_scenes_differ_between_splits() -> None:
    ids = [one.image_id for split in SPLITS for one in scenes(split, 200)]
    assert len(set(ids)) == len(ids)
    drawn = {split: [np.asarray(scene(split, i).image()).tobytes() for i in range(3)] for split in SPLITS}
    assert len({pixels for each in drawn.values() for pixels in each}) == 3 * len(SPLITS)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(
    ("child", "parent"), [("keyboard", "laptop"), ("mouse", "keyboard"), ("remote", "tv"), ("frisbee", "dog")]
)
def test_habits_hold_in_distribution(split: str, child: str, parent: str) -> None:
    own = [
        one for one in scenes(split, 3000) if child in {habit.name for habit in world.CONTEXTS[one.context]}
    ]
    assert share(own, child, parent) == pytest.approx(0.92, abs=0.05)


@pytest.mark.parametrize("split", ["val-shifted", "test-shifted"])
@pytest.mark.parametrize("child", ["keyboard", "mouse", "remote", "frisbee", "traffic light", "cup"])
def test_habits_are_broken_in_the_shifted_splits(split: str, child: str) -> None:
    context, parent = next(
        (place, habit.parent)
        for place, habits in world.CONTEXTS.items()
        for habit in habits
        if habit.name == child
    )
    own = [one for one in scenes(split, 6000) if one.context == context]
    assert parent is not None
    assert share(own, child, parent) == pytest.approx(0.12, abs=0.07)
    assert np.mean([child in one.names for one in own]) == pytest.approx(0.12, abs=0.04)


def test_mixed_training_scenes_break_the_habits_in_another_way_than_the_shifted_splits() -> None:
    own = [one for one in scenes("train-mixed", 4000) if one.context == "office"]
    for name in ("laptop", "keyboard", "mouse"):
        assert np.mean([name in one.names for one in own]) == pytest.approx(0.4, abs=0.06)
    shifted = [one for one in scenes("test-shifted", 4000) if one.context == "office"]
    assert np.mean(["laptop" in one.names for one in shifted]) == pytest.approx(0.8 * 0.92, abs=0.06)


def test_visibility_follows_the_stated_shares() -> None:
    seen = [item.visibility for one in scenes("train", 2000) for item in one.items]
    for level, expected in world.VISIBILITY:
        assert seen.count(level) / len(seen) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("split", SPLITS)
def test_captions_name_every_object_once_in_order_and_nothing_else(split: str) -> None:
    for one in scenes(split, 400):
        assert tuple(NAME.findall(one.caption().lower())) == one.names
        assert 1 <= len(one.names) == len(one.items)
        own = {habit.name for habit in world.CONTEXTS[one.context]}
        extra = [name not in own for name in one.names]
        assert extra == sorted(extra)


def test_captions_use_the_right_article() -> None:
    text = " ".join(one.caption() for one in scenes("train", 600)).lower()
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)


@pytest.mark.skipif(not SYNONYMS.is_file(), reason="the CHAIR synonym list lies beside the repository")
def test_no_word_of_the_captions_but_the_names_is_in_the_synonym_list() -> None:
    listed = {word.strip() for word in SYNONYMS.read_text().replace("\n", ",").split(",")} - {""}
    for one in scenes("val", 300) + scenes("val-shifted", 300):
        words = re.findall(r"[a-z]+", NAME.sub(" ", one.caption().lower()))
        pairs = [" ".join(pair) for pair in itertools.pairwise(words)]
        assert not listed.intersection([*words, *pairs])


def test_questions_are_answered_by_the_scene_and_adversarial_ones_stay_in_its_context() -> None:
    for one in scenes("val-shifted", 200):
        for kind in ("random", "popular", "adversarial"):
            asked = questions(one, kind)
            assert [answer for _, answer in asked] == ["yes", "no"] * (len(asked) // 2)
            for question, answer in asked:
                (name,) = NAME.findall(question)
                assert (name in one.names) == (answer == "yes")
    office = next(
        one for one in scenes("val-shifted", 50) if one.context == "office" and "mouse" not in one.names
    )
    own = {habit.name for habit in world.CONTEXTS["office"]} - set(office.names)
    asked_about = [
        NAME.findall(question)[0] for question, answer in questions(office, "adversarial") if answer == "no"
    ]
    assert set(asked_about) <= own


def test_pycocotools_loads_the_annotations(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    picked = scenes("val", 5) + scenes("val-shifted", 5)
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(annotations(picked)))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(file))
    assert len(coco.getCatIds()) == 28
    assert coco.loadCats([18])[0] == {"id": 18, "name": "dog", "supercategory": "animal"}
    for one in picked:
        found = coco.loadAnns(coco.getAnnIds(imgIds=[one.image_id]))
        assert sorted(
            coco.loadCats([each["category_id"] for each in found]), key=lambda c: c["name"]
        ) == sorted(coco.loadCats(coco.getCatIds(catNms=list(one.names))), key=lambda c: c["name"])
        for each in found:
            x, y, width, height = each["bbox"]
            assert 0 <= x < x + width <= 128
            assert 0 <= y < y + height <= 128
            assert each["area"] == width * height


def test_unknown_splits_and_indices_are_refused() -> None:
    with pytest.raises(WorldError, match="val-shifted"):
        scene("validation", 0)
    with pytest.raises(WorldError, match="out of range"):
        scene("val", -1)
    with pytest.raises(WorldError, match="adversarial"):
        questions(scene("val", 0), "hard")  # type: ignore[arg-type]
