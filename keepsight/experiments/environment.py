"""What the answers of a run depend on besides its settings: versions, hardware, and the weights of the model."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

from keepsight.errors import first_line
from keepsight.files import file_digest

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def versions() -> dict[str, str]:
    """The versions of Keepsight, Python, torch and transformers, by package."""
    from importlib.metadata import version

    import keepsight

    found = {package: version(package) for package in ("torch", "transformers")}
    return {"keepsight": keepsight.__version__, "python": platform.python_version(), **found}


def hardware(device: object) -> dict[str, Any]:
    """The processor with its cores and torch's threads, the device that a model is on, and the names of all GPUs of
    the machine.

    Args:
        device: a ``torch.device`` or its name.
    """
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpus": gpus,
    }


def weights(name: str) -> dict[str, str | None]:
    """What tells one checkpoint from another: the SHA-256 of its files, or its commit on the Hugging Face Hub.

    Args:
        name: a folder, a Hugging Face id, or ``demo``.

    Returns:
        ``sha256`` and ``revision``, of which one is None. ``revision`` is None as well where transformers does not know
            the commit.

    Raises:
        ModelNotLoaded: there is no such checkpoint.
        WeightsMissing: the package has no demo checkpoint.
    """
    from keepsight.demo.model import checkpoint
    from keepsight.inference.loading import DEMO, ModelNotLoaded

    folder = checkpoint() if name == DEMO else Path(name)
    if folder.is_dir():
        return {"sha256": _digest(folder), "revision": None}
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:
        raise ModelNotLoaded(
            f"cannot load {name} (a folder with a checkpoint, a Hugging Face id, or {DEMO}): {first_line(error)}"
        ) from error
    # transformers notes the commit of what it downloads in this private attribute of the configuration, and has no
    # public way to ask for it.
    return {"sha256": None, "revision": getattr(config, "_commit_hash", None)}


def _digest(folder: Path) -> str:
    """The SHA-256 of a folder's file of weights or, if there are several, of their digests in the order of their names."""
    files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS and path.is_file())
    digests = [file_digest(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _cpu() -> str:
    """The name of the processor."""
    try:
        # On Linux ``platform.processor()`` is often empty or gives only the architecture, so the kernel's own list is
        # read first.
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
