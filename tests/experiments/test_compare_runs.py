from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_runs import asked, described, made

from keepsight.eval.beaf import score as beaf
from keepsight.eval.chair.report import METRICS, Report
from keepsight.eval.pope import score as binary
from keepsight.eval.stats.bootstrap import paired
from keepsight.experiments.benchmark import ItemRecord
from keepsight.experiments.compare import NO_DIFFERENCE, Comparison, compare, verdict
from keepsight.experiments.merge_runs import Incomparable, NoBaseline, TunedOnReported
from keepsight.experiments.open_benchmark import demo_benchmark
from keepsight.experiments.scores import NotScorable, Scorer, beaf_question, score
from keepsight.experiments.store import Run

CAT, BOTH, DOG = "A cat.", "A cat and a dog.", "A dog."
TWO = described({1: ["cat"], 2: ["cat"]})
NAMES = ("cat", "dog", "person", "car", "couch", "bird")


def changes(found: Comparison, at: int = 1) -> dict[str, Any]:
    row = found.to_json()["methods"][at]["differences"]
    assert isinstance(row, dict)
    return row


def random_captions(seed: int, n: int) -> list[str]:
    rng = random.Random(seed)
    return ["A " + " and a ".join(rng.choices(NAMES, k=rng.randint(1, 4))) + "." for _ in range(n)]


def random_items(n: int) -> list[ItemRecord]:
    rng = random.Random("truth")
    return described({image: rng.sample(NAMES, rng.randint(1, 3)) for image in range(n)})


