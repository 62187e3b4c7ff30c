"""From a spec string to what requests of vLLM are made of: which views amateurs get, and which formulas combine them.

vLLM owns the model and its loop. What can be put in place there are contrasts: an amateur is a request of its own, and
the formula a logits processor. Everything that changes the inside of the model is refused by name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor, nn

from keepsight.decoding.vcd import NoisedImage
from keepsight.decoding.views import MainPrompt, NoImage, TransformedImage
from keepsight.engines.base import Engine
from keepsight.errors import InputError, InvalidParameter, UnsupportedModel
from keepsight.method import Method
from keepsight.parts import Contrast, Part, View, describe
from keepsight.registry import parse_all
from keepsight.target import Target

if TYPE_CHECKING:
    from transformers import LogitsProcessor

SPEC, TEXT_ONLY, ROW = "keepsight", "keepsight_text_only", "keepsight_row"
"""Keys of a request's extra arguments: the methods; the prompt without pictures, if the caller has it; which row of a set of
requests this one is. The last is the scheduler's, and no caller may set it."""
SERVED = "KEEPSIGHT_VLLM_METHODS"
"""The environment variable with the specs that the operator serves, a JSON list. It reaches every process of a server."""
LONGEST = 1000
"""The most characters of a spec in a request."""
VIEWS = (NoImage, NoisedImage, TransformedImage, MainPrompt)
"""The views of which ``keepsight.engines.vllm.views`` can make a request."""


class ModelTarget(Target):
    """What a method may know of a model that vLLM runs before there is a prompt: its configuration, and nothing else.

    Args:
        config: the model's configuration; None where it is not known yet.
    """

    def __init__(self, config: Any = None) -> None:
        stub: Any = SimpleNamespace(config=config, generation_config=None)
        super().__init__(model=stub, inputs={})

    def __post_init__(self) -> None:
        """There is nothing to check: neither a model of transformers nor inputs."""

    @property
    def name(self) -> str:
        return str(getattr(self.model.config, "model_type", None) or "a model inside vLLM")

    @property
    def text_config(self) -> Any:
        """The text decoder's part of the configuration; an empty one where it is not known."""
        config: Any = self.model.config
        return SimpleNamespace() if config is None else config.get_text_config(decoder=True)

    def check_prompt(self) -> None:
        """Prompts are checked one by one, when they arrive."""

    @property
    def input_ids(self) -> Tensor:
        self._refuse("the prompt")

    @property
    def image_mask(self) -> Tensor:
        self._refuse("where the prompt holds the picture")

    @property
    def model_inputs(self) -> dict[str, Any]:
        self._refuse("the model's inputs")

    @property
    def decoder(self) -> nn.Module:
        self._refuse("the decoder's layers")

    @property
    def final_norm(self) -> nn.Module:
        self._refuse("the decoder's norm")

    @property
    def head(self) -> nn.Module:
        self._refuse("the output projection")

    @property
    def hidden_size(self) -> int:
        self._refuse("the width of the model")

    def _refuse(self, what: str) -> NoReturn:
        raise UnsupportedModel(f"it needs {what}, and vLLM runs the model where methods reach scores alone")


class VLLMEngine(Engine):
    """Says which methods requests of vLLM can stand for. vLLM generates itself, so there is nothing to open."""

    def why_not(self, part: Part, target: Target) -> str | None:
        if not isinstance(part, Contrast):
            return f"it {describe(part)}, and inside vLLM only scores can be changed"
        for view in part.views:
            kind = type(view).__name__
            if view.edited:
                return (
                    f"its amateur with the view {kind} is edited inside the model, which vLLM does not offer"
                )
            if not isinstance(view, VIEWS):
                known = ", ".join(one.__name__ for one in VIEWS)
                return f"no request of vLLM can be made of the view {kind}: known are {known}"
        return None

    def open(
        self, target: Target, methods: Sequence[Method]
    ) -> AbstractContextManager[list[LogitsProcessor]]:
        raise UnsupportedModel(
            "vLLM generates without model.generate, so that no block can be opened: start it with"
            " keepsight.vllm.engine_args() and name the methods in each request"
        )

    def processor(self, target: Target, method: Method) -> LogitsProcessor:
        self.open(target, [method])
        raise AssertionError("unreachable")

    def parts(self, target: Target, methods: Sequence[Method]) -> list[Part]:
        found: list[Part] = []
        for method in methods:
            try:
                reason = method.refusal(target)
                for part in () if reason is not None else method.parts(target):
                    reason = reason or self.why_not(part, target)
                    found.append(part)
            except UnsupportedModel as error:
                reason = str(error)
            if reason is not None:
                raise UnsupportedModel(f"{method.name()} cannot be used inside vLLM: {reason}")
        return found


