"""The processes that share a run: those that ``torchrun`` or ``accelerate launch`` started, joined through accelerate."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from keepsight.errors import KeepsightError
from keepsight.experiments.errors import ProcessCountMismatch

T = TypeVar("T")
PATIENCE = timedelta(days=30)
"""How long a process waits for the others at a barrier, since its share of a run may be done long before theirs."""
# The variables that torchrun and accelerate, Open MPI, Intel MPI and MVAPICH2 set, which are those that accelerate
# reads as well.
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def _accelerate() -> Any:
    """The package accelerate, imported only when several processes share a run."""
    import accelerate.utils  # type: ignore[import-untyped]

    return accelerate


class MainProcessFailed(KeepsightError):
    """The main process failed and reports the error itself; this is raised in the others, so that they stop as well."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process's place in the group of processes that share a run.

    Args:
        rank: number of the process, from 0; the one numbered 0 is the main process.
        world_size: how many processes there are, 1 or more.
        local_rank: number of the process among those on its machine, from 0.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def on_main_process(self, work: Callable[[], T]) -> T:
        """Call ``work`` in the main process alone and return its result in all processes.

        Raises:
            KeepsightError: the error that ``work`` raised; only in the main process.
            MainProcessFailed: ``work`` raised an error; in the other processes.
        """
        if self.world_size == 1:
            return work()
        # ``broadcast_object_list`` sends the elements of a list in place, so that each value stands in a list of one.
        found: list[T | None] = [None]
        failure: list[KeepsightError | None] = [None]
        if self.rank == 0:
            try:
                found[0] = work()
            except KeepsightError as error:
                failure[0] = error
        broadcast = _accelerate().utils.broadcast_object_list
        # The error is sent before the result, and every process takes part, so that a failure ends all processes
        # instead of leaving the others waiting for a result that never comes.
        broadcast(failure)
        if failure[0] is not None:
            raise MainProcessFailed(str(failure[0])) if self.rank else failure[0]
        broadcast(found)
        return found[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait until all processes have come to this point."""
        if self.world_size > 1:
            _accelerate().PartialState().wait_for_everyone()

    def destroy(self) -> None:
        """Leave the group. A process calls this last, since no barrier works after it."""
        if self.world_size > 1:
            _accelerate().PartialState().destroy_process_group()


def end_process() -> NoReturn:
    """End this process successfully, and at once: everything has been written, and nothing is torn down.

    PyTorch's threads can abort a process of a group at its end, after the interpreter is gone ("terminate called without an
    active exception", seen on a busy machine with torch 2.13). The launcher would then stop the others and report a failure
    of a run that is complete.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def launched_processes(environment: Mapping[str, str] | None = None) -> int:
    """How many processes the launcher started according to the environment; 1 without a launcher."""
    environment = os.environ if environment is None else environment
    sizes = (environment.get(name, "") for name in _SIZES)
    return next((int(size) for size in sizes if size.isdecimal()), 1)


def check_launch(expected: int | None, environment: Mapping[str, str] | None = None) -> None:
    """Refuse a run with another number of processes than was meant.

    ``accelerate launch --cpu --num_processes 2`` starts one process and says nothing. Its environment gives it away:
    it has an address to meet at, which accelerate sets only for several processes, and no number of processes.

    Args:
        expected: how many processes were meant; None if nobody said.
        environment: the environment variables; None takes those of this process.

    Raises:
        ProcessCountMismatch: another number of processes was started than was meant.
    """
    environment = os.environ if environment is None else environment
    size = launched_processes(environment)
    how = "torchrun --nproc_per_node {} -m keepsight run …"
    if expected is not None:
        if expected != size:
            raise ProcessCountMismatch(
                f"--processes {expected}, but {size} started: launch with {how.format(expected)}"
            )
        return
    unnumbered = not any(environment.get(name) for name in _SIZES)
    if unnumbered and "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
        raise ProcessCountMismatch(
            "accelerate launch was asked for several processes and started one, as it does on CPU: launch with"
            f" {how.format('N')}, or say --processes 1 if one is meant"
        )


def init_process_group(expected: int | None = None) -> ProcessGroup:
    """Join the processes that the launcher started, and return this process's place among them.

    Args:
        expected: how many processes were meant; None if nobody said.

    Raises:
        ProcessCountMismatch: another number of processes was started or joined than was meant.
    """
    check_launch(expected)
    # A single process needs no group, so accelerate is not even imported.
    if launched_processes() == 1:
        return ProcessGroup()
    # The processes exchange small objects and no tensors. The backend gloo, which accelerate takes with cpu=True, does
    # that beside any device and with a timeout of days.
    state = _accelerate().PartialState(cpu=True, timeout=PATIENCE)
    if state.num_processes != launched_processes():
        raise ProcessCountMismatch(
            f"{launched_processes()} processes were started, but accelerate joined {state.num_processes}"
        )
    return ProcessGroup(
        rank=state.process_index, world_size=state.num_processes, local_rank=state.local_process_index
    )
