from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import asked, described, made

from keepsight.errors import InvalidParameter, UnknownParameter
from keepsight.experiments.compare import compare
from keepsight.experiments.merge_runs import TUNING, TunedOnReported
from keepsight.experiments.open_benchmark import demo_benchmark
from keepsight.experiments.tune import (
    BadGrid,
    Floor,
    Tuning,
    check_split,
    check_unreported,
    mark,
    parse_floor,
    parse_grid,
    pick,
    settings,
)

CAT, BOTH, DOG = "A cat.", "A cat and a dog.", "A dog."
ITEMS = described({image: ["cat", "bird"] for image in range(4)})
SAID = {
    # CHAIR_i 4/8, recall 4/8
    "greedy": [BOTH] * 4,
    # invents nothing, and finds as much
    "vcd:alpha=0.5": [CAT] * 4,
    # invents nothing, and finds more
    "vcd:alpha=2.0": ["A cat and a bird."] * 4,
    # invents nothing, and misses one of four cats: recall 3/8, 12.5 points lost
    "vcd:alpha=3.0": [CAT, CAT, CAT, "Nothing."],
}


def tuned(folder: Path, said: dict[str, list[str]], *floors: Floor) -> Tuning:
    return pick(compare([made(folder / "run", ITEMS, said)], resamples=100), floors)


class TestPick:
    def test_of_equals_the_one_that_finds_more(self, tmp_path: Path) -> None:
        found = tuned(tmp_path, SAID, Floor("recall", -0.01))
        assert found.chosen is not None
        assert found.chosen.row.method == "vcd:alpha=2.0"
        assert [(point.row.method, [floor.figure for floor in point.broken]) for point in found.points] == [
            ("vcd:alpha=0.5", []),
            ("vcd:alpha=2.0", []),
            ("vcd:alpha=3.0", ["recall"]),
        ]

    @pytest.mark.parametrize(("floor", "passes"), [(-0.125, True), (-0.1249, False), (0.0, False)])
    def test_a_loss_of_exactly_the_floor_passes(self, tmp_path: Path, floor: float, passes: bool) -> None:
        said = {name: SAID[name] for name in ("greedy", "vcd:alpha=3.0")}
        found = tuned(tmp_path, said, Floor("recall", floor))
        assert (found.chosen is not None) == passes

    def test_a_floor_may_demand_a_gain_and_be_about_length(self, tmp_path: Path) -> None:
        assert [bool(point.broken) for point in tuned(tmp_path, SAID, Floor("recall", 0.4)).points] == [
            True,
            False,
            True,
        ]
        (tmp_path / "b").mkdir()
        # "A cat and a dog." has six words and marks, "A cat." three
        found = tuned(tmp_path / "b", SAID, Floor("length", -2.9))
        assert [bool(point.broken) for point in found.points] == [True, False, True]

    def test_nothing_passes(self, tmp_path: Path) -> None:
        found = tuned(tmp_path, SAID, Floor("recall", 0.6))
        assert found.chosen is None
        assert found.to_json()["chosen"] is None
        assert set(found.to_json()["refused"]) == set(SAID) - {"greedy"}

    def test_pope_brings_f1_up(self, tmp_path: Path) -> None:
        items = asked({"random": ["yes", "no"], "popular": ["yes", "no"]})
        run = made(
            tmp_path / "run",
            items,
            {
                "greedy": ["Yes", "Yes", "Yes", "Yes"],
                "vcd:alpha=0.5": ["Yes", "No", "Yes", "Yes"],
                "vcd:alpha=1.0": ["Yes", "No", "Yes", "No"],
            },
            bench="pope",
        )
        found = pick(compare([run], resamples=10), [Floor("recall", -0.01)])
        assert found.chosen is not None
        assert found.chosen.row.method == "vcd:alpha=1.0"

    def test_the_manifest_remembers_and_compare_refuses(self, tmp_path: Path) -> None:
        run = made(tmp_path / "run", ITEMS, SAID)
        found = pick(compare([run], resamples=0), [Floor("recall", -0.01)])
        manifest = mark(run.manifest, found, "vcd", ["alpha=0.5,2,3"])
        assert manifest[TUNING]["chosen"] == "vcd:alpha=2.0"
        assert manifest[TUNING]["floors"] == ["recall=-1"]
        assert {name: value for name, value in manifest.items() if name != TUNING} == run.manifest


