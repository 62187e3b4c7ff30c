from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepsight.experiments.errors import CannotRecord, DamagedRun, NotARun
from keepsight.experiments.open_benchmark import demo_benchmark
from keepsight.experiments.store import (
    Answer,
    create,
    holds_run,
    merge,
    open_run,
    shard,
    whole_lines,
)

BENCH = demo_benchmark("chair", "val", 3)
IDS = [item.id for item in BENCH.items]


def answer(
    number: int, method: str = "greedy", said: str | None = "a cat", error: str | None = None
) -> Answer:
    return Answer(
        id=IDS[number],
        image_id=BENCH.items[number].image_id,
        method=method,
        model="demo",
        seed=0,
        prompt="Describe this image.",
        answer=None if error else said,
        error=error,
        prompt_tokens=75,
        tokens=3,
        seconds=0.5,
        batch=1,
        rank=0,
        versions={"keepsight": "0"},
    )


def write(path: Path, *answers: Answer, torn: str = "") -> None:
    path.write_text("".join(one.to_line() for one in answers) + torn, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    manifest = {
        "format": 1,
        "bench": BENCH.head(),
        "methods": ["greedy", "vcd"],
        "baseline": "greedy",
        "seed": 3,
    }
    create(tmp_path, manifest, BENCH.items)
    return tmp_path


def change(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value != "gone"}))


def test_a_run_that_has_just_begun(folder: Path) -> None:
    run = open_run(folder)
    assert [one.to_json() for one in run.items] == [item.to_json() for item in BENCH.items]
    assert (run.methods, run.baseline, run.seed, run.complete) == (("greedy", "vcd"), "greedy", 3, False)
    assert run.answers("vcd") == ()
    assert run.missing("vcd") == tuple(IDS)
    assert holds_run(folder)


def test_answers_come_in_the_order_of_the_questions_from_all_files(folder: Path) -> None:
    write(folder / "answers.jsonl", answer(2), answer(0, "vcd"))
    write(shard(folder, 0, 2), answer(1))
    write(shard(folder, 1, 2), answer(0))
    run = open_run(folder)
    assert [one.id for one in run.answers("greedy")] == IDS
    assert run.missing("vcd") == (IDS[1], IDS[2])
    assert run.missing("greedy") == ()


@pytest.mark.parametrize("torn", ['{"id": "val', '{"id": "x"}', "\0\0\0\0", "\0\0\0\n", "nonsense\n"])
def test_what_was_cut_while_it_was_written_does_not_count(folder: Path, torn: str) -> None:
    write(folder / "answers.jsonl", answer(0), answer(1), torn=torn)
    before = (folder / "answers.jsonl").read_bytes()
    assert open_run(folder).missing("greedy") == (IDS[2],)
    assert (folder / "answers.jsonl").read_bytes() == before


@given(st.lists(st.text(max_size=5)), st.integers(0, 200))
def test_a_file_cut_anywhere_keeps_its_whole_lines(texts: list[str], at: int) -> None:
    lines = [json.dumps({"said": text}, ensure_ascii=False).encode() + b"\n" for text in texts]
    data = b"".join(lines)
    kept = whole_lines(data[:at])
    assert data[:kept] == b"".join(lines[: data[:at].count(b"\n")])


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ([answer(0, said="first"), answer(0, said="second")], "first"),
        ([answer(0, error="E: 1"), answer(0, said="good")], "good"),
        ([answer(0, said="good"), answer(0, error="E: 1")], "good"),
        ([answer(0, error="E: 1"), answer(0, error="E: 2")], "E: 2"),
    ],
)
def test_of_two_lines_about_a_question_one_counts(folder: Path, lines: Sequence[Answer], kept: str) -> None:
    write(folder / "answers.jsonl", *lines)
    (found,) = open_run(folder).answers("greedy")
    assert kept in (found.answer, found.error)
    merge(open_run(folder))
    assert (folder / "answers.jsonl").read_text() == found.to_line()


