"""Real processes, started as a user starts them, killed as no user should."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from standin import save, standin

from keepsight.experiments.decoding_config import build_configs
from keepsight.experiments.environment import weights
from keepsight.experiments.manifest import RunConfig
from keepsight.experiments.open_benchmark import demo_benchmark
from keepsight.experiments.runner import execute
from keepsight.experiments.store import open_run

ROOT = Path(__file__).parents[2]
RUN = (
    "-m",
    "keepsight",
    "run",
    "--bench",
    "pope",
    "--split",
    "val",
    "--method",
    "vcd",
    "--baseline",
    "greedy",
)
SAMPLED = ("--baseline", "sample", "--batch", 4, "--max-new-tokens", 4)
ALONE = (sys.executable,)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("standin"))


Begin = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Start a run as a user does; whatever is left of it when the test ends is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(launcher: tuple[object, ...], *options: object) -> subprocess.Popen[str]:
        command = [str(part) for part in (*launcher, *RUN, *SAMPLED, *options)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)  # type: ignore[call-overload]
        started.append(process)
        return process

    yield begin
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def answers(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Every line of the merged file, without what may differ between processes."""
    assert [path.name for path in folder.glob("answers*")] == ["answers.jsonl"]
    found = {}
    for line in (folder / "answers.jsonl").read_text().split("\n")[:-1]:
        entry = json.loads(line)
        assert found.setdefault((entry["id"], entry["method"]), entry) is entry
        del entry["seconds"], entry["rank"]
    return found


def wait_for(folder: Path, pattern: str, lines: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(path.read_bytes().count(b"\n") >= lines for path in folder.glob(pattern)):
            return
        time.sleep(0.02)
    raise AssertionError(f"{folder} did not get {lines} lines in {pattern}")


def test_two_processes_answer_as_one(begin: Begin, checkpoint: Path, tmp_path: Path) -> None:
    options = (checkpoint, "--limit", 2, "--out")
    two = begin(TORCHRUN, *options, tmp_path / "two", "--processes", 2)
    plan = RunConfig(
        bench=demo_benchmark("pope", "val", 2),
        ways=build_configs(["vcd"], ["greedy", "sample"]),
        model=str(checkpoint),
        max_new_tokens=4,
        batch=4,
    )
    execute(plan, *standin(), tmp_path / "one", weights=weights(str(checkpoint)))
    assert finish(two).count("36 questions about 2 pictures") == 1
    assert answers(tmp_path / "two") == answers(tmp_path / "one")
    assert len(answers(tmp_path / "one")) == 36 * 3
    assert {answer.rank for answer in open_run(tmp_path / "two").answers("greedy")} == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_of_two_loses_nothing(
    begin: Begin, checkpoint: Path, tmp_path: Path, rank: int
) -> None:
    options = (checkpoint, "--limit", 8, "--out")
    one = begin(ALONE, *options, tmp_path / "one")
    finish(one)
    folder = tmp_path / "two"
    two = begin(TORCHRUN, *options, folder)
    wait_for(folder, f"answers.rank{rank}of2.jsonl", 40)
    children = subprocess.run(["pgrep", "-P", str(two.pid)], capture_output=True, text=True, check=True)
    for child in map(int, children.stdout.split()):
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if b"RANK=%d" % rank in variables:
            os.kill(child, signal.SIGKILL)
    _, err = two.communicate(timeout=120)
    assert two.returncode != 0
    assert "SIGKILL" in err

    kept = open_run(folder)
    written = {(one.id, one.method): one for method in kept.methods for one in kept.answers(method)}
    assert 40 <= len(written) < 144 * 3
    finish(begin(ALONE, *options, folder))
    assert answers(folder) == answers(tmp_path / "one")
    after = open_run(folder)
    for (number, method), answer in written.items():
        assert after.found[method][number] == answer


@pytest.mark.slow
def test_a_process_killed_again_and_again_comes_to_the_same_end(
    begin: Begin, checkpoint: Path, tmp_path: Path
) -> None:
    options = (checkpoint, "--limit", 6, "--out")
    finish(begin(ALONE, *options, tmp_path / "calm"))
    folder = tmp_path / "killed"
    for lines in (1, 100, 200):
        process = begin(ALONE, *options, folder)
        wait_for(folder, "answers.jsonl", lines)
        process.kill()
        process.communicate()
    finish(begin(ALONE, *options, folder))
    assert answers(folder) == answers(tmp_path / "calm")


@pytest.mark.slow
def test_accelerate_on_cpu_starts_one_process_and_is_told_so(
    begin: Begin, checkpoint: Path, tmp_path: Path
) -> None:
    accelerate = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", 2)
    process = begin(accelerate, checkpoint, "--limit", 2, "--out", tmp_path / "run")
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "error: accelerate launch was asked for several processes and started one" in err
    assert not (tmp_path / "run").exists()