class TestByHand:
    def test_a_difference_over_two_pictures(self, tmp_path: Path) -> None:
        """Greedy invents 1 of 2 mentions on one picture, 0 of 1 on the other; the method nothing.

        CHAIR_i 1/3 and 0. Draws of two pictures: the first twice (a quarter of the draws), 2/4; both, 1/3; the second
        twice, 0. The interval of the difference reaches from -1/2 to 0, and holds zero.
        """
        run = made(tmp_path / "run", TWO, {"greedy": [BOTH, CAT], "vcd": [CAT, CAT]})
        found = compare([run])
        assert found.rows[0].figures["chair_i"].value == pytest.approx(1 / 3)
        assert found.rows[0].figures["chair_i"].ci == (0, 0.5)
        change = changes(found)["chair_i"]
        assert change["value"] == pytest.approx(-1 / 3)
        assert change["ci"] == [-0.5, 0]
        assert change["verdict"] == NO_DIFFERENCE == "no significant difference"

    def test_a_difference_on_every_picture_is_clear(self, tmp_path: Path) -> None:
        run = made(tmp_path / "run", TWO, {"greedy": [BOTH, BOTH], "vcd": [CAT, CAT]})
        change = changes(compare([run]))
        assert change["chair_i"] == {"value": -0.5, "ci": [-0.5, -0.5], "verdict": "lower"}
        assert change["chair_s"] == {"value": -1.0, "ci": [-1.0, -1.0], "verdict": "lower"}
        assert change["recall"] == {"value": 0.0, "ci": [0.0, 0.0], "verdict": NO_DIFFERENCE}

    def test_who_merely_says_less_is_seen_to(self, tmp_path: Path) -> None:
        """Cut to one mention a caption, greedy is the method to the letter: CHAIR_i falls, and that is no gain."""
        run = made(tmp_path / "run", TWO, {"greedy": [BOTH, BOTH], "short": ["A cat.", "A cat."]})
        row = compare([run]).rows[1]
        assert row.control is not None
        assert row.control.figures["mentions"].value == row.figures["mentions"].value == 1
        assert row.control.figures["chair_i"].value == 0
        assert row.control.differences["chair_i"].value == 0
        assert row.warnings == ("says_less",)

    def test_the_control_is_cut_picture_by_picture(self, tmp_path: Path) -> None:
        """Greedy: 3 of 5 mentions invented; cut to (2, 1) mentions: 1 of 3. The method: 0 of 3."""
        said = {
            "greedy": ["A cat and a dog and a dog.", "A cat and a dog."],
            "vcd": ["A cat and a cat.", "A cat."],
        }
        found = compare([made(tmp_path / "run", TWO, said)])
        greedy, vcd = found.rows
        assert (greedy.figures["chair_i"].value, greedy.figures["mentions"].value) == (3 / 5, 2.5)
        assert (vcd.figures["chair_i"].value, vcd.figures["mentions"].value) == (0.0, 1.5)
        assert vcd.control is not None
        assert vcd.control.figures["chair_i"].value == pytest.approx(1 / 3)
        assert vcd.control.differences["chair_i"].value == pytest.approx(-1 / 3)
        # Each end of the interval draws one picture twice: 2 of 3 invented in the first, 1 of 2 in the second
        assert changes(found)["chair_i"]["ci"] == [pytest.approx(-2 / 3), pytest.approx(-1 / 2)]

    def test_who_names_nothing_has_no_rate_and_valid_json(self, tmp_path: Path) -> None:
        run = made(tmp_path / "run", TWO, {"greedy": ["Nothing.", ""], "vcd": ["", ""]})
        found = compare([run])
        assert [row.figures["chair_i"].value for row in found.rows] == [None, None]
        assert changes(found)["chair_i"] == {"value": None, "ci": None, "verdict": None}
        json.dumps(found.to_json(), allow_nan=False)

    def test_who_says_as_much_but_better_is_not_accused(self, tmp_path: Path) -> None:
        items = described({1: ["cat", "bird"], 2: ["cat", "bird"]})
        run = made(
            tmp_path / "run",
            items,
            {"greedy": [BOTH, BOTH], "better": ["A cat and a bird.", "A cat and a bird."]},
        )
        row = compare([run]).rows[1]
        assert row.warnings == ()
        assert row.control is not None
        assert verdict(row.control.differences["chair_i"]) == "lower"

    def test_a_collapse_of_recall_is_called_one(self, tmp_path: Path) -> None:
        items = described({1: ["cat", "dog"], 2: ["cat", "dog"]})
        run = made(
            tmp_path / "run", items, {"greedy": [BOTH, BOTH], "mute": [CAT, CAT], "same": [BOTH, BOTH]}
        )
        rows = compare([run]).rows
        assert rows[1].warnings == ("recall_collapse",)
        assert rows[2].warnings == ()

    def test_cost_is_relative_to_the_baseline_of_the_same_run(self, tmp_path: Path) -> None:
        slow = made(
            tmp_path / "slow", TWO, {"greedy": [CAT, CAT], "vcd": [CAT, CAT]}, seconds={"greedy": 2, "vcd": 3}
        )
        fast = made(
            tmp_path / "fast", TWO, {"greedy": [CAT, CAT], "pai": [CAT, CAT]}, seconds={"greedy": 1, "pai": 2}
        )
        rows = {row.method: row.cost for row in compare([slow, fast]).rows}
        assert (rows["vcd"].seconds, rows["vcd"].speed) == (3, 4 / 3)
        assert rows["vcd"].relative_seconds == 1.5
        assert rows["vcd"].relative_speed == pytest.approx(2 / 3)
        assert (rows["pai"].relative_seconds, rows["pai"].relative_speed) == (2, 0.5)
        assert (rows["greedy"].relative_seconds, rows["greedy"].relative_speed) == (1, 1)

    def test_without_the_baseline_in_its_run_a_method_has_no_relative_cost(self, tmp_path: Path) -> None:
        one = made(tmp_path / "one", TWO, {"greedy": [CAT, CAT]})
        other = made(tmp_path / "other", TWO, {"vcd": [CAT, CAT]}, baseline=None)
        found = compare([one, other])
        assert [row.method for row in found.rows] == ["greedy", "vcd"]
        assert found.rows[1].cost.relative_seconds is None

    def test_pope_by_split_and_their_mean(self, tmp_path: Path) -> None:
        items = asked({"random": ["yes", "no"], "popular": ["yes", "no"]})
        run = made(
            tmp_path / "run",
            items,
            {"greedy": ["Yes", "No", "Yes", "Yes"], "vcd": ["Yes", "No", "Hm", "No"]},
            bench="pope",
        )
        greedy, vcd = compare([run]).rows
        assert (greedy.figures["random.f1"].value, greedy.figures["popular.f1"].value) == (
            1,
            pytest.approx(2 / 3),
        )
        assert greedy.figures["f1"].value == pytest.approx(5 / 6)
        assert greedy.figures["popular.yes_ratio"].value == 1
        assert (greedy.unparsed, vcd.unparsed) == (0, 1)
        assert vcd.figures["popular.accuracy"].value == 0.5
        assert vcd.figures["precision"].value is None  # the popular split has no yes


