from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner, Result

import keepsight
from keepsight.cli.main import OneLineErrors, app
from keepsight.errors import InputError

Run = Callable[..., Result]
Refused = Callable[..., str]


def test_help_names_every_command_and_the_exit_codes(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for word in ("demo", "caption", "chair", "methods", "--version", "Exit codes", "130"):
        assert word in result.stdout


def test_no_arguments_give_the_help(run: Run) -> None:
    result = run()
    assert result.exit_code == 0
    assert "Exit codes" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["demo", "--help"], ["caption", "--help"], ["chair", "--help"]]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, json\n"
        "from keepsight.cli.main import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit as leaving: code = leaving.code\n"
        "print('\\n' + json.dumps([code, sorted({name.split('.')[0] for name in sys.modules})]))\n"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    code_, loaded = json.loads(output.splitlines()[-1])
    assert code_ == 0
    assert not {"torch", "transformers", "numpy", "nltk", "PIL", "pycocotools"} & set(loaded)


def test_python_m_is_the_command() -> None:
    ran = subprocess.run([sys.executable, "-m", "keepsight", "--version"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"keepsight {keepsight.__version__}\n", "")


def test_the_exit_code_reaches_the_shell() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "keepsight", "methods", "--nope"], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert re.match(r"error: No such option:? '?--nope", ran.stderr)  # Click's words change
    assert ran.stderr.count("\n") == 1


def test_an_unknown_command_is_one_line_with_the_nearest(refused: Refused) -> None:
    assert "demo" in refused("demoo")


def broken(error: BaseException) -> typer.Typer:
    broken = typer.Typer(cls=OneLineErrors)

    @broken.callback()
    def options() -> None: ...

    @broken.command()
    def fail() -> None:
        raise error

    return broken


def test_an_error_on_purpose_is_one_line_whatever_its_message() -> None:
    result = CliRunner().invoke(broken(InputError("two\n  lines")), ["fail"])
    assert (result.exit_code, result.stderr, result.stdout) == (2, "error: two lines\n", "")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_interruption_is_130(error: BaseException) -> None:
    result = CliRunner().invoke(broken(error), ["fail"])
    assert result.exit_code == 130
    assert result.stderr.strip() == "error: interrupted"


def test_an_unexpected_error_keeps_its_traceback() -> None:
    result = CliRunner().invoke(broken(RuntimeError("a bug")), ["fail"])
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


def test_the_command_is_installed() -> None:
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="keepsight")
    assert script.value == "keepsight.cli.main:run"
    assert app.info.name == "keepsight"
