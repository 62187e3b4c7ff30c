from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from standin import save
from typer.testing import CliRunner, Result

from keepsight.cli.main import app

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """The command line in this process: ``run("demo", "--images", 3)``."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Run a command that must be refused; gives back its one line of error."""

    def refuse(*arguments: object) -> str:
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert result.stderr.endswith("\n")
        return result.stderr

    return refuse


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose words are objects, saved as a checkpoint."""
    return save(tmp_path_factory.mktemp("standin"))


@pytest.fixture
def demo_model(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in in the place of the packaged model."""
    monkeypatch.setattr("keepsight.demo.model.WEIGHTS", checkpoint)
    return checkpoint


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads a model fails: bad input must be refused before that."""

    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("keepsight.inference.loading.load", load)


@pytest.fixture(autouse=True)
def _loud_again() -> Iterator[None]:
    """Commands silence transformers for their process; a test must not do so for the next one."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