class TestGrid:
    def test_every_combination_the_last_axis_fastest(self) -> None:
        found = [way.name for way in settings("m3id:cutoff=0.02", ["decay=0.05,0.1", "gate=0.7,0.9"])]
        assert found == [
            "m3id:decay=0.05,gate=0.7,cutoff=0.02",
            "m3id:decay=0.05,gate=0.9,cutoff=0.02",
            "m3id:decay=0.1,gate=0.7,cutoff=0.02",
            "m3id:decay=0.1,gate=0.9,cutoff=0.02",
        ]

    def test_the_decoding_and_the_other_methods_stay(self) -> None:
        found = [
            way.name
            for way in settings("sample:temperature=0.5+pai+vhr", ["pai.alpha=0.1,0.3", "vhr.alpha=2"])
        ]
        assert found == [
            "sample:temperature=0.5+pai:alpha=0.1+vhr",
            "sample:temperature=0.5+pai:alpha=0.3+vhr",
        ]

    @pytest.mark.parametrize(
        ("spec", "grid", "error", "words"),
        [
            ("m3id", [], BadGrid, "there is no grid"),
            ("m3id", ["decay"], BadGrid, "write parameter=value,value"),
            ("m3id", ["decay=0.1,,0.2"], BadGrid, "write parameter=value,value"),
            ("m3id", ["decay=0.1,0.1"], BadGrid, "0.1 is there twice"),
            ("m3id", ["decay=0.1,0.10"], BadGrid, "are the same setting, m3id:decay=0.1"),
            ("m3id", ["decay=0.1", "decay=0.2"], BadGrid, "decay is given twice"),
            ("m3id", ["decoy=0.1"], UnknownParameter, "did you mean 'decay'"),
            ("m3id", ["vcd.alpha=1"], UnknownParameter, "no method 'vcd' here"),
            ("m3id", ["decay=nan"], InvalidParameter, "must be a finite number"),
            ("m3id", ["decay=strong"], InvalidParameter, "must be a number"),
            ("pai+vhr", ["alpha=1,2"], BadGrid, r"write pai\.alpha and vhr\.alpha"),
            ("sample", ["temperature=1"], BadGrid, "nothing to tune"),
        ],
    )
    def test_what_is_refused(self, spec: str, grid: list[str], error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            settings(spec, grid)

    def test_a_grid_is_texts(self) -> None:
        assert parse_grid(" alpha = 0.5, none ") == ("alpha", ("0.5", "none"))


class TestFloors:
    def test_points_are_fractions_and_lengths_numbers(self) -> None:
        assert parse_floor("recall=-1", "chair") == Floor("recall", -0.01)
        assert parse_floor("length=-1", "chair") == Floor("length", -1)
        assert [parse_floor(text, "chair").text for text in ("recall=-0.5", "length=2")] == [
            "recall=-0.5",
            "length=2",
        ]

    @pytest.mark.parametrize("text", ["recall", "recall=low", "recall=nan", "recal=-1", "tu=-1"])
    def test_what_is_refused(self, text: str) -> None:
        with pytest.raises(BadGrid, match="--floor"):
            parse_floor(text, "chair")


class TestReported:
    @pytest.mark.parametrize("split", ["test", "test-shifted"])
    def test_test_splits_are_refused(self, split: str) -> None:
        with pytest.raises(TunedOnReported, match="tune on val or val-shifted"):
            check_split(demo_benchmark("chair", split, 1))

    def test_shared_questions_are_refused(self, tmp_path: Path) -> None:
        bench = demo_benchmark("chair", "val", 3)
        reported = made(tmp_path / "r", bench.items[1:], {"greedy": [CAT, CAT]}, split="val")
        with pytest.raises(TunedOnReported, match=r"2 questions of this bench are in .*, which is reported"):
            check_unreported(bench, [reported])
        check_unreported(demo_benchmark("chair", "val-shifted", 3), [reported])
        check_unreported(demo_benchmark("chair", "val", 3, seed=1), [reported])