class TestFailures:
    def test_failed_and_missing_answers_are_counted_and_never_scored(self, tmp_path: Path) -> None:
        items = described({image: ["cat"] for image in range(4)})
        run = made(
            tmp_path / "run",
            items,
            {"greedy": [CAT, CAT, BOTH, BOTH], "vcd": [CAT, None, CAT], "pai": [DOG, CAT, CAT, CAT]},
        )
        found = compare([run])
        assert found.merged.ids == ("q0", "q2")
        assert found.to_json()["left_out"] == 2
        assert [row.figures["chair_i"].value for row in found.rows] == [pytest.approx(1 / 3), 0, 0.5]
        assert [(row.counts.answered, row.counts.failed, row.counts.missing) for row in found.rows] == [
            (4, 0, 0),
            (2, 1, 1),
            (4, 0, 0),
        ]
        assert isinstance(one := score(run, "vcd"), Report)
        assert one.n == 2

    def test_an_empty_answer_is_an_answer(self, tmp_path: Path) -> None:
        run = made(tmp_path / "run", TWO, {"greedy": ["", CAT]})
        assert compare([run]).rows[0].figures["no_object"].value == 0.5

    def test_nothing_in_common(self, tmp_path: Path) -> None:
        run = made(tmp_path / "run", TWO, {"greedy": [None, CAT], "vcd": [CAT, None]})
        with pytest.raises(Incomparable, match="no question that all methods answered"):
            compare([run])

    def test_unknown_truth_is_refused_until_it_is_told(self, tmp_path: Path) -> None:
        items = [replace(item, truth={"objects": None}) for item in TWO]
        run = made(tmp_path / "run", items, {"greedy": [BOTH, CAT]})
        with pytest.raises(NotScorable, match=r"what is in picture 1.*--annotations"):
            compare([run])
        told = compare([run], scorer=Scorer(truth={1: ["cat"], 2: ["cat"]}))
        assert told.rows[0].figures["chair_i"].value == pytest.approx(1 / 3)

    def test_families_are_not_mixed(self, tmp_path: Path) -> None:
        run = made(tmp_path / "run", TWO, {"greedy": [CAT, CAT]})
        run.manifest["bench"]["family"] = "wordnet"
        with pytest.raises(NotScorable, match="was read in the family wordnet"):
            compare([run], scorer=Scorer(family="pattern"))


