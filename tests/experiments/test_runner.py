from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from keepsight.errors import UnsupportedModel
from keepsight.experiments import runner as engine
from keepsight.experiments.answer_log import AnswerLog, claim_rank
from keepsight.experiments.decoding_config import build_configs
from keepsight.experiments.errors import (
    BadBenchmark,
    CannotRecord,
    EverythingFails,
    RunInUse,
    RunMismatch,
)
from keepsight.experiments.manifest import RunConfig
from keepsight.experiments.open_benchmark import demo_benchmark, user_benchmark
from keepsight.experiments.runner import Progress
from keepsight.experiments.store import Run, open_run
from keepsight.inference.generation import Answers, Generation, answer, answer_batch

Start = Callable[..., Run]


class Stopped(BaseException):
    """What stops a run in these tests: nothing catches it."""


def said(run: Run) -> dict[str, list[str | None]]:
    return {method: [one.answer for one in run.answers(method)] for method in run.methods}


def lines(run: Run) -> list[str]:
    return (run.folder / "answers.jsonl").read_text().split("\n")[:-1]


def stop_after(answers: int) -> Callable[[Progress], None]:
    def tell(progress: Progress) -> None:
        if progress.done >= answers:
            raise Stopped

    return tell


def test_a_run_says_what_the_model_says_alone(
    undisturbed: Run, plan: RunConfig, model: tuple[Any, Any]
) -> None:
    pictures = [item.picture() for item in plan.bench.items]
    for way in (plan.ways[0], plan.ways[2]):
        alone = answer(
            *model, pictures, "Describe this image.", *way.methods, generation=Generation(max_new_tokens=6)
        )
        assert said(undisturbed)[way.name] == [text for one in alone for text in one.texts]
    assert len({tuple(texts) for texts in said(undisturbed).values()}) == 4


def test_a_line_says_all_about_an_answer(undisturbed: Run, plan: RunConfig) -> None:
    item = plan.bench.items[0]
    line = json.loads(lines(undisturbed)[0])
    assert list(line) == [
        "id", "image_id", "method", "model", "seed", "prompt", "answer", "error", "prompt_tokens", "tokens", "seconds",
        "batch", "rank", "versions",
    ]  # fmt: skip
    assert (line["id"], line["image_id"], line["method"]) == (item.id, item.image_id, "greedy")
    assert (line["prompt"], line["error"], line["batch"], line["rank"]) == (
        "Describe this image.",
        None,
        3,
        0,
    )
    assert 0 < line["tokens"] <= 6
    assert line["prompt_tokens"] > 64
    assert line["seconds"] > 0
    assert set(line["versions"]) == {"keepsight", "python", "torch", "transformers"}
    assert len(lines(undisturbed)) == 4 * 7
    assert undisturbed.complete


def test_the_manifest_says_what_was_run(undisturbed: Run, plan: RunConfig) -> None:
    manifest = undisturbed.manifest
    assert manifest["bench"] == plan.bench.head()
    assert manifest["methods"] == [way.name for way in plan.ways]
    assert (manifest["baseline"], manifest["max_new_tokens"], manifest["batch"]) == ("greedy", 6, 3)
    assert manifest["weights"]["sha256"] == "of the stand-in"
    assert [session["world_size"] for session in manifest["sessions"]] == [1]


@pytest.mark.parametrize("after", [1, 12, 13, 27])
def test_a_stopped_run_goes_on_where_it_stopped(
    start: Start, plan: RunConfig, undisturbed: Run, tmp_path: Path, after: int
) -> None:
    with pytest.raises(Stopped):
        start(plan, on_progress=stop_after(after))
    path = tmp_path / "run" / "answers.jsonl"
    written = path.read_bytes()
    assert written.count(b"\n") >= after
    # The process was killed in the middle of a line as well
    path.write_bytes(written[:-20])
    lost = json.loads(written.splitlines()[-1])
    assert lost["id"] in open_run(tmp_path / "run").missing(lost["method"])

    seen: list[int] = []
    run = start(plan, on_progress=lambda progress: seen.append(progress.total))
    assert said(run) == said(undisturbed)
    assert len(lines(run)) == len(set(lines(run))) == 28
    assert set(seen) == {28 - written.count(b"\n") + 1}
    assert len(run.manifest["sessions"]) == 2


