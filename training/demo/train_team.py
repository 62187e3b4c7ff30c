"""Data-parallel training on a few CPU cores: worker processes that average their gradients in shared memory.

The threads of one process wait for each other in every small operation, which is slow where the machine has other work;
worker processes of one thread each wait once per step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

CAPACITY = 4_000_000
"""The number of parameters for whose gradients there is room. The demo model has 2.00 million."""


@dataclass
class Team:
    """One worker's view of the group. The defaults are a group of one.

    Args:
        rank: the number of the worker, counted from 0.
        size: the number of workers.
        device: where the worker computes.
        barrier: where all workers wait for each other.
        board: ``(workers, CAPACITY)`` in shared memory, one row of gradients for each worker.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    barrier: Any = None
    board: Tensor | None = None

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the workers; all workers end with the same bits."""
        if self.board is None:
            return
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        self.board[self.rank, : flat.numel()] = flat
        self.barrier.wait()
        # Every worker computes the mean of the same rows in the same order, so all get the same bits.
        mean = self.board[:, : flat.numel()].mean(0)
        self.barrier.wait()
        # The second barrier keeps a fast worker from overwriting its row
        # for the next step while another one still reads it.
        for grad, part in zip(grads, torch.split(mean, [grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def work_together(task: Callable[..., None], arguments: Iterable[Any], workers: int, device: str) -> None:
    """Run ``task(team, *arguments)`` in ``workers`` processes of one thread each.

    One worker, and a device that is no CPU, run in this process.
    """
    if device != "cpu" or workers == 1:
        torch.set_num_threads(1)
        task(Team(device=torch.device(device)), *arguments)
        return
    # New processes read the variable when they import torch, before ``_work`` can set the number of threads.
    os.environ["OMP_NUM_THREADS"] = "1"
    board: Tensor = torch.zeros(workers, CAPACITY).share_memory_()  # type: ignore[no-untyped-call]
    group = (workers, get_context("spawn").Barrier(workers), board)
    spawn(_work, (task, tuple(arguments), group), nprocs=workers)  # type: ignore[no-untyped-call]


def _work(
    rank: int, task: Callable[..., None], arguments: tuple[Any, ...], group: tuple[int, Any, Tensor]
) -> None:
    """Run the task in a worker process."""
    torch.set_num_threads(1)
    size, barrier, board = group
    task(Team(rank, size, torch.device("cpu"), barrier, board), *arguments)


def fit(
    parameters: Sequence[nn.Parameter],
    losses_at: Callable[[int], dict[str, Tensor]],
    weights: dict[str, float],
    steps: int,
    peak: float,
    team: Team,
) -> list[dict[str, float]]:
    """Train with AdamW: the rate warms up over 5 % of the steps, then falls along a cosine to 5 % of ``peak``; gradients are
    clipped at 1.

    Args:
        parameters: the parameters to train.
        losses_at: returns the named losses of this worker's share of the batch of a step.
        weights: the weight of each loss in their sum.
        steps: the number of steps.
        peak: the largest learning rate.
        team: the group of workers.

    Returns:
        The mean of each loss (of this worker's share) over every 50 steps.
    """
    optimiser = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.02)
    warm = max(1, steps // 20)

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        turn = torch.tensor((step - warm) / max(1, steps - warm) * torch.pi)
        return 0.05 + 0.95 * 0.5 * (1.0 + float(turn.cos()))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    history: list[dict[str, float]] = []
    window: list[dict[str, float]] = []
    for step in range(steps):
        losses = losses_at(step)
        optimiser.zero_grad(set_to_none=True)
        torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()  # type: ignore[no-untyped-call]
        team.average(parameters)
        # Gradients are clipped after they are averaged, so all workers clip by the same norm.
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        window.append({name: float(loss.detach()) for name, loss in losses.items()})
        if len(window) == 50 or step == steps - 1:
            means = {name: sum(entry[name] for entry in window) / len(window) for name in window[0]}
            history.append({"step": step + 1, **{name: round(mean, 4) for name, mean in means.items()}})
            window = []
            if team.rank == 0:
                print(
                    "  " + "  ".join(f"{name} {value:g}" for name, value in history[-1].items()), flush=True
                )
    return history