class TestLaws:
    @pytest.mark.parametrize("bench", ["chair", "pope", "beaf"])
    def test_a_method_equal_to_the_baseline_differs_by_exactly_zero(self, tmp_path: Path, bench: str) -> None:
        items = [ItemRecord(**one.to_json()) for one in demo_benchmark(bench, "val", 6).items]
        rng = random.Random(3)
        said = (
            random_captions(0, len(items))
            if bench == "chair"
            else rng.choices(["Yes.", "No.", "Hm"], k=len(items))
        )
        run = made(tmp_path / "run", items, {"greedy": said, "same": said}, bench=bench)
        for change in changes(compare([run])).values():
            assert change["value"] in (0, None)
            assert change["ci"] in ([0, 0], None)
            assert change["verdict"] in (NO_DIFFERENCE, None)

    def test_intervals_are_those_of_the_scorers_own_pairing(self, tmp_path: Path) -> None:
        items = random_items(40)
        run = made(tmp_path / "run", items, {"greedy": random_captions(1, 40), "vcd": random_captions(2, 40)})
        found = compare([run], resamples=500, seed=3)
        a, b = (score(run, method, resamples=500, seed=3) for method in run.methods)
        assert isinstance(a, Report)
        assert isinstance(b, Report)
        for name in METRICS:
            assert found.rows[0].figures[name].value == getattr(a, name)
            assert found.rows[0].figures[name].ci == pytest.approx(a.ci[name])
            ours, theirs = changes(found)[name], paired(a, b, name, resamples=500, seed=3)
            assert [ours["value"], *ours["ci"]] == pytest.approx([theirs.value, theirs.low, theirs.high])

    def test_pope_agrees_with_its_scorer(self, tmp_path: Path) -> None:
        rng = random.Random(5)
        items = asked(
            {kind: rng.choices(["yes", "no"], k=30) for kind in ("random", "popular", "adversarial")}
        )
        said = {method: rng.choices(["Yes.", "No.", "Perhaps"], k=90) for method in ("greedy", "vcd")}
        run = made(tmp_path / "run", items, said, bench="pope")
        found = compare([run], resamples=500)
        a, b = (score(run, method, resamples=500) for method in run.methods)
        assert isinstance(a, dict)
        assert isinstance(b, dict)
        mean = binary.mean(a)
        for name in binary.METRICS:
            assert found.rows[0].figures[name].value == pytest.approx(getattr(mean, name))
            assert found.rows[0].figures[name].ci == pytest.approx(mean.ci[name])
            theirs = binary.paired(a, b, name, resamples=500)
            ours = changes(found)[name]
            assert [ours["value"], *ours["ci"]] == pytest.approx([theirs.value, theirs.low, theirs.high])

    def test_beaf_agrees_with_its_scorer(self, tmp_path: Path) -> None:
        rng = random.Random(7)
        items = [ItemRecord(**one.to_json()) for one in demo_benchmark("beaf", "val", 12).items]
        run = made(
            tmp_path / "run", items, {"greedy": rng.choices(["Yes", "No", "Hm"], k=len(items))}, bench="beaf"
        )
        found = compare([run], resamples=500)
        theirs = beaf.score(
            [beaf_question(item) for item in items],
            {one.id: one.answer for one in run.answers("greedy")},
            resamples=500,
        )
        assert 0 < (theirs.values["tu"] or 0) < 1
        for name in beaf.METRICS:
            assert found.rows[0].figures[name].value == pytest.approx(theirs.values[name])
            assert found.rows[0].figures[name].ci == pytest.approx(theirs.ci[name])

    def test_the_order_of_the_folders_does_not_matter(self, tmp_path: Path) -> None:
        items = random_items(20)
        runs = [
            made(
                tmp_path / name,
                items,
                {"greedy": random_captions(seed, 20), name: random_captions(9 + seed, 20)},
                created=f"2026-01-0{3 - seed}",
            )
            for seed, name in enumerate(("vcd", "pai"), 1)
        ]
        one, other = compare(runs).to_json(), compare(runs[::-1]).to_json()
        assert one == other
        assert [row["method"] for row in one["methods"]] == ["greedy", "pai", "vcd"]
        # Both hold greedy, with other answers: the run begun first stands for it, and that is said
        assert "of 20 questions otherwise" in one["warnings"][0]
        assert one["methods"][0]["folder"].endswith("pai")

    def test_the_seed_decides(self, tmp_path: Path) -> None:
        items = random_items(20)
        run = made(tmp_path / "run", items, {"greedy": random_captions(1, 20), "vcd": random_captions(2, 20)})
        first = compare([run], resamples=200).to_json()
        assert compare([run], resamples=200).to_json() == first
        assert changes(compare([run], resamples=200, seed=1)) != first["methods"][1]["differences"]

    def test_no_resamples_no_intervals(self, tmp_path: Path) -> None:
        run = made(tmp_path / "run", TWO, {"greedy": [BOTH, CAT], "vcd": [CAT, CAT]})
        found = compare([run], resamples=0)
        assert changes(found)["chair_i"]["ci"] is None
        assert changes(found)["chair_i"]["verdict"] is None
        json.dumps(found.to_json(), allow_nan=False)

    def test_a_chosen_baseline_turns_the_difference_round(self, tmp_path: Path) -> None:
        run = made(tmp_path / "run", TWO, {"greedy": [BOTH, CAT], "vcd": [CAT, CAT]})
        found = compare([run], baseline="vcd")
        assert [row.method for row in found.rows] == ["vcd", "greedy"]
        assert changes(found)["chair_i"]["value"] == pytest.approx(1 / 3)


