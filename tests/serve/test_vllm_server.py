"""What ``keepsight serve --engine vllm`` starts. vLLM itself is not needed here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from keepsight.cli.main import app
from keepsight.errors import InputError, UnsupportedEngine
from keepsight.serve import vllm_server
from keepsight.serve.vllm_server import command

ASKED: dict[str, Any] = {"name": "llava", "host": "127.0.0.1", "port": 8000, "dtype": "auto", "api_key": None}


def flags(arguments: list[str]) -> dict[str, str]:
    """The flags of a command with their values."""
    spelt = [one for one in arguments[3:] if one != "--no-mm-device-do-normalize"]
    return dict(zip(spelt[::2], spelt[1::2], strict=True))


def test_the_command() -> None:
    arguments, environment = command("folder", ["m3id", "vcd:alpha=2"], ["--max-model-len", "4096"], **ASKED)
    assert arguments[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    found = flags(arguments)
    assert "--no-mm-device-do-normalize" in arguments
    assert found["--model"] == "folder"
    assert found["--served-model-name"] == "llava"
    assert found["--scheduler-cls"] == "keepsight.engines.vllm.PairScheduler"
    assert found["--logits-processors"] == "keepsight.engines.vllm:Contrast"
    assert found["--max-model-len"] == "4096"
    assert json.loads(environment["KEEPSIGHT_VLLM_METHODS"]) == ["m3id", "vcd:alpha=2"]
    assert environment["VLLM_USE_V2_MODEL_RUNNER"] == "0"


def test_a_key_is_in_no_list_of_processes() -> None:
    arguments, environment = command("folder", [], [], **{**ASKED, "api_key": "secret"})
    assert "secret" not in " ".join(arguments)
    assert environment["VLLM_API_KEY"] == "secret"


@pytest.mark.parametrize("flag", ["--scheduler-cls", "--port=1"])
def test_a_flag_that_is_spelt_here_is_refused(flag: str) -> None:
    with pytest.raises(InputError, match="leave it out"):
        command("folder", [], [flag, "x"], **ASKED)


class TestCommandLine:
    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """What would have been started, on a machine that has a vLLM that was tried."""
        calls: list[Any] = []
        monkeypatch.setattr(vllm_server, "replace_process", lambda *given: calls.append(given))
        monkeypatch.setattr("keepsight.vllm.check_installed", lambda: None)
        monkeypatch.delenv("KEEPSIGHT_VLLM_METHODS", raising=False)
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
        return calls

    @pytest.fixture
    def run(self) -> Callable[..., Any]:
        return lambda *arguments: CliRunner().invoke(app, ["serve", *arguments])

    def test_what_is_started(self, run: Callable[..., Any], started: list[Any]) -> None:
        ran = run(
            "folder",
            "--engine",
            "vllm",
            "--method",
            "m3id:decay=0.05",
            "--name",
            "llava",
            "--",
            "--max-model-len",
            "64",
        )
        assert ran.exit_code == 0, ran.output
        assert ran.stdout == "models: llava, llava:m3id:decay=0.05\n"
        [(arguments, environment)] = started
        assert flags(arguments)["--max-model-len"] == "64"
        assert json.loads(environment["KEEPSIGHT_VLLM_METHODS"]) == ["m3id:decay=0.05"]

    def test_the_default_methods(self, run: Callable[..., Any], started: list[Any]) -> None:
        assert run("folder", "--engine", "vllm").stdout == "models: folder, folder:m3id, folder:vcd\n"
        assert len(started) == 1

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--method", "vhr"), "vhr cannot be used inside vLLM"),
            (("--method", "pai"), "pai cannot be used inside vLLM"),
            (("--max-batch", "4"), "--max-batch has no effect with --engine vllm"),
            (("--device", "cuda"), "--device has no effect with --engine vllm"),
            (("--method", "none"), "the plain model is always offered"),
            (("--port", "0"), "name a port"),
            (("--", "--model", "x"), "--model is given to vLLM"),
        ],
    )
    def test_what_is_refused(
        self, arguments: tuple[str, ...], words: str, run: Callable[..., Any], started: list[Any]
    ) -> None:
        ran = run("folder", "--engine", "vllm", *arguments)
        assert ran.exit_code == 2
        assert words in ran.stderr
        assert not started

    def test_the_demo_model_is_refused(self, run: Callable[..., Any], started: list[Any]) -> None:
        assert "too small" in run("demo", "--engine", "vllm").stderr
        assert not started

    def test_without_vllm_it_is_said(self, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        def missing() -> None:
            raise UnsupportedEngine("vLLM cannot be imported: install keepsight[vllm]")

        monkeypatch.setattr("keepsight.vllm.check_installed", missing)
        ran = run("folder", "--engine", "vllm")
        assert (ran.exit_code, ran.stderr) == (2, "error: vLLM cannot be imported: install keepsight[vllm]\n")

    def test_options_of_vllm_are_no_options_of_ours(self, run: Callable[..., Any]) -> None:
        assert "--max-model-len is no option" in run("demo", "--", "--max-model-len", "64").stderr
        assert "--engine 'sglang' must be" in run("demo", "--engine", "sglang").stderr
