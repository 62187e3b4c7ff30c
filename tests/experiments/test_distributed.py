from __future__ import annotations

import pytest

from keepsight.experiments.distributed import ProcessGroup, check_launch, launched_processes
from keepsight.experiments.errors import ProcessCountMismatch

ALONE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}
"""What `accelerate launch --cpu --num_processes 1` sets."""
SILENT = {**ALONE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
"""What `accelerate launch --cpu --num_processes 2` sets, which starts one process as well."""
TORCHRUN = {
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "localhost",
}


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({}, 1),
        (ALONE, 1),
        (SILENT, 1),
        (TORCHRUN, 2),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, 3),
        ({"WORLD_SIZE": ""}, 1),
    ],
)
def test_the_launcher_says_how_many_there_are(environment: dict[str, str], size: int) -> None:
    assert launched_processes(environment) == size


def test_one_process_where_several_were_meant_is_refused() -> None:
    with pytest.raises(ProcessCountMismatch, match=r"asked for several processes and started one.*torchrun"):
        check_launch(None, SILENT)
    with pytest.raises(ProcessCountMismatch, match=r"--processes 2, but 1 started.*--nproc_per_node 2"):
        check_launch(2, {})
    with pytest.raises(ProcessCountMismatch, match="--processes 3, but 2 started"):
        check_launch(3, TORCHRUN)


@pytest.mark.parametrize(
    ("expected", "environment"),
    [(None, {}), (None, ALONE), (None, TORCHRUN), (1, {}), (1, SILENT), (2, TORCHRUN)],
)
def test_what_was_meant_is_let_through(expected: int | None, environment: dict[str, str]) -> None:
    check_launch(expected, environment)


def test_alone_nothing_is_asked_of_others() -> None:
    group = ProcessGroup()
    assert group.on_main_process(lambda: 3) == 3
    group.barrier()
    group.destroy()
