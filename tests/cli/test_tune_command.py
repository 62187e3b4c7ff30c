from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import described, made
from typer.testing import Result

Run = Callable[..., Result]
Refused = Callable[..., str]
SMALL = (
    "tune",
    "--method",
    "vcd:beta=0.0,noise_step=999",
    "--limit",
    4,
    "--max-new-tokens",
    6,
    "--resamples",
    50,
)


@pytest.mark.usefixtures("demo_model")
class TestOnTheDemoModel:
    def test_the_whole_way(self, run: Run, refused: Refused, tmp_path: Path) -> None:
        out = tmp_path / "tuned"
        command = (*SMALL, "--grid", "alpha=0.0,3.0", "--out", out, "--floor", "none")
        ran = run(*command)
        assert ran.exit_code == 0, ran.output
        curve = json.loads((out / "tuning.json").read_text(encoding="utf-8"))
        names = [row["method"] for row in curve["methods"]]
        assert names == [
            "greedy",
            "vcd:alpha=0.0,beta=0.0,noise_step=999",
            "vcd:alpha=3.0,beta=0.0,noise_step=999",
        ]
        figures = {row["method"]: row["figures"]["chair_i"]["value"] for row in curve["methods"][1:]}
        assert figures[curve["chosen"]] == min(figures.values())
        assert (out / "chosen.txt").read_text(encoding="utf-8") == curve["chosen"] + "\n"
        assert curve["bench"]["split"] == "val-shifted"
        assert f"chosen: {curve['chosen']}" in ran.stdout
        # alpha=0 changes nothing
        off = curve["methods"][1]["differences"]["chair_i"]
        assert (off["value"], off["verdict"]) == (0, "no significant difference")

        answers = (out / "answers.jsonl").read_bytes()
        again = run(*command)
        assert again.exit_code == 0, again.output
        assert (out / "answers.jsonl").read_bytes() == answers  # nothing is asked twice

        assert "was chosen" in refused("compare", out)
        shown = run("compare", out, "--allow-tuned")
        assert shown.exit_code == 0
        assert "TUNED ON THESE QUESTIONS" in shown.stdout

        impossible = run(*command[:-2], "--floor", "recall=101")
        assert impossible.exit_code == 2
        assert "refused: recall" in impossible.stdout
        assert impossible.stderr.startswith(
            "error: every setting breaks a floor (recall must rise by 101 points"
        )
        assert not (out / "chosen.txt").exists()  # no stale choice for a script to read
        assert json.loads((out / "tuning.json").read_text(encoding="utf-8"))["chosen"] is None

    def test_pope(self, run: Run, tmp_path: Path) -> None:
        ran = run(
            *SMALL[:-6], "--limit", 1, "--grid", "alpha=0.5", "--bench", "pope", "--floor", "none", "--out", tmp_path / "t"
        )  # fmt: skip
        assert ran.exit_code in (0, 2), ran.output
        assert (tmp_path / "t" / "tuning.json").exists()


@pytest.mark.usefixtures("no_model")
class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--method", "m3id"), "--grid"),
            (("--method", "m3id", "--grid", "decay"), "write parameter=value,value"),
            (("--method", "m3di", "--grid", "decay=1"), "did you mean 'm3id'"),
            (("--method", "m3id", "--grid", "lambda=1"), "m3id has no parameter 'lambda'"),
            (("--method", "m3id", "--grid", "decay=1", "--split", "test"), "tune on val or val-shifted"),
            (("--method", "m3id", "--grid", "decay=1", "--split", "vall"), "no split 'vall'"),
            (("--method", "m3id", "--grid", "decay=1", "--bench", "beaf"), "chair or pope"),
            (("--method", "m3id", "--grid", "decay=1", "--floor", "recall"), "write figure=points"),
            (("--method", "m3id", "--grid", "decay=1", "--reported", "nowhere"), "nowhere is no folder"),
            (("--method", "m3id", "--grid", "decay=1", "--questions", "q.json"), "--images"),
            (
                ("--method", "m3id", "--grid", "decay=1", "--images", "."),
                "CHAIR needs what is in your pictures",
            ),
            (("--method", "m3id", "--grid", "decay=1", "--parser", "lax"), "no parser is called 'lax'"),
        ],
    )
    def test_is_refused_at_once(
        self,
        refused: Refused,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        arguments: tuple[str, ...],
        words: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert words in refused("tune", *arguments)
        assert list(tmp_path.iterdir()) == []

    def test_pictures_that_are_reported(self, refused: Refused, tmp_path: Path) -> None:
        from keepsight.demo.world import scenes

        folder = tmp_path / "pictures"
        folder.mkdir()
        for number, scene in enumerate(scenes("val", 2), 1):
            scene.image().save(folder / f"{number}.png")
        truth = tmp_path / "truth.jsonl"
        truth.write_text('{"image_id": 1, "objects": ["cat"]}\n{"image_id": 2, "objects": []}\n')
        reported = made(
            tmp_path / "r", described({2: ["cat"], 9: ["cat"]}), {"greedy": ["", ""]}, split="user"
        )
        line = refused(
            "tune", "--method", "m3id", "--grid", "decay=1", "--images", folder, "--ground-truth", truth,
            "--reported", reported.folder,
        )  # fmt: skip
        assert "1 picture of this bench" in line
