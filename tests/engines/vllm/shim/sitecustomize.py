"""Lets torchvision's CUDA build be imported beside torch for the CPU, in every process of a vLLM server.

vLLM's processors import torchvision, and the build on PyPI is for CUDA: its kernels cannot be loaded, and its Python part
stops at the first operator that is missing. The operators are declared here before torchvision is imported. Nothing calls
them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


class DeclareFirst(importlib.abc.MetaPathFinder):
    """Declares the operators when torchvision is about to be imported, and leaves the import to others."""

    library: object = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision" and DeclareFirst.library is None:
            import torch

            DeclareFirst.library = library = torch.library.Library("torchvision", "FRAGMENT")
            for name, schema in OPERATORS.items():
                library.define(name + schema)
        return None


sys.meta_path.insert(0, DeclareFirst())
