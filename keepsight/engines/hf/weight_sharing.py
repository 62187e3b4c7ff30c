"""A second module tree over the weights of a first one, so that two threads may generate under methods of their own.

Edits act on module objects and not on weights. Two threads in one tree would see each other's edits; in two trees over the
same weights they do not. The second tree of a LLaVA of 7 billion weights takes 2 MB and 0.15 s.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from keepsight.errors import UnsupportedModel
from keepsight.target import check_generates

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SHARDED = ("torch.distributed", "torch.nn.parallel", "deepspeed")
"""Packages whose modules and parameters do work of their own in every pass, for one tree."""
_OPAQUE = (type, FunctionType, BuiltinFunctionType, ModuleType)


def twin(model: AnyModel) -> AnyModel:
    """Another model over the very same weights: nothing is allocated but modules and configurations.

    Every parameter and buffer of the twin *is* that of the model, tied ones included; configuration and generation
    configuration are its own. Edits on one do not reach the other, so one thread may generate on each::

        second = twin(model)  # then, in one thread:
        with mitigate(model, "vhr"):
            model.generate(**inputs)
        # and in another, at the same time:
        with mitigate(second, "vcd"):
            second.generate(**inputs)

    Make it where the model is in evaluation mode, on its device and in its type: a later ``to`` moves some tensors of one
    alone. Weights that change in place change in both. Torch has one random state for all threads: greedy and beam search
    draw nothing and are exact, sampling at the same time is not reproducible.

    Args:
        model: any decoder-only image-text-to-text model of transformers, with no block open on it and no thread in it.

    Raises:
        UnsupportedModel: a second tree would not be exact: Accelerate moves the weights (``device_map`` over several
            devices, offloading), they are sharded or compiled, hooks or replaced methods belong to this one tree (so inside
            ``mitigate``), a quantised layer keeps its state on its weights, or a module cannot be copied.
    """
    check_generates(model)
    _check(model)
    shared = _tensors(model)
    try:
        # What the memo knows is not copied: each tensor stands for itself
        other = copy.deepcopy(model, dict(shared))
    except Exception as error:
        told = " ".join(str(error).split())[:200]
        raise _refusal(model, f"a part of it cannot be copied ({type(error).__name__}: {told})") from error
    if not _tensors(other).keys() <= shared.keys():
        raise _refusal(model, "a part of it keeps tensors that cannot be shared")
    return other


def _refusal(model: Any, why: str) -> UnsupportedModel:
    return UnsupportedModel(f"{type(model).__name__}: no twin over the same weights: {why}")


def _check(model: nn.Module) -> None:
    if getattr(model, "_tp_size", None) is not None:
        raise _refusal(model, "its weights are spread over processes")
    for name, module in model.named_modules():
        where = f"{type(module).__name__} {name}".strip()
        if hasattr(module, "_hf_hook"):
            raise _refusal(model, f"Accelerate moves what {where} works on; load it onto one device")
        if type(module).__module__.startswith(_SHARDED):
            raise _refusal(model, f"{where} shards its weights")
        if module._compiled_call_impl is not None:
            raise _refusal(model, f"{where} is compiled; make the twin before compile()")
        if replaced := next((key for key in vars(module) if _is_replaced(module, key)), None):
            raise _refusal(
                model, f"{replaced}() of {where} is replaced; make the twin outside mitigate() and the like"
            )
        for hook in (hook for kind in _HOOKS for hook in getattr(module, kind).values()):
            # Those of transformers read outputs for whoever asks in this thread, and know no module
            if not str(getattr(hook, "__module__", "")).startswith("transformers."):
                raise _refusal(model, f"{where} has a hook; make the twin before it is registered")
    for name, weight in model.named_parameters():
        if type(weight).__module__.startswith(_SHARDED) or hasattr(weight, "ds_id"):
            raise _refusal(model, f"the parameter {name} is sharded")
        if type(weight).__name__ == "Int8Params":
            raise _refusal(model, f"the first pass takes LLM.int8()'s state from the parameter {name}")


def _is_replaced(module: nn.Module, name: str) -> bool:
    """Whether an instance has a method that is not its class's."""
    method = getattr(type(module), name, None)
    value = vars(module)[name]
    # Accelerate leaves a method in the instance that is the class's again
    same = getattr(value, "__self__", None) is module and getattr(value, "__func__", None) is method
    return callable(method) and not same


def _tensors(model: nn.Module) -> dict[int, Tensor]:
    """Every tensor that hangs on the modules of a model or on what they hold, by its id."""
    from torch import Tensor

    found: dict[int, Tensor] = {}
    seen: dict[int, Any] = {}
    waiting: list[Any] = [model]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one  # held, so that no other object gets its id
        if isinstance(one, Tensor):
            found[id(one)] = one
        elif isinstance(one, Mapping):
            waiting.extend(one.values())
        elif isinstance(one, (list, tuple, set, frozenset)):
            waiting.extend(one)
        elif isinstance(one, MethodType):
            waiting.append(one.__self__)
        elif isinstance(one, partial):
            waiting += [one.func, one.args, one.keywords]
        elif not isinstance(one, _OPAQUE) and hasattr(one, "__dict__"):
            waiting.extend(vars(one).values())
    return found
