from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from keepsight.cli import _run_console
from keepsight.demo.world import scenes
from keepsight.experiments.runner import Progress
from keepsight.experiments.store import open_run

Run = Callable[..., Result]
Refused = Callable[..., str]
SMALL = ("--limit", 3, "--split", "val", "--batch", 2, "--max-new-tokens", 4)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, scene in zip("ab", scenes("val", 2), strict=True):
        scene.image().save(folder / f"{name}.png")
    return folder


@pytest.mark.usefixtures("demo_model")
class TestOnTheDemoModel:
    def test_a_run_is_summed_up_and_can_be_read(self, run: Run, tmp_path: Path) -> None:
        out = tmp_path / "run"
        ran = run("run", "--bench", "chair", "--out", out, "--method", "vcd", "--baseline", "greedy", "--baseline",
                  "sample:temperature=2", *SMALL)  # fmt: skip
        assert ran.exit_code == 0, ran.output
        assert ran.stderr == ""
        assert "3 questions about 3 pictures" in ran.stdout.replace("\n", "")
        assert ran.stdout.count("1.00×") >= 1
        found = open_run(out)
        assert found.methods == ("greedy", "sample:temperature=2.0", "vcd")
        assert found.complete
        assert found.manifest["bench"]["split"] == "val"
        again = run("run", "--bench", "chair", "--out", out, "--method", "vcd", "--baseline", "greedy", "--baseline",
                    "sample:temperature=2", *SMALL)  # fmt: skip
        assert again.exit_code == 0
        assert open_run(out).found == found.found

    def test_a_bench_of_ones_own(self, run: Run, pictures: Path, tmp_path: Path) -> None:
        questions, out = tmp_path / "popular.jsonl", tmp_path / "run"
        asked = {
            "question_id": 1,
            "image": "b.png",
            "text": "Is there a dog in the image?",
            "label": "no",
        }
        questions.write_text(json.dumps(asked) + "\n")
        ran = run("run", "--bench", "pope", "--images", pictures, "--questions", questions, "--out", out,
                  "--no-baseline", "--method", "vcd", "--prompt", "{question} Yes?", "--max-new-tokens", 3)  # fmt: skip
        assert ran.exit_code == 0, ran.output
        (answer,) = open_run(out).answers("vcd")
        assert answer.prompt == "Is there a dog in the image? Yes?"
        assert answer.id == "popular/1"
        assert open_run(out).baseline is None

    def test_failures_are_counted(self, run: Run, pictures: Path, tmp_path: Path) -> None:
        (pictures / "a.png").write_bytes((pictures / "a.png").read_bytes()[:3000])
        ran = run(
            "run", "--bench", "chair", "--images", pictures, "--out", tmp_path / "run", "--max-new-tokens", 3
        )
        assert ran.exit_code == 0, ran.output
        assert "1 failed and are in no score" in ran.stdout.replace("\n", " ")

    def test_nothing_but_failures_is_an_error(self, refused: Refused, pictures: Path, tmp_path: Path) -> None:
        for path in pictures.iterdir():
            path.write_text("no picture")
        message = refused("run", "--bench", "chair", "--images", pictures, "--out", tmp_path / "run")
        assert "every answer of greedy failed, the first with: BadImage" in message

    def test_other_settings_are_refused(self, run: Run, refused: Refused, tmp_path: Path) -> None:
        out = tmp_path / "run"
        assert run("run", "--bench", "chair", "--out", out, *SMALL).exit_code == 0
        before = (out / "answers.jsonl").read_bytes()
        message = refused("run", "--bench", "chair", "--out", out, *SMALL, "--method", "vcd")
        assert 'methods=["greedy"], and now methods=["greedy", "vcd"] is asked for' in message
        assert (out / "answers.jsonl").read_bytes() == before

    def test_a_method_without_its_calibration_leaves_no_folder(
        self, refused: Refused, tmp_path: Path
    ) -> None:
        message = refused("run", "--bench", "chair", "--out", tmp_path / "run", *SMALL, "--method", "var")
        assert "calibrat" in message
        assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_model")
class TestRefusedBeforeTheModelLoads:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--bench", "chiar"), "did you mean 'chair'"),
            (("--split", "tset"), "did you mean 'test'"),
            (("--limit", "0"), "n=0 must be 1 or more"),
            (("--method", "m3di"), "did you mean 'm3id'"),
            (("--method", "vcd+sample"), "write sample first"),
            (("--method", "greedy"), "listed twice"),
            (("--baseline", "vcd"), "no decoding 'vcd'"),
            (("--baseline", "greedy", "--no-baseline"), "exclude each other"),
            (("--no-baseline",), "nothing to run"),
            (("--decode", "sample:temperature=0"), "above 0"),
            (("--method", "var:calibration=nowhere.json"), "nowhere.json"),
            (("--batch", "0"), "batch=0"),
            (("--seed", "-1"), "seed=-1"),
            (("--max-new-tokens", "0"), "max_new_tokens=0"),
            (("--bench", "pope", "--prompt", "Well?"), "write {question} where"),
            (("--questions", "q.json"), "name their folder with --images"),
            (("--annotations", "q.json"), "name their folder with --images"),
            (("--images", ".", "--split", "test"), "belong to the demo world"),
            (("--images", "nowhere"), "no folder of pictures"),
            (("--family", "wordnte"), "did you mean 'wordnet'"),
            (("--processes", "2"), "--processes 2, but 1 started"),
        ],
    )
    def test_options(self, refused: Refused, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
        assert words in refused("run", "--bench", "chair", "--out", tmp_path / "run", *options)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_holds_something_else(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").touch()
        assert "holds thesis.tex and no run" in refused("run", "--bench", "chair", "--out", tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_model_that_is_not_there(self, refused: Refused, tmp_path: Path) -> None:
        message = refused("run", "--bench", "chair", "--out", tmp_path / "run", tmp_path / "no")
        assert "cannot load" in message

    def test_one_model_on_all_gpus_for_each_of_several_processes(
        self, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        message = refused("run", "--bench", "chair", "--out", tmp_path / "run", "--device", "auto")
        assert "use --device cuda" in message

    def test_what_accelerate_leaves_behind_on_cpu(
        self, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        message = refused("run", "--bench", "chair", "--out", tmp_path / "run")
        assert "started one, as it does on CPU" in message


def test_progress_without_a_terminal_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.0, 10.0, 40.0, 41.0, 100.0, 200.0])
    monkeypatch.setattr(_run_console.time, "monotonic", lambda: next(clock))
    with _run_console.shown(1, quiet=False) as tell:
        for done, failed in ((0, 0), (10, 0), (20, 1), (21, 1), (50, 1), (400, 1)):
            tell(Progress(400, done, failed))
    assert capsys.readouterr().err.splitlines() == [
        "20 of 400 answers, 1 failed, about 13 min left",
        "50 of 400 answers, 1 failed, about 12 min left",
    ]


def test_the_bar_counts_failures_and_shares() -> None:
    progress = Progress(10, 4, 2)
    assert _run_console.describe(progress, 1) == "answering, 2 failed"
    assert _run_console.describe(progress, 3) == "answering, the first of 3 processes, 2 failed"
    assert _run_console.describe(Progress(10), 1) == "answering"
