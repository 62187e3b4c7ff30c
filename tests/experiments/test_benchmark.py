from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keepsight.demo.world import scenes
from keepsight.errors import InputError
from keepsight.eval.errors import MalformedFile, UnknownImage
from keepsight.experiments.benchmark import Benchmark, Item, digest
from keepsight.experiments.demo_items import without
from keepsight.experiments.errors import BadBenchmark
from keepsight.experiments.open_benchmark import demo_benchmark, user_benchmark


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


class TestDemo:
    def test_chair_asks_once_about_every_scene(self) -> None:
        bench = demo_benchmark("chair", "val", 4)
        shown = scenes("val", 4)
        assert [item.image_id for item in bench.items] == [scene.image_id for scene in shown]
        assert [item.truth["objects"] for item in bench.items] == [list(scene.names) for scene in shown]
        assert bench.items[2].picture().tobytes() == shown[2].image().tobytes()

    @pytest.mark.parametrize("split", ["val", "val-shifted"])
    def test_pope_asks_as_many_yes_as_no_of_every_kind(self, split: str) -> None:
        bench = demo_benchmark("pope", split, 10)
        counted = Counter((item.truth["split"], item.truth["label"]) for item in bench.items)
        assert counted == {
            (kind, label): 30 for kind in ("random", "popular", "adversarial") for label in ("yes", "no")
        }
        objects = {scene.image_id: scene.names for scene in scenes(split, 200)}
        for item in bench.items:
            there = item.truth["object"] in objects[int(item.image_id)]
            assert item.truth["label"] == ("yes" if there else "no")
            assert item.truth["object"] in item.question
            assert len(objects[int(item.image_id)]) >= 3

    def test_beaf_asks_the_same_about_a_picture_and_its_edits(self) -> None:
        bench = demo_benchmark("beaf", "val", 3)
        asked: dict[str, list[Item]] = {}
        for item in bench.items:
            asked.setdefault(item.truth["image"], []).append(item)
        questions = {name: [item.question for item in items] for name, items in asked.items()}
        for name, items in asked.items():
            original = name if items[0].truth["orig_img"] else name[:-7] + ".jpg"
            assert questions[name] == questions[original]
            changed = [
                before.question
                for before, after in zip(asked[original], items, strict=True)
                if before.truth["label"] != after.truth["label"]
            ]
            assert len(changed) == (0 if items[0].truth["orig_img"] else 1)
        assert len(asked) == 3 * 3

    def test_an_oracle_understands_every_change(self, tmp_path: Path) -> None:
        from keepsight.eval.beaf.files import read_questions
        from keepsight.eval.beaf.score import score

        items = demo_benchmark("beaf", "val", 3).items
        path = tmp_path / "items.jsonl"
        path.write_text("".join(json.dumps(item.to_json()) + "\n" for item in items))
        report = score(read_questions(path), {item.id: item.truth["label"] for item in items})
        assert (report.values["tu"], report.values["id"], report.values["accuracy"]) == (1.0, 0.0, 1.0)

    def test_a_picture_without_nothing_is_the_picture(self) -> None:
        for scene in [*scenes("val", 6), *scenes("test-shifted", 6)]:
            assert without(scene, None).tobytes() == scene.image().tobytes()

    def test_taking_an_object_out_changes_its_place_alone(self) -> None:
        for scene in scenes("val", 6):
            before = pixels(scene.image())
            for placed in scene.objects:
                changed = (pixels(without(scene, placed.name)) != before).any(-1)
                x, y, width, height = (round(side) for side in placed.box)
                assert changed[y : y + height, x : x + width].any()
                # A shadow and a cover reach a little further than the object
                changed[max(0, y - 60) : y + height + 60, max(0, x - 60) : x + width + 60] = False
                assert not changed.any()

    def test_the_digest_tells_questions_apart(self) -> None:
        digests = {
            demo_benchmark(name, split, n, seed).digest
            for name in ("chair", "pope", "beaf")
            for split in ("val", "test")
            for n in (2, 3)
            for seed in (0, 1)
        }
        assert len(digests) == 24
        assert demo_benchmark("pope", "val", 2).digest == demo_benchmark("pope", "val", 2).digest

    def test_the_digest_sees_which_picture_is_asked_about(self) -> None:
        (item,) = demo_benchmark("chair", "val", 1).items
        assert digest([item]) != digest([replace(item, image_id=7)])

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("chiar", "val"), "did you mean 'chair'"),
            (("chair", "tset"), "did you mean 'test'"),
            (("chair", "val", 0), "n=0"),
            (("pope", "val", 5, -1), "seed=-1"),
        ],
    )
    def test_refusals(self, arguments: tuple[object, ...], words: str) -> None:
        with pytest.raises(InputError, match=words):
            demo_benchmark(*arguments)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, scene in zip(
        ("b.png", "COCO_val2014_000000000042.png", "b_00.png"), scenes("val", 3), strict=True
    ):
        scene.image().save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, *rows: object) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


Written = Callable[..., Path]


def pope_row(number: int, image: str = "b.png", thing: str = "dog", label: str = "no") -> dict[str, object]:
    return {
        "question_id": number,
        "image": image,
        "text": f"Is there a {thing} in the image?",
        "label": label,
    }