def test_a_finished_run_stays_as_it_is(start: Start, plan: RunConfig) -> None:
    first = lines(start(plan))
    totals: list[int] = []
    assert lines(start(plan, on_progress=lambda progress: totals.append(progress.total))) == first
    assert totals == [0]


def test_answers_hang_on_neither_batch_nor_company(start: Start, plan: RunConfig, undisturbed: Run) -> None:
    assert said(start(replace(plan, batch=2), "two")) == said(undisturbed)
    fewer = replace(plan, ways=plan.ways[1:2], batch=1)
    assert said(start(fewer, "one"))["sample:temperature=2.0"] == said(undisturbed)["sample:temperature=2.0"]
    other = start(replace(fewer, seed=1, batch=7), "seed")
    assert said(other)["sample:temperature=2.0"] != said(undisturbed)["sample:temperature=2.0"]


def test_beams_search(start: Start, plan: RunConfig, model: tuple[Any, Any]) -> None:
    run = start(replace(plan, ways=build_configs([], ["beam:num_beams=3"])))
    pictures = [item.picture() for item in plan.bench.items]
    search = Generation(max_new_tokens=6, num_beams=3)
    alone = answer(*model, pictures, "Describe this image.", generation=search)
    assert said(run) == {"beam:num_beams=3": [text for one in alone for text in one.texts]}


def test_every_question_of_a_batch_is_its_own(start: Start, plan: RunConfig, model: tuple[Any, Any]) -> None:
    template = "about {question} what is"
    asks = replace(
        plan, bench=demo_benchmark("pope", "val", 1), prompt=template, ways=build_configs([]), batch=18
    )
    run = start(asks)
    for item, found in zip(asks.bench.items, run.answers("greedy"), strict=True):
        assert found.prompt == f"about {item.question} what is"
        alone = answer_batch(
            *model, [item.picture()], [found.prompt], generation=Generation(max_new_tokens=6)
        )
        assert (found.answer, found.tokens, found.prompt_tokens) == (
            alone.texts[0],
            alone.lengths[0],
            alone.prompt_lengths[0],
        )
    with pytest.raises(BadBenchmark, match="asks the same about every picture"):
        replace(asks, prompt="What is this?")


