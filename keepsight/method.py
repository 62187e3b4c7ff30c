"""``Method``: a recipe for mitigation, frozen and free of state; what it needs of a model lives elsewhere."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn
from urllib.parse import quote, unquote

from keepsight.errors import InputError, InvalidParameter, UnknownParameter, did_you_mean

if TYPE_CHECKING:
    from transformers import LogitsProcessor, PreTrainedModel
    from typing_extensions import Self

    from keepsight.parts import Part
    from keepsight.target import Target


def parameter(
    default: Any,
    text: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    choices: tuple[str, ...] = (),
    operator_only: bool = False,
) -> Any:
    """A parameter of a method: a dataclass field that describes itself.

    Args:
        default: its default value.
        text: one line that says what it does.
        low, high: the closed range of a number.
        choices: the values that a text may have.
        operator_only: whether it names a file or a model, so that a request to a server may not set it.
    """
    metadata = {"text": text, "low": low, "high": high, "choices": choices, "operator_only": operator_only}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A mitigation method with its settings. Subclasses are frozen, keyword-only dataclasses.

    A recipe may be used for any number of models and generations: it holds numbers, never tensors. ``repr``
    gives Python that rebuilds it, ``spec`` the short string of the command line, ``off()`` the same recipe at
    zero strength, which changes nothing, bit for bit.

    Raises:
        InvalidParameter: a setting is NaN, out of its range, or of the wrong type.
    """

    paper: ClassVar[str]
    """arXiv id."""
    year: ClassVar[int]
    title: ClassVar[str]
    gist: ClassVar[str]
    """One line for people who choose a method."""
    cost: ClassVar[str]
    """Extra forward passes at prefill and per token."""
    visible: ClassVar[Mapping[str, Any]] = {}
    """Settings under which the method changes tokens even of a tiny model with random weights and two layers. The
    conformance suite uses them, since a test in which nothing happens proves nothing."""
    negligible: ClassVar[Mapping[str, Any]] = {}
    """Settings under which everything of the method runs and rounding is all that it changes. ``keepsight verify`` uses
    them, since a strength of 0 skips what could be wrong."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Before the generated __init__, whose TypeError knows of no neighbouring name
        for name in kwargs:
            if name not in cls.__dataclass_fields__:
                raise UnknownParameter(unknown_parameter(cls, name))
        return super().__new__(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """A recipe is no logits processor.

        Raises:
            InputError: always; the message shows how to make a processor of the recipe.
        """
        raise InputError(
            f"{self!r} is a recipe and no logits processor: pass logits_processor=[{type(self).__name__}(…).processor(model,"
            " inputs)], or open a block, `with mitigate(model, …)`"
        )

    def __post_init__(self) -> None:
        for item in self.parameters():
            _validate(self.name(), item, getattr(self, item.name))

    @classmethod
    def name(cls) -> str:
        """The name in spec strings: the class name in lower case."""
        return cls.__name__.lower()

    @classmethod
    def parameters(cls) -> tuple[Field[Any], ...]:
        """The settings, in the order of the class."""
        return fields(cls)

    @classmethod
    def spec_name(cls) -> str:
        """What names the class in a spec: ``name()`` within this package, ``package.module:Class`` elsewhere."""
        if cls.__module__.startswith("keepsight."):
            return cls.name()
        return f"{cls.__module__}:{cls.__qualname__}"

    @property
    def spec(self) -> str:
        """The recipe as a spec string, what goes without saying left out: ``m3id:decay=0.05,gate=0.9``."""
        values = {item.name: getattr(self, item.name) for item in self.parameters()}
        for item in self.parameters():
            shorter = {name: value for name, value in values.items() if name != item.name}
            if type(self)(**shorter) == self:
                values = shorter
        written = ",".join(f"{name}={_write(value)}" for name, value in values.items())
        return self.spec_name() + (":" + written if written else "")

    @abstractmethod
    def off(self) -> Self:
        """The same recipe at zero strength: it changes nothing."""

    @abstractmethod
    def parts(self, target: Target) -> Iterable[Part]:
        """What the method is made of on ``target``, made anew for one generation; nothing where the recipe is off.

        Args:
            target: the model and the inputs of the generation, to be read and not changed.

        Raises:
            UnsupportedModel: the model lacks what the method needs.
            InvalidParameter: a setting that does not fit the model, such as a layer that it does not have.
        """

    def refusal(self, target: Target) -> str | None:
        """Why this recipe cannot run on a model of this kind, in a clause; None where it can.

        A method declares here what it cannot be defined on, such as models that see the picture by cross-attention. It
        is asked before anything is put in place, and its answer becomes an ``UnsupportedModel``.
        """
        return None

    def attach(self, target: Target) -> AbstractContextManager[list[LogitsProcessor]]:
        """The method in place for one generation on ``target``, with the processors that belong into ``generate``.

        Raises:
            UnsupportedModel: the model lacks what the method needs.
            NoImageTokens: a prompt holds no picture.
        """
        # An engine stands above the methods in the order of imports; this is the one exception
        from keepsight.engines import default

        return default().open(target, [self])

    def processor(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> LogitsProcessor:
        """A fresh logits processor for one ``model.generate(**inputs, logits_processor=[…])``.

        Args:
            model: any decoder-only image-text-to-text model of transformers.
            inputs: what the model's processor returned, the same mapping that goes to ``generate``: ``input_ids``
                ``(batch, prompt)``, left-padded, with ``attention_mask`` and the image tensors.

        Raises:
            NeedsBlock: the method also acts inside the model, which only a block such as ``mitigate`` can prepare.
            UnsupportedModel: the model lacks what the method needs.
            NoImageTokens: a prompt holds no picture.
        """
        from keepsight.engines import default
        from keepsight.target import Target

        return default().processor(Target(model, inputs), self)


def _validate(method: str, item: Field[Any], value: Any) -> None:
    kind = str(item.type)
    where = f"{method}: {item.name}={value!r}"
    if value is None:
        if "None" in kind:
            return
        raise InvalidParameter(f"{where} must be {_wanted(kind, item)}")
    if kind == "bool" or item.metadata["choices"]:
        if not isinstance(value, bool if kind == "bool" else str) or value not in (
            item.metadata["choices"] or (True, False)
        ):
            raise InvalidParameter(f"{where} must be {_wanted(kind, item)}")
        return
    if kind.startswith("str"):
        if not isinstance(value, str) or not value:
            raise InvalidParameter(f"{where} must be a text")
        return
    if kind.startswith("tuple"):
        if not isinstance(value, tuple) or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
            raise InvalidParameter(f"{where} must be a tuple of whole numbers")
        if not all(map(_fits, value)):
            raise InvalidParameter(f"{where} must be whole numbers of at most 64 bits")
        return
    whole = kind.startswith("int")
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or (whole and not isinstance(value, int))
    ):
        raise InvalidParameter(f"{where} must be {_wanted(kind, item)}")
    if isinstance(value, int) and not _fits(value):
        raise InvalidParameter(f"{where} must be a number of at most 64 bits")
    low, high = item.metadata["low"], item.metadata["high"]
    if not math.isfinite(value) or not low <= value <= high:
        raise InvalidParameter(f"{where} must be {_wanted(kind, item)}")


def _fits(value: int) -> bool:
    """Whether tensors and generators of random numbers can hold it."""
    return -(2**63) <= value < 2**63


def _wanted(kind: str, item: Field[Any]) -> str:
    if kind == "bool":
        return "true or false"
    if choices := item.metadata["choices"]:
        return "one of " + ", ".join(choices)
    number = "a whole number" if kind.startswith("int") else "a finite number"
    low, high = item.metadata["low"], item.metadata["high"]
    if math.isinf(low) and math.isinf(high):
        return number
    if math.isinf(high):
        return f"{number}, {low:g} or more"
    return f"{number} from {low:g} to {high:g}"


_ESCAPED = "%+,"
"""What would end a text within a spec string, such as the path of a file; ``%`` itself begins an escape."""


def _write(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return "/".join(str(v) for v in value)
    if isinstance(value, str):
        # Space around a value is stripped, and the word none stands for None. A space within it may stay
        inner = value.strip(" ")
        before, after = (value.index(inner), len(value.rstrip(" "))) if inner else (len(value), len(value))
        escaped = "".join(
            quote(one)
            if one in _ESCAPED or (one.isspace() and not (one == " " and before <= i < after))
            else one
            for i, one in enumerate(value)
        )
        return f"%{ord(value[0]):02X}{value[1:]}" if value.lower() == "none" else escaped
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace("e+", "e")


def read_value(method: type[Method], name: str, text: str) -> Any:
    """One ``name=text`` of a spec string as the value its parameter takes.

    Raises:
        InvalidParameter: the text is no value of the parameter's type.
    """
    kind = str(next(item.type for item in method.parameters() if item.name == name))
    if text.lower() == "none" and "None" in kind:
        return None
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind.startswith("str"):
            return unquote(text)
        if kind.startswith("tuple"):
            return tuple(int(part) for part in text.split("/") if part)
        return int(text) if kind.startswith("int") else float(text)
    except (ValueError, KeyError):
        wanted = (
            "whole numbers joined with /"
            if kind.startswith("tuple")
            else "true or false"
            if kind == "bool"
            else "a number"
        )
        raise InvalidParameter(f"{method.name()}: {name}={text!r} must be {wanted}") from None


def unknown_parameter(method: type[Method], name: str) -> str:
    """The message for a parameter that ``method`` does not have."""
    return f"{method.name()} has no parameter {name!r}: {did_you_mean(name, _names(method))}"


def _names(method: type[Method]) -> Iterator[str]:
    return (item.name for item in method.parameters())