def beaf_row(number: int, image: str, original: bool, label: str) -> dict[str, object]:
    facts = {"orig_img": original, "removed_q": True, "gt": label}
    return {"id": number, "image": image, "question": "Is there a dog in the image?", **facts}


class TestUser:
    def test_chair_takes_every_picture_of_a_folder(self, folder: Path) -> None:
        bench = user_benchmark("chair", images=folder)
        assert [item.image_id for item in bench.items] == [42, "b", "b_00"]
        assert [item.truth for item in bench.items] == [{"objects": None}] * 3
        assert bench.items[1].picture().tobytes() == scenes("val", 1)[0].image().tobytes()
        assert len(user_benchmark("chair", images=folder, limit=2).items) == 2

    def test_chair_keeps_what_is_true(self, folder: Path, written: Written) -> None:
        truth = written(
            "truth.jsonl",
            *({"image_id": image, "objects": ["sofa", "cat"]} for image in (42, "b", "b_00", "else")),
        )
        bench = user_benchmark("chair", images=folder, truth=[truth])
        assert bench.items[0].truth == {"objects": ["cat", "couch"]}
        with pytest.raises(UnknownImage, match="b_00"):
            user_benchmark("chair", images=folder, truth=[written("less.jsonl", *(
                {"image_id": image, "objects": []} for image in (42, "b")))])  # fmt: skip

    def test_two_pictures_of_one_name_are_refused(self, folder: Path) -> None:
        scenes("val", 1)[0].image().save(folder / "b.jpg")
        with pytest.raises(BadBenchmark, match=r"b\.jpg and .*b\.png are both image b"):
            user_benchmark("chair", images=folder)

    def test_pope_puts_a_pictures_questions_side_by_side(self, folder: Path, written: Written) -> None:
        random = written(
            "coco_pope_random.json",
            pope_row(1),
            pope_row(2, "COCO_val2014_000000000042.png"),
            pope_row(3, thing="cat", label="yes"),
        )
        mine = written("mine.json", pope_row(1, thing="kite"))
        bench = user_benchmark("pope", images=folder, questions=[random, mine])
        assert [item.id for item in bench.items] == ["random/1", "random/3", "mine/1", "random/2"]
        assert bench.items[1].truth == {"label": "yes", "split": "random", "object": "cat"}
        assert [item.image_id for item in bench.items] == ["b.png"] * 3 + [42]
        assert len(user_benchmark("pope", images=folder, questions=[random, mine], limit=1).items) == 3

    def test_beaf_limits_originals_and_keeps_their_edits(self, folder: Path, written: Written) -> None:
        rows = [
            beaf_row(0, "b.png", True, "yes"),
            beaf_row(1, "b_00.png", False, "no"),
            beaf_row(2, "COCO_val2014_000000000042.png", True, "no"),
        ]
        bench = user_benchmark("beaf", images=folder, questions=[written("q.jsonl", *rows)], limit=1)
        assert [item.id for item in bench.items] == ["0", "1"]
        assert bench.items[1].truth == {
            "label": "no",
            "image": "b_00.png",
            "orig_img": False,
            "removed_q": True,
        }

    def test_refusals(self, folder: Path, written: Written, tmp_path: Path) -> None:
        good, gone = written("good.json", pope_row(1)), written("gone.json", pope_row(1, "gone.png"))
        (tmp_path / "empty").mkdir()
        for error, words, name, options in [
            (BadBenchmark, "--images DIR", "chair", {"images": None}),
            (BadBenchmark, "no folder of pictures", "chair", {"images": folder / "b.png"}),
            (BadBenchmark, "holds no picture", "chair", {"images": tmp_path / "empty"}),
            (BadBenchmark, "limit=0", "chair", {"images": folder, "limit": 0}),
            (BadBenchmark, "leave --questions out", "chair", {"images": folder, "questions": [good]}),
            (BadBenchmark, "needs its questions", "pope", {"images": folder}),
            (BadBenchmark, "hold the truth", "pope", {"images": folder, "questions": [good], "truth": [good]}),
            (BadBenchmark, r"gone.json:1: there is no picture .*gone.png", "pope",
             {"images": folder, "questions": [gone]}),
            (BadBenchmark, "not 2", "beaf", {"images": folder, "questions": [good, gone]}),
            (MalformedFile, "must be yes or no", "pope",
             {"images": folder, "questions": [written("odd.json", pope_row(1, label="maybe"))]}),
            (MalformedFile, "must be the name of a file", "pope",
             {"images": folder, "questions": [written("n.json", {**pope_row(1), "image": 3})]}),
        ]:  # fmt: skip
            with pytest.raises(error, match=words):
                user_benchmark(name, **options)  # type: ignore[arg-type]


def test_a_bench_asks_something_and_nothing_twice() -> None:
    one = demo_benchmark("chair", "val", 1).items
    with pytest.raises(BadBenchmark, match="asks nothing"):
        Benchmark(name="chair", split="val", source="nowhere", items=())
    with pytest.raises(BadBenchmark, match="twice"):
        Benchmark(name="chair", split="val", source="nowhere", items=one * 2)