class TestFailures:
    @pytest.fixture
    def damaged(self, plan: RunConfig, tmp_path: Path) -> RunConfig:
        """Five pictures of one's own, of which the second is damaged."""
        folder = tmp_path / "pictures"
        folder.mkdir()
        for item in plan.bench.items[:5]:
            item.picture().save(folder / f"{item.image_id}.png")
        path = sorted(folder.iterdir())[1]
        path.with_suffix(".whole").write_bytes(path.read_bytes())
        path.write_bytes(path.read_bytes()[:2000])
        return replace(plan, bench=user_benchmark("chair", images=folder))

    def test_a_damaged_picture_fails_alone_and_can_be_asked_again(
        self, start: Start, damaged: RunConfig, undisturbed: Run, tmp_path: Path
    ) -> None:
        run = start(damaged)
        assert run.complete
        for method in run.methods:
            (failed,) = run.failed(method)
            assert failed.error is not None
            assert failed.error.startswith("BadImage: ")
            assert (failed.answer, failed.tokens, failed.seconds) == (None, None, None)
            assert failed.id == run.items[1].id
        assert said(run)["greedy"][2:] == said(undisturbed)["greedy"][2:5]

        whole = next((tmp_path / "pictures").glob("*.whole"))
        whole.replace(whole.with_suffix(".png"))
        assert start(damaged).failed("greedy")
        again = start(damaged, retry_failed=True)
        assert not any(again.failed(method) for method in again.methods)
        assert said(again)["greedy"] == said(undisturbed)["greedy"][:5]
        assert len(lines(again)) == 4 * 5

    def test_what_fails_in_a_batch_is_tried_alone(
        self, start: Start, plan: RunConfig, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As when memory runs out, and one picture is too large in any company."""
        large = plan.bench.items[4]

        def scarce(model: Any, processor: Any, pictures: Any, *rest: Any, **options: Any) -> Answers:
            if len(pictures) > 1 or pictures[0].tobytes() == large.picture().tobytes():
                raise torch.OutOfMemoryError("no memory\nfor so much")
            return answer_batch(model, processor, pictures, *rest, **options)

        monkeypatch.setattr(engine, "answer_batch", scarce)
        run = start(plan)
        for method in run.methods:
            expected = list(said(undisturbed)[method])
            expected[4] = None
            assert said(run)[method] == expected
            assert [one.batch for one in run.answers(method)] == [1] * 7
            assert run.failed(method)[0].error == "OutOfMemoryError: no memory"

    def test_a_run_that_fails_all_the_time_stops(
        self, start: Start, plan: RunConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*arguments: Any, **options: Any) -> Answers:
            raise RuntimeError("the cable is out")

        monkeypatch.setattr(engine, "answer_batch", broken)
        with pytest.raises(EverythingFails, match=r"every answer of greedy failed, .*: the cable is out"):
            start(plan)
        monkeypatch.setattr(engine, "STREAK", 5)
        with pytest.raises(
            EverythingFails,
            match=r"failed 5 times in a row, last with: RuntimeError: the cable is out; .*--retry-failed",
        ):
            start(plan, "other")

    def test_a_method_that_cannot_run_leaves_nothing_behind(
        self, start: Start, plan: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unsupported(*arguments: Any, **options: Any) -> Answers:
            raise UnsupportedModel("has no eyes")

        monkeypatch.setattr(engine, "answer_batch", unsupported)
        with pytest.raises(UnsupportedModel, match="has no eyes"):
            start(plan)
        assert list(tmp_path.iterdir()) == []

    def test_a_prompt_that_the_processor_refuses_fails_alone(self, start: Start, plan: RunConfig) -> None:
        first, second = plan.bench.items[:2]
        bench = replace(plan.bench, items=(first, replace(second, question="what is <image> here")))
        run = start(replace(plan, bench=bench, ways=build_configs([])))
        (failed,) = run.failed("greedy")
        assert failed.id == second.id
        assert failed.error is not None
        assert failed.error.startswith("BadPrompt: ")
        assert run.answers("greedy")[0].answer


class TestOneRunToAFolder:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"batch": 4}, r"was begun with batch=3, and now batch=4 is asked"),
            ({"seed": 1}, "seed=0"),
            ({"prompt": "What is this?"}, r'prompt="\{question\}"'),
            ({"ways": build_configs(["m3id"])}, r'methods=\["greedy", "m3id"\]'),
            ({"bench": demo_benchmark("chair", "val", 8)}, r"bench.n=7, bench.digest="),
            ({"model": "other"}, 'model="demo"'),
        ],
    )
    def test_other_settings_are_refused_by_name(
        self, undisturbed: Run, plan: RunConfig, model: tuple[Any, Any], changes: dict[str, Any], words: str
    ) -> None:
        weights = undisturbed.manifest["weights"]
        with pytest.raises(RunMismatch, match=words):
            engine.execute(replace(plan, **changes), *model, undisturbed.folder, weights=weights)

    def test_other_weights_are_refused(
        self, undisturbed: Run, plan: RunConfig, model: tuple[Any, Any]
    ) -> None:
        with pytest.raises(RunMismatch, match=r"weights.sha256"):
            engine.execute(plan, *model, undisturbed.folder, weights={"sha256": "b", "revision": None})

    @pytest.mark.parametrize("rank", [0, 1])
    def test_two_at_once_are_refused(self, start: Start, plan: RunConfig, tmp_path: Path, rank: int) -> None:
        start(plan)
        with claim_rank(tmp_path / "run", rank), pytest.raises(RunInUse, match="another process is writing"):
            start(plan)
        start(plan)

    def test_a_file_in_the_way_of_the_folder(self, start: Start, plan: RunConfig, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(CannotRecord, match="cannot make the folder"):
            start(plan, "file/run")

    def test_a_full_disk_is_named(self, undisturbed: Run) -> None:
        full = Path("/dev/full")
        if not full.exists():
            pytest.skip("no /dev/full on this system")
        journal = AnswerLog.__new__(AnswerLog)
        journal._path, journal._file = full, full.open("wb", buffering=0)
        with journal._file, pytest.raises(CannotRecord, match="No space left on device"):
            journal.add(undisturbed.answers("greedy"))
