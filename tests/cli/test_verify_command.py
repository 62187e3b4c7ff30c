from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from keepsight.engines.hf import attention

Run = Callable[..., Result]
Refused = Callable[..., str]


@pytest.mark.usefixtures("demo_model")
class TestOnTheDemoModel:
    def test_what_is_printed(self, run: Run) -> None:
        ran = run("verify", "demo", "--method", "m3id", "--method", "vhr")
        assert ran.exit_code == 0, ran.output
        assert "WRONG" not in ran.stdout.replace("0 WRONG", "")
        lines = ran.stdout.splitlines()
        for words in (
            "large strength, from scratch",
            "attention in 4 layers",
            "padded batch, rows alone",
            "beams",
        ):
            assert any(line.strip().startswith(words) for line in lines), words
        assert lines[-1].endswith("0 refused, 0 WRONG.")
        assert max(map(len, lines)) <= 80

    def test_json(self, run: Run) -> None:
        found = json.loads(run("verify", "demo", "--method", "vsv+m3id", "--json", "-").stdout)
        ruled_out = json.loads(run("verify", "demo", "--method", "pai", "--json", "-").stdout)
        assert "inf" in [one["difference"] for one in ruled_out["findings"]]
        assert (found["model"], found["family"], found["dtype"], found["wrong"]) == (
            "demo",
            "llava",
            "float32",
            0,
        )
        assert {"torch", "transformers", "keepsight", "python"} == set(found["versions"])
        assert {one["method"] for one in found["findings"]} == {"plain", "vsv+m3id"}
        assert {one["verdict"] for one in found["findings"]} <= {"exact", "within rounding", "refused"}

    def test_a_fault_makes_the_exit_code_one(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        right = attention.attend

        def broken(*args: Any, **kwargs: Any) -> Any:
            return right(*args, **kwargs) * 1.01

        monkeypatch.setattr(attention, "attend", broken)
        ran = run("verify", "demo", "--method", "pai:gamma=1.0")
        assert ran.exit_code == 1
        assert "WRONG" in ran.stdout
        assert "at most" in ran.stdout
        assert "Please report" in ran.stdout

    def test_a_picture_of_the_user(self, run: Run, tmp_path: Path) -> None:
        from keepsight.demo.world import scenes

        picture = tmp_path / "picture.png"
        next(iter(scenes("val", 1))).image().save(picture)
        ran = run("verify", "demo", "--image", picture, "--method", "vcd", "--tokens", 2)
        assert ran.exit_code == 0, ran.output


def test_bad_input_is_refused(refused: Refused, tmp_path: Path) -> None:
    assert "nosuch" in refused("verify", "demo", "--method", "nosuch")
    assert "missing.png" in refused("verify", "demo", "--image", tmp_path / "missing.png")
    assert "cannot load" in refused("verify", tmp_path)
