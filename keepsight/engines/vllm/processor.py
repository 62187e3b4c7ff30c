"""The logits processor that puts the combined scores of a set of requests into each of its rows."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.interface import MoveDirectionality

from keepsight import parts
from keepsight.engines.vllm.placing import ROW, Plan, check_arguments, plan, read_spec
from keepsight.engines.vllm.seams import check_config, check_installed
from keepsight.errors import InputError, KeepsightError
from keepsight.method import Method

REFUSED = {
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "thinking_token_budget": None,
    "trace_decode_token_ids": None, "prompt_logprobs": None, "prompt_logprob_token_ids": None,
    "structured_outputs": None,
}  # fmt: skip
"""Settings that a request with a method may not have, and their values where they are off. Penalties come after the contrast
and count each request's own prompt, so that the rows of a set would differ."""


@dataclass
class _Row:
    """A row of the batch that belongs to a set of requests.

    Args:
        members: the name of the set.
        number: 0 for the expert, and then the amateurs in the order of the plan's views.
        methods: the set's methods.
        output: the tokens generated so far, which vLLM keeps up to date.
    """

    members: str
    number: int
    methods: tuple[Method, ...]
    output: Sequence[int]


@dataclass
class _Set:
    plan: Plan
    contrasts: list[Hashable]
    rows: dict[int, int] = field(default_factory=dict)
    steps: set[int] = field(default_factory=set)


class Contrast(LogitsProcessor):  # type: ignore[misc]
    """Combines the scores of an expert and its amateurs, and gives all of them the result, so that they draw one token.

    The formulas are those of the methods. Sets whose formulas are equal, and that are at the same step, are combined in one
    call.

    Raises:
        UnsupportedEngine: at start-up, under a vLLM or a setting that is not supported.
    """

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuses a wrong request before it reaches the engine; the server answers with HTTP 400.

        Raises:
            ValueError: the message is that of the error that the method or the request gave rise to.
        """
        try:
            check_request(sampling_params)
        except KeepsightError as error:
            raise ValueError(f"keepsight: {error}") from error

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        check_installed()
        check_config(vllm_config)
        self._config = vllm_config.model_config.hf_config
        self._rows: dict[int, _Row] = {}
        self._sets: dict[str, _Set] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follows rows as vLLM adds, moves and removes them."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, _, output in batch_update.added:
            row = (params.extra_args or {}).get(ROW) if params is not None else None
            if row is None:
                self._rows.pop(index, None)
            else:
                members, number, spec = row
                self._rows[index] = _Row(members, number, read_spec(spec), output)
        for a, b, direction in batch_update.moved:
            mine, theirs = self._rows.pop(a, None), self._rows.pop(b, None)
            if mine is not None:
                self._rows[b] = mine
            if direction == MoveDirectionality.SWAP and theirs is not None:
                self._rows[a] = theirs
        alive = {row.members for row in self._rows.values()}
        self._sets = {name: one for name, one in self._sets.items() if name in alive}

    def apply(self, logits: Tensor) -> Tensor:
        if not self._rows:
            return logits
        whole: dict[Any, list[_Set]] = {}
        for one in self._gathered():
            if len(one.rows) == one.plan.rows and len(one.steps) == 1:
                whole.setdefault((*one.contrasts, next(iter(one.steps))), []).append(one)
            else:
                _spoil(logits, one)
        for sets in whole.values():
            _combine(logits, sets)
        return logits

    def _gathered(self) -> list[_Set]:
        """The sets that have rows in the batch, with their rows and steps."""
        found: dict[str, _Set] = {}
        for index, row in self._rows.items():
            one = found.get(row.members)
            if one is None:
                one = found[row.members] = self._set(row)
                one.rows, one.steps = {}, set()
            one.rows[row.number] = index
            one.steps.add(len(row.output))
        return list(found.values())

    def _set(self, row: _Row) -> _Set:
        one = self._sets.get(row.members)
        if one is None:
            made = plan(row.methods, self._config)
            keys = [key for contrast, places in made.contrasts for key in (formula(contrast), places)]
            one = self._sets[row.members] = _Set(made, keys)
        return one


def check_request(params: Any) -> None:
    """Whether a request's methods, and what else it asks for, can be had together.

    Args:
        params: vLLM's ``SamplingParams``.

    Raises:
        KeepsightError: they cannot.
    """
    if check_arguments(params.extra_args or {}) is None:
        return
    for name, off in REFUSED.items():
        if getattr(params, name) != off:
            raise InputError(f"{name} cannot be used with a method inside vLLM: leave it out")
    if "kv_transfer_params" in params.extra_args or "ec_transfer_params" in params.extra_args:
        raise InputError("transfers between engines cannot be used with a method inside vLLM")


def formula(contrast: parts.Contrast) -> Hashable:
    """What two contrasts have in common that compute the same of their arguments and keep no state.

    A method's bound function and a partial of a module's function are known by their values. Anything else, such as a
    function with variables around it, might keep state, and is equal to itself alone.
    """
    return (_pure(contrast.combine), _pure(contrast.needed) if contrast.needed is not None else None)


def _pure(function: Callable[..., Any]) -> Hashable:
    if isinstance(function, partial):
        inner = function.func
        settings: Hashable = (inner, function.args, tuple(sorted(function.keywords.items())))
        return settings if _no_state(inner) and _hashable(settings) else id(function)
    if isinstance(function, types.MethodType) and isinstance(function.__self__, Method):
        return (function.__func__, function.__self__)
    if isinstance(function, types.FunctionType) and not _no_state(function):
        held = tuple(cell.cell_contents for cell in function.__closure__ or ())
        # The same code over the same recipe, such as `lambda step: self.weight(step) > 0`
        if all(isinstance(value, Method) for value in held):
            return (function.__code__, held)
        return id(function)
    return function if _no_state(function) else id(function)


def _no_state(function: Any) -> bool:
    return isinstance(function, types.FunctionType) and function.__closure__ is None


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _spoil(logits: Tensor, one: _Set) -> None:
    """Makes the rows of a set that is not whole draw different tokens.

    The scheduler throws such a step away. If it ever failed to, it would see tokens that differ, and fail the request.
    """
    for number, index in one.rows.items():
        logits[index] = -math.inf
        logits[index, number] = 0.0


def _combine(logits: Tensor, sets: list[_Set]) -> None:
    """Writes the combined scores of sets with the same formulas at the same step into all of their rows."""
    first, step = sets[0], next(iter(sets[0].steps))
    indices = [
        torch.tensor([one.rows[i] for one in sets], device=logits.device) for i in range(first.plan.rows)
    ]
    scores = logits[indices[0]].float()
    amateurs = [logits[index].float() for index in indices[1:]]
    for contrast, places in first.plan.contrasts:
        scores = contrasted(contrast, scores, [amateurs[place] for place in places], step)
    for index in indices:
        logits[index] = scores.to(logits.dtype)


def contrasted(contrast: parts.Contrast, expert: Tensor, amateurs: Sequence[Tensor], step: int) -> Tensor:
    """New scores of one contrast, as log-probabilities; a row that the formula leaves as it is keeps its very scores.

    Args:
        expert: ``(rows, vocab)`` float32 scores.
        amateurs: the logits of each amateur in the same shape.
        step: the number of tokens generated so far.
    """
    wanted = contrast.needed is None or contrast.needed(step)
    combined = contrast.combine(expert, list(amateurs) if wanted else None, step)
    if combined is expert:
        return expert
    same = (combined == expert).all(-1, keepdim=True)
    return torch.where(same, expert, combined.log_softmax(-1))
