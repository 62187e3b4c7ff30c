"""Peak memory of one generation beyond the model: CUDA's own count, or on Linux a fresh process's resident set.

A fresh process for each way on the CPU, since an allocator keeps what an earlier way has freed. In it the C library is told
to map every block of 64 KiB or more by itself, and so to give it back at once; weights are touched, a short generation
loads what is loaded at first use, the kernel's high-water mark is put back to the present, and then the way runs. The peak
over that present is what the way needed: caches, activations, masks.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from keepsight.errors import KeepsightError
from keepsight.experiments.latency.subjects import Source, build

BLOCK = str(64 * 1024)
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": BLOCK, "MALLOC_TRIM_THRESHOLD_": BLOCK, "MALLOC_TOP_PAD_": "0"}
LEAST_MIB = 8.0
"""Below that a resident set is too coarse for ratios."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class MemoryNotMeasured(KeepsightError):
    """The process that was to measure memory failed, or the system offers no way to."""


def measurable(device: str) -> bool:
    """Whether peak memory can be measured: on CUDA, and for the CPU on Linux."""
    return device != "cpu" or CLEAR.exists()


def peak_mib(
    source: Source, way: Mapping[str, str], *, batch: int, new: int, threads: int, cache: str = "dynamic"
) -> float:
    """Peak of one generation on the CPU beyond the model and its inputs, in MiB, from a process of its own.

    Raises:
        MemoryNotMeasured: with the last line of what that process said.
    """
    job = {
        "source": asdict(source),
        "way": dict(way),
        "batch": batch,
        "new": new,
        "threads": threads,
        "cache": cache,
    }
    done = subprocess.run(
        [sys.executable, "-m", "keepsight.experiments.latency.memory"],
        input=json.dumps(job), capture_output=True, text=True, env={**os.environ, **ALLOCATOR}, check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise MemoryNotMeasured(
            f"peak memory of {dict(way)} was not measured: {said[0]}; leave it out with --no-memory"
        )
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mib"])


def cuda_peak_mib(
    model: Any, inputs: Mapping[str, Any], way: Any, *, new: int, cache: str = "dynamic"
) -> float:
    """The same on CUDA, in this process, from the count of torch's allocator."""
    import torch

    from keepsight.experiments.latency.measure import once

    device = inputs["input_ids"].device
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    once(model, inputs, way, new=new, cache=cache)
    return float(torch.cuda.max_memory_allocated(device) - before) / 2**20


def status_kib(name: str) -> int:
    """A line of this process's ``/proc`` status, such as ``VmRSS`` or ``VmHWM``, in KiB."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise MemoryNotMeasured(f"{STATUS} has no {name}")


def _here(job: Mapping[str, Any]) -> float:
    import torch

    from keepsight.experiments.latency.measure import once
    from keepsight.experiments.latency.variants import Way
    from keepsight.inference.loading import quiet_transformers

    quiet_transformers()
    torch.set_num_threads(job["threads"])
    subject = build(Source(**job["source"]))
    way = Way(**job["way"])
    with torch.no_grad():
        for tensor in (*subject.model.parameters(), *subject.model.buffers()):
            tensor.sum()  # a checkpoint's pages are read when first used
    inputs = subject.inputs(job["batch"])
    once(subject.model, inputs, way, new=4, cache=job["cache"])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    before = status_kib("VmRSS")
    once(subject.model, inputs, way, new=job["new"], cache=job["cache"])
    return (status_kib("VmHWM") - before) / 1024


if __name__ == "__main__":
    try:
        print(json.dumps({"peak_mib": _here(json.load(sys.stdin))}))
    except KeepsightError as error:
        sys.exit(str(error))
