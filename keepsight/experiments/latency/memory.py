"""Measures the peak memory of one generation beyond the model: torch's own count on CUDA, the resident set of a process
on Linux.

On the CPU each measurement runs in a fresh process, because an allocator keeps what an earlier generation has freed. In
that process the C library maps every block of 64 KiB or more separately, and so returns it at once when it is freed. The
process reads all weights once, runs a short generation for what is loaded at first use, resets the kernel's high-water
mark, and runs the generation that is measured. The high-water mark minus what was resident before is what that
generation needed: caches, activations and masks.
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

# Setting any of these variables also keeps glibc from raising its thresholds while it runs, which it does by itself when
# large blocks are freed. It reads them only when a process starts.
BLOCK = str(64 * 1024)
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": BLOCK, "MALLOC_TRIM_THRESHOLD_": BLOCK, "MALLOC_TOP_PAD_": "0"}
LEAST_MIB = 8.0
"""Peaks below this many MiB get no ratio, since a resident set is counted too coarsely for them."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class MemoryNotMeasured(KeepsightError):
    """The process that measures memory failed, or the system does not report what is resident."""


def measurable(device: str) -> bool:
    """Whether peak memory can be measured: on CUDA, and for the CPU on Linux."""
    return device != "cpu" or CLEAR.exists()


def peak_mib(
    source: Source, way: Mapping[str, str], *, batch: int, new: int, threads: int, cache: str = "dynamic"
) -> float:
    """The peak memory of one generation on the CPU beyond the model and its inputs, in MiB, measured in a process of its
    own.

    Args:
        source: the model, which that process builds again.
        way: the fields of a ``variants.Way``.
        batch: the rows of the batch.
        new: the tokens of the generation.
        threads: how many threads torch uses in that process.
        cache: an entry of ``variants.CACHES``.

    Raises:
        MemoryNotMeasured: the process failed; the message has the last line that it wrote.
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
    # Libraries may print lines of their own before, so only the last line is read.
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mib"])


def cuda_peak_mib(
    model: Any, inputs: Mapping[str, Any], way: Any, *, new: int, cache: str = "dynamic"
) -> float:
    """The peak memory of one generation on CUDA beyond what is allocated before it, in MiB, as torch's allocator in this
    process counts it.

    Args:
        model, inputs: what is measured on.
        way: how it generates, a ``variants.Way``.
        new: the tokens of the generation.
        cache: an entry of ``variants.CACHES``.
    """
    import torch

    from keepsight.experiments.latency.measure import once

    device = inputs["input_ids"].device
    # Tensors in cycles of references that an earlier generation left behind would otherwise count as allocated before,
    # and could be freed in the middle of this one.
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    once(model, inputs, way, new=new, cache=cache)
    return float(torch.cuda.max_memory_allocated(device) - before) / 2**20


def status_kib(name: str) -> int:
    """The value of a line of this process's ``/proc`` status, such as ``VmRSS`` or ``VmHWM``, in KiB.

    Raises:
        MemoryNotMeasured: there is no such line.
    """
    for line in STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise MemoryNotMeasured(f"{STATUS} has no {name}")


def _here(job: Mapping[str, Any]) -> float:
    """The peak memory in MiB of the generation that ``job`` describes, measured in this process; see ``peak_mib``."""
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
            # A checkpoint is mapped into memory, and its pages become resident only when they are first read. Reading them
            # here keeps the weights out of what the generation needs.
            tensor.sum()
    inputs = subject.inputs(job["batch"])
    once(subject.model, inputs, way, new=4, cache=job["cache"])
    gc.collect()
    # Freed blocks that stay resident could serve the measured generation without raising the mark. glibc gives them back
    # on request.
    ctypes.CDLL(None).malloc_trim(0)
    # Writing 5 to this file resets the high-water mark of the resident set (proc(5), since Linux 4.0).
    CLEAR.write_text("5")
    before = status_kib("VmRSS")
    once(subject.model, inputs, way, new=job["new"], cache=job["cache"])
    return (status_kib("VmHWM") - before) / 1024


if __name__ == "__main__":
    try:
        print(json.dumps({"peak_mib": _here(json.load(sys.stdin))}))
    except KeepsightError as error:
        sys.exit(str(error))