class TestRefusals:
    @pytest.mark.parametrize(
        ("other", "words"),
        [
            ({"weights": {"sha256": "def", "revision": None}}, r'weights: "abc" and "def"'),
            ({"weights": None, "model": "another"}, 'model: "a model" and "another"'),
            ({"prompt": "{question} Be brief."}, "prompt:"),
            ({"max_new_tokens": 512}, "max_new_tokens: 64 and 512"),
        ],
    )
    def test_runs_that_differ_in_more_than_the_method(
        self, tmp_path: Path, other: dict[str, Any], words: str
    ) -> None:
        one = made(tmp_path / "a", TWO, {"greedy": [CAT, CAT]})
        two = made(tmp_path / "b", TWO, {"greedy": [CAT, CAT]}, **other)
        with pytest.raises(Incomparable, match=words):
            compare([one, two])

    def test_other_questions(self, tmp_path: Path) -> None:
        one = made(tmp_path / "a", TWO, {"greedy": [CAT, CAT]})
        two = made(tmp_path / "b", described({1: ["cat"], 2: ["dog"]}), {"greedy": [CAT, CAT]})
        with pytest.raises(Incomparable, match=r"questions \(digest\)"):
            compare([one, two])

    def test_the_same_weights_elsewhere_are_the_same_model(self, tmp_path: Path) -> None:
        one = made(tmp_path / "a", TWO, {"greedy": [CAT, CAT]})
        two = made(tmp_path / "b", TWO, {"greedy": [CAT, CAT], "vcd": [CAT, CAT]}, model="/elsewhere")
        assert len(compare([one, two]).rows) == 2

    def test_a_folder_twice_and_a_method_answered_twice(self, tmp_path: Path) -> None:
        one = made(tmp_path / "a", TWO, {"greedy": [CAT, CAT], "vcd": [CAT, CAT]})
        two = made(tmp_path / "b", TWO, {"greedy": [CAT, CAT], "vcd": [CAT, DOG]})
        with pytest.raises(Incomparable, match="given twice"):
            compare([one, one])
        with pytest.raises(Incomparable, match="both hold vcd, with other answers to 1 of 2"):
            compare([one, two])

    def test_baselines(self, tmp_path: Path) -> None:
        none = made(tmp_path / "a", TWO, {"vcd": [CAT, CAT]}, baseline=None)
        other = made(tmp_path / "b", TWO, {"sample": [CAT, CAT]})
        third = made(tmp_path / "c", TWO, {"greedy": [CAT, CAT]})
        with pytest.raises(NoBaseline, match="no baseline: choose one with --baseline, of vcd"):
            compare([none])
        with pytest.raises(NoBaseline, match="different baselines"):
            compare([other, third])
        with pytest.raises(NoBaseline, match="did you mean 'greedy'"):
            compare([third], baseline="greddy")
        assert compare([none], baseline="vcd").rows[0].method == "vcd"


class TestTunedOn:
    @pytest.fixture
    def tuned(self, tmp_path: Path) -> Callable[..., Run]:
        def tuned(name: str, items: list[ItemRecord], split: str) -> Run:
            answers = {"greedy": [CAT] * len(items), "vcd": [CAT] * len(items)}
            return made(tmp_path / name, items, answers, split=split, tuning={"chosen": "vcd"})

        return tuned

    def test_a_tuning_is_not_reported(self, tuned: Callable[..., Run]) -> None:
        run = tuned("t", TWO, "val")
        with pytest.raises(TunedOnReported, match="the run on which vcd was chosen"):
            compare([run])
        assert "vcd was chosen" in compare([run], allow_tuned=True).to_json()["warnings"][0]

    def test_nor_is_what_shares_its_pictures(self, tuned: Callable[..., Run], tmp_path: Path) -> None:
        tuning = tuned("t", TWO, "user")
        fresh = made(tmp_path / "fresh", described({3: ["cat"]}), {"greedy": [CAT]}, split="user")
        stale = made(
            tmp_path / "stale", described({2: ["cat"], 3: ["cat"]}), {"greedy": [CAT, CAT]}, split="user"
        )
        assert compare([fresh], tunings=[tuning]).leaks == ()
        with pytest.raises(TunedOnReported, match="shares 1 picture"):
            compare([stale], tunings=[tuning])
