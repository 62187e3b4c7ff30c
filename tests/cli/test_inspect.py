from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from keepsight import methods
from keepsight.cli.inspect import read_size
from keepsight.demo.world import scenes
from keepsight.errors import InputError

Run = Callable[..., Result]
Refused = Callable[..., str]


@pytest.mark.usefixtures("demo_model")
class TestOnTheDemoModel:
    def test_what_is_printed(self, run: Run) -> None:
        ran = run("inspect", "demo")
        assert (ran.exit_code, ran.stderr) == (0, "")
        for words in ("LlavaForConditionalGeneration", "LlamaModel", "sdpa", "float32 on cpu", "<image> (3)"):
            assert words in ran.stdout
        for size in ("336x336", "1024x768"):
            assert any(size in line and "64 visual tokens" in line for line in ran.stdout.splitlines())
        for name in methods():
            assert any(line.split()[:1] == [name] for line in ran.stdout.splitlines()), name
        assert "run keepsight calibrate demo first" in ran.stdout

    def test_json(self, run: Run) -> None:
        found = json.loads(run("inspect", "demo", "--json", "-", "--size", "40x30").stdout)
        assert found["model"] == "demo"
        assert (found["layers"], found["heads"], found["kv_heads"], found["hidden_size"]) == (6, 8, 8, 128)
        assert found["image_token"] == [3, "<image>"]
        assert list(found["pictures"]) == ["40x30"]
        assert found["pictures"]["40x30"][0] == 64
        assert {trial["method"]: trial["runs"] for trial in found["trials"]} == {
            name: name != "var" for name in methods()
        }

    def test_a_picture_of_ones_own_comes_first(self, run: Run, tmp_path: Path) -> None:
        scenes("val", 1)[0].image().save(tmp_path / "mine.png")
        found = json.loads(run("inspect", "demo", "--image", tmp_path / "mine.png", "--json", "-").stdout)
        assert list(found["pictures"]) == ["mine.png", "336x336", "1024x768"]

    def test_a_raw_prompt_without_a_picture_is_told(self, run: Run) -> None:
        ran = run("inspect", "demo", "--raw-prompt", "--prompt", "a cat")
        assert ran.exit_code == 0
        assert "No method runs" in ran.stdout
        assert "layers" in ran.stdout


def test_a_folder_is_a_model(run: Run, checkpoint: Path) -> None:
    found = json.loads(run("inspect", checkpoint, "--json", "-").stdout)
    assert found["model"] == str(checkpoint)
    assert found["family"] == "llava"


def test_a_text_only_model_is_refused(refused: Refused, tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(vocab_size=8, hidden_size=64).save_pretrained(tmp_path)
    assert "takes no pictures" in refused("inspect", tmp_path)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("size", ["336", "0x3", "3x0", "336×336", "9000x1", "axb", "3x3x3", "-3x3", ""])
def test_sizes_that_are_none(refused: Refused, size: str) -> None:
    assert "must be WIDTHxHEIGHT" in refused("inspect", "demo", f"--size={size}")
    with pytest.raises(InputError):
        read_size(size)


@pytest.mark.usefixtures("no_model")
def test_a_picture_that_is_none(refused: Refused, tmp_path: Path) -> None:
    assert "no such picture" in refused("inspect", "demo", "--image", tmp_path / "none.png")


def test_sizes() -> None:
    assert read_size("640x480") == (640, 480)
