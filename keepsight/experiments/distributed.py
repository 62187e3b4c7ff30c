"""The processes that share a run: as many as ``torchrun`` or ``accelerate launch`` started, joined through accelerate."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from keepsight.errors import KeepsightError
from keepsight.experiments.errors import WorldMismatch

T = TypeVar("T")
PATIENCE = timedelta(days=30)
"""How long one process waits for the others at the end: its share may be done long before theirs."""
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def _accelerate() -> Any:
    import accelerate.utils  # type: ignore[import-untyped]

    return accelerate


class SaidByTheFirst(KeepsightError):
    """The first process failed, and says so itself; the others stop as well."""


@dataclass(frozen=True)
class World:
    """One process among ``size``, on its machine the one numbered ``local``."""

    rank: int = 0
    size: int = 1
    local: int = 0

    def first(self, work: Callable[[], T]) -> T:
        """What ``work`` gives in the first process, in all of them.

        Raises:
            KeepsightError: what ``work`` raised, in the first process.
            SaidByTheFirst: then, in the others.
        """
        if self.size == 1:
            return work()
        found: list[T | None] = [None]
        failure: list[KeepsightError | None] = [None]
        if self.rank == 0:
            try:
                found[0] = work()
            except KeepsightError as error:
                failure[0] = error
        broadcast = _accelerate().utils.broadcast_object_list
        broadcast(failure)
        if failure[0] is not None:
            raise SaidByTheFirst(str(failure[0])) if self.rank else failure[0]
        broadcast(found)
        return found[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            _accelerate().PartialState().wait_for_everyone()

    def leave(self) -> None:
        """The last thing a process does."""
        if self.size > 1:
            _accelerate().PartialState().destroy_process_group()


def started(environment: Mapping[str, str] | None = None) -> int:
    """How many processes the launcher says it started, by the environment; 1 without one."""
    environment = os.environ if environment is None else environment
    sizes = (environment.get(name, "") for name in _SIZES)
    return next((int(size) for size in sizes if size.isdecimal()), 1)


def check(expected: int | None, environment: Mapping[str, str] | None = None) -> None:
    """Refuse a run with fewer processes than was meant.

    ``accelerate launch --cpu --num_processes 2`` starts one process and says nothing. It is told by what it leaves in the
    environment: an address to meet at, which it gives only for several, and no number of processes.

    Args:
        expected: how many were meant; None if nobody said.

    Raises:
        WorldMismatch
    """
    environment = os.environ if environment is None else environment
    size = started(environment)
    how = "torchrun --nproc_per_node {} -m keepsight run …"
    if expected is not None:
        if expected != size:
            raise WorldMismatch(
                f"--processes {expected}, but {size} started: launch with {how.format(expected)}"
            )
        return
    unnumbered = not any(environment.get(name) for name in _SIZES)
    if unnumbered and "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
        raise WorldMismatch(
            "accelerate launch was asked for several processes and started one, as it does on CPU: launch with"
            f" {how.format('N')}, or say --processes 1 if one is meant"
        )


def join(expected: int | None = None) -> World:
    """This process's place among those that the launcher started. Raises ``WorldMismatch``."""
    check(expected)
    if started() == 1:
        return World()
    # Processes here exchange a few words and no tensors: gloo does that with any device, and for any time
    state = _accelerate().PartialState(cpu=True, timeout=PATIENCE)
    if state.num_processes != started():
        raise WorldMismatch(
            f"{started()} processes were started, but accelerate joined {state.num_processes}"
        )
    return World(rank=state.process_index, size=state.num_processes, local=state.local_process_index)