def test_a_failure_is_no_empty_answer(folder: Path) -> None:
    write(folder / "answers.jsonl", answer(0, said=""), answer(1, error="BadImage: gone"))
    run = open_run(folder)
    assert [one.answer for one in run.answers("greedy")] == ["", None]
    assert [one.id for one in run.failed("greedy")] == [IDS[1]]
    assert run.missing("greedy") == (IDS[2],)


def test_merging_keeps_every_answer_and_removes_the_shards(folder: Path) -> None:
    write(folder / "answers.jsonl", answer(1))
    write(shard(folder, 0, 2), answer(2, "vcd"), answer(0), torn='{"id')
    write(shard(folder, 1, 3), answer(0, said="again"), answer(0, "vcd"))
    before = open_run(folder)
    merge(before)
    after = open_run(folder)
    assert after.found == before.found
    assert sorted(path.name for path in folder.iterdir()) == ["answers.jsonl", "items.jsonl", "manifest.json"]
    text = (folder / "answers.jsonl").read_text()
    assert (
        text
        == answer(0).to_line() + answer(0, "vcd").to_line() + answer(1).to_line() + answer(2, "vcd").to_line()
    )
    merge(after)
    assert (folder / "answers.jsonl").read_text() == text


def test_an_answer_holds_any_text(folder: Path) -> None:
    said = 'a "cat"\n\u2028\x85\0 🐱'
    write(folder / "answers.jsonl", answer(0, said=said))
    assert open_run(folder).answers("greedy")[0] == answer(0, said=said)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (answer(0, "m3id").to_line(), r"answers.jsonl:1: the run has no method 'm3id'"),
        (answer(0).to_line().replace(IDS[0], "val/9/9"), "has no question 'val/9/9'"),
        ('{"id": "val/0/0"}\n', "lacks answer, batch"),
        ("[]\n", "lacks an object"),
        (answer(0, said=None).to_line(), "exactly one of"),
        ("half a li\n" + answer(0).to_line(), "answers.jsonl:1: is not JSON"),
    ],
)
def test_lines_that_do_not_belong(folder: Path, line: str, words: str) -> None:
    (folder / "answers.jsonl").write_text(line)
    with pytest.raises(DamagedRun, match=words):
        open_run(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "format 2 is unknown"),
        ({"format": "gone"}, "'format' is missing"),
        ({"bench": []}, "'bench' is missing"),
        ({"methods": []}, "'methods' must be a list"),
        ({"baseline": "sample"}, "'baseline' must be"),
        ({"seed": None}, "'seed' a whole number"),
        ({"bench": {**BENCH.head(), "n": 4}}, "the digests differ"),
        ({"bench": {**BENCH.head(), "digest": "0"}}, "the digests differ"),
    ],
)
def test_manifests_that_do_not_fit(folder: Path, changes: dict[str, Any], words: str) -> None:
    change(folder, **changes)
    with pytest.raises(DamagedRun, match=words):
        open_run(folder)


def test_damaged_files_have_names(folder: Path) -> None:
    (folder / "items.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(DamagedRun, match=r"items.jsonl:1"):
        open_run(folder)
    (folder / "items.jsonl").unlink()
    with pytest.raises(DamagedRun, match=r"items.jsonl: cannot be read"):
        open_run(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DamagedRun, match=r"manifest.json: cannot be read"):
        open_run(folder)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(NotARun, match="is no folder"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(NotARun, match="holds no manifest"):
        open_run(tmp_path)
    assert not holds_run(tmp_path / "nowhere")
    (tmp_path / "items.jsonl").touch()
    (tmp_path / ".rank0.lock").touch()
    assert not holds_run(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(NotARun, match=r"holds thesis.tex and no run"):
        holds_run(tmp_path)
    with pytest.raises(NotARun, match="is a file"):
        holds_run(tmp_path / "thesis.tex")


def test_a_folder_that_is_not_there_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CannotRecord, match="cannot write"):
        create(tmp_path / "nowhere", {}, BENCH.items)
