from __future__ import annotations

from pathlib import Path

from made_runs import asked, described, made

from keepsight.experiments.compare import compare
from keepsight.reports.caption_examples import caption_examples, short_names
from keepsight.reports.compare_tables import spec_parts, wrapped

CAT, BOTH = "A cat.", "A cat and a dog."


def test_examples_are_the_judged_pictures_with_their_numbers(tmp_path: Path) -> None:
    items = described({7: ["cat"], 8: ["cat"], 9: ["cat"]})
    run = made(tmp_path / "run", items, {"greedy": [BOTH, None, CAT], "vcd": [CAT, CAT, CAT]})
    first, last = caption_examples(compare([run], resamples=0))
    assert (first.number, first.id, first.differ) == (1, "q7", True)
    assert [one.caption for one in first.captions] == [BOTH, CAT]
    assert [len(one.hallucinated) for one in first.captions] == [1, 0]
    # The second picture failed in one way and is judged in none
    assert (last.number, last.id, last.differ) == (3, "q9", False)


def test_answers_of_yes_or_no_have_no_captions(tmp_path: Path) -> None:
    run = made(tmp_path / "run", asked({"random": ["yes"]}), {"greedy": ["Yes"]}, bench="pope")
    assert caption_examples(compare([run], resamples=0)) == ()


def test_names_without_settings_where_they_are_enough() -> None:
    assert short_names(["greedy", "m3id:decay=0.1", "sample:top_p=0.9+vcd"]) == [
        "greedy",
        "m3id",
        "sample+vcd",
    ]
    both = ["m3id:decay=0.1", "m3id:decay=0.2"]
    assert short_names(both) == both


def test_specs_are_taken_apart() -> None:
    assert spec_parts("pai:layers=1/2+vhr") == [("pai", "layers=1/2"), ("vhr", "")]
    assert spec_parts("my.module:Mine:a=1+vhr") == [("my.module:Mine", "a=1"), ("vhr", "")]
    assert wrapped("pai+vhr:alpha=2.0,layers=1/2/3/4", 16) == ["pai", "+vhr:", "alpha=2.0,", "layers=1/2/3/4"]
    assert wrapped("vcd:alpha=1", 16) == ["vcd:alpha=1"]
