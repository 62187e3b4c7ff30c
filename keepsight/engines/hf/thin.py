"""Products of two or three rows with a large matrix, as shared decoding steps make them, on processors where those are slow.

On AMD processors MKL takes about twice as long for two rows as for one, so that a shared step would cost as much as two. The
same product with its factors the other way round is faster, most where a matrix has up to a thousand inputs
(``benchmarks/products.py``). Which one is taken depends on the processor and not on a measurement, so that a machine gives
the same result every time.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

ROWS = (2, 3)
"""From four rows on the ordinary way is as fast or faster."""
CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def slow_here() -> bool:
    """Whether this machine is one where products of few rows are slow: an AMD processor with MKL. Known on Linux only."""
    if sys.platform != "linux" or not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        return "AuthenticAMD" in CPUINFO.read_text()
    except OSError:
        return False


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a float32 matrix on the CPU and nothing else: not quantised, adapted, hooked or replaced."""
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and type(module.weight) is nn.Parameter
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
        and module.weight.is_contiguous()
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for ``x`` ``(…, rows, in)`` and ``weight`` ``(out, in)``, equal to it up to rounding."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = torch.mm(weight, rows.T).T.contiguous()
    if bias is not None:
        out += bias
    return out.reshape(*x.shape[:-1], -1)
