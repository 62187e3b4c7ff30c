"""Tensors that say that they are on another device than the CPU, and compute on the CPU: what would mix devices raises here.

It finds tensors that are made on the CPU where the model's device is meant, on machines without an accelerator. It follows
CUDA's rules: a CPU tensor without dimensions, and CPU tensors of indices, go with tensors on any device; copies go anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
"""What the tensors say. A tensor that is really on this device would hold no values; none is made inside ``pretending``."""
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}
COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


class MixedDevices(RuntimeError):
    """An operation was given tensors on several devices."""


class There(Tensor):
    """A tensor on the pretended device; ``here`` holds its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        self = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=DEVICE, requires_grad=False,
        )  # fmt: skip
        self.here = here
        return self

    def __repr__(self, **_: Any) -> str:
        return f"There({self.here!r})"

    def data_ptr(self) -> int:
        return self.here.data_ptr()

    def tolist(self) -> Any:
        return self.here.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> There:
        return There(self.here.clone())

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, on the device where it would give it. Raises ``MixedDevices``."""
    asked = kwargs.get("device")
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    there = any(isinstance(one, There) for one in tensors)
    empty = any(one.device == DEVICE and not isinstance(one, There) for one in tensors)
    assert not empty, f"{func}: a tensor without values"
    if there and func not in COPIES:
        checked = tree_flatten((args[0], args[2:], kwargs))[0] if func in INDEXING else tensors
        lost = [one for one in checked if isinstance(one, Tensor) and not isinstance(one, There) and one.ndim]
        if lost or (func in INDEXING and not isinstance(args[0], There)):
            shapes = [f"{type(one).__name__}{tuple(one.shape)}" for one in tensors]
            raise MixedDevices(f"{func} of {', '.join(shapes)}")
    if asked is not None:
        there = torch.device(asked).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif func is torch.ops.aten.copy_.default:
        there = isinstance(args[0], There)

    def real(one: Any) -> Any:
        return one.here if isinstance(one, There) else one

    out = func(*tree_map(real, args), **tree_map(real, kwargs))
    if there:
        out = tree_map(lambda one: There(one) if isinstance(one, Tensor) else one, out)
    if tensors:
        return return_and_correct_aliasing(func, args, kwargs, out) if there else out
    return out


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """``torch.tensor`` and the like copy Python's numbers to the device where no operation is seen."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(one) if isinstance(one, list) else one for one in index)
            return func(args[0], index, *args[2:])
        if func not in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor):
            return func(*args, **kwargs)
        asked = kwargs.get("device")
        if func is Tensor.new_tensor and asked is None:
            asked = args[0].device
        if asked is None or torch.device(asked).type != DEVICE.type:
            return func(*args, **kwargs)
        if func is Tensor.new_tensor:
            args, func = (args[1], *args[2:]), torch.tensor
        args = tree_map(lambda one: one.here if isinstance(one, There) else one, args)
        return There(func(*args, **{**kwargs, "device": "cpu"}))


@contextmanager
def pretending() -> Iterator[None]:
    """Inside the block, what is made on ``DEVICE`` is a tensor on the pretended device."""
    with _Constructors(), _Operations():
        yield


def there(value: Any) -> Any:
    """A tensor, or a mapping of tensors, on the pretended device."""
    if isinstance(value, dict):
        return {key: there(one) for key, one in value.items()}
    return There(value) if isinstance(value, Tensor) else value


def moved_there(model: torch.nn.Module) -> torch.nn.Module:
    """The model, with its weights and buffers on the pretended device. The model itself is changed."""
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(There(weight.detach()), requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = There(buffer)
    return model