ENGINE = VLLMEngine()


@dataclass(frozen=True)
class Plan:
    """What one request becomes.

    Args:
        views: one amateur for each, no two alike.
        contrasts: the formulas in their order, each with the numbers of its views.
    """

    views: tuple[View, ...]
    contrasts: tuple[tuple[Contrast, tuple[int, ...]], ...]

    @property
    def rows(self) -> int:
        """How many requests travel together: the expert, and an amateur for each view."""
        return 1 + len(self.views)


def plan(methods: Sequence[Method], config: Any = None) -> Plan:
    """What a request with these methods becomes. Formulas are made anew at every call, since they may hold state.

    Args:
        methods: the recipes, in the order in which they act.
        config: the model's configuration, if it is known.

    Raises:
        UnsupportedModel: a method cannot be put in place inside vLLM; the message names it and says why.
    """
    views: list[View] = []
    contrasts: list[tuple[Contrast, tuple[int, ...]]] = []
    for part in ENGINE.parts(ModelTarget(config), methods):
        assert isinstance(part, Contrast)
        for view in part.views:
            if view not in views:
                views.append(view)
        contrasts.append((part, tuple(views.index(view) for view in part.views)))
    return Plan(tuple(views), tuple(contrasts))


def read_spec(spec: Any) -> tuple[Method, ...]:
    """The methods that a request names.

    What the operator serves is known by its exact text. Everything else may name registered methods and plain values only.

    Raises:
        InvalidParameter: the spec is no text, or too long.
        KeepsightError: as ``keepsight.registry.parse_all``.
    """
    if not isinstance(spec, str):
        raise InvalidParameter(
            f"{SPEC} must be a text such as 'm3id:decay=0.05', not a {type(spec).__name__}"
        )
    if len(spec) > LONGEST:
        raise InvalidParameter(f"{SPEC} may have at most {LONGEST} characters, and has {len(spec)}")
    return _read(spec, os.environ.get(SERVED, "[]"))


@lru_cache(maxsize=256)
def _read(spec: str, served: str) -> tuple[Method, ...]:
    return parse_all(spec, trusted=spec in json.loads(served))


def serve(specs: Sequence[str]) -> None:
    """Notes in the environment which specs the operator serves, after checking that they can be put in place.

    Raises:
        KeepsightError: a spec is wrong, or its method cannot be used inside vLLM.
    """
    for spec in specs:
        plan(parse_all(spec))
    os.environ[SERVED] = json.dumps(list(specs))


def check_arguments(arguments: dict[str, Any]) -> tuple[Method, ...] | None:
    """The methods that a request's extra arguments name; None where they name none.

    Raises:
        InputError: an argument that is not known, or of the wrong kind.
        KeepsightError: as ``read_spec`` and ``plan``.
    """
    known = {SPEC, TEXT_ONLY}
    if strange := [key for key in arguments if str(key).startswith(SPEC) and key not in known]:
        raise InputError(f"a request may not set {strange[0]!r}: known are {', '.join(sorted(known))}")
    spec, ids = arguments.get(SPEC), arguments.get(TEXT_ONLY)
    if not spec:
        if ids is not None:
            raise InputError(f"{TEXT_ONLY} stands without {SPEC}: name a method, or leave it out")
        if spec is None or spec == "":
            return None
    if ids is not None and not (isinstance(ids, (list, tuple)) and ids and all(_is_id(one) for one in ids)):
        raise InvalidParameter(f"{TEXT_ONLY} must be a list of token ids, 0 or more")
    methods = read_spec(spec)
    plan(methods)
    return methods


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
