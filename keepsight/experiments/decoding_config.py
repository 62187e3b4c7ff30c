"""A way of decoding: how tokens are chosen, and the methods that act meanwhile, written as one spec string.

``greedy`` · ``sample:temperature=0.7,top_p=0.9`` · ``beam:num_beams=5`` · ``m3id:decay=0.05`` · ``sample vcd`` · ``pai vhr``
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from keepsight.errors import (
    ConflictingMethods,
    InvalidParameter,
    UnknownMethod,
    UnknownParameter,
    did_you_mean,
)
from keepsight.inference.generation import Generation
from keepsight.method import Method
from keepsight.registry import methods, parse

Kind = Literal["greedy", "sample", "beam"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_TAKES: dict[str, dict[str, type]] = {
    "greedy": {},
    "sample": {"temperature": float, "top_p": float},
    "beam": {"num_beams": int},
}


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How tokens are chosen.

    Args:
        kind: ``greedy`` takes the best token, ``sample`` draws one, ``beam`` searches.
        temperature: above 0, default 1; of ``sample``.
        top_p: in (0, 1], default 1: all tokens; of ``sample``. A checkpoint's own top-k is not applied.
        num_beams: 2 or more, default 5; of ``beam``.

    Raises:
        InvalidParameter: a value is out of its range.
    """

    kind: Kind = "greedy"
    temperature: float = 1.0
    top_p: float = 1.0
    num_beams: int = 5

    def __post_init__(self) -> None:
        if self.kind == "beam" and self.num_beams < 2:
            raise InvalidParameter(f"beam: num_beams={self.num_beams} must be a whole number, 2 or more")
        if self.kind == "sample":
            Generation(sample=True, temperature=self.temperature, top_p=self.top_p)

    @property
    def spec(self) -> str:
        """As a spec string, defaults left out: ``sample:temperature=0.7``."""
        default = Decoding(kind=self.kind)
        names = [name for name in _TAKES[self.kind] if getattr(self, name) != getattr(default, name)]
        values = ",".join(f"{name}={getattr(self, name)}" for name in names)
        return self.kind + (":" + values if values else "")


@dataclass(frozen=True)
class Way:
    """One way of decoding: how tokens are chosen, and the methods that act meanwhile, in this order."""

    decoding: Decoding
    methods: tuple[Method, ...] = ()

    @property
    def name(self) -> str:
        """The one spelling of it; ``greedy`` goes without saying beside a method."""
        if not self.methods:
            return self.decoding.spec
        said = [] if self.decoding == Decoding() else [self.decoding.spec]
        return " ".join([*said, *(method.spec for method in self.methods)])

    @property
    def plain(self) -> bool:
        """Whether the model is left as it is."""
        return not self.methods


GREEDY = Way(Decoding())


def parse_decoding(text: str) -> Decoding:
    """The decoding that a spec names: ``greedy``, ``sample[:temperature=T,top_p=P]``, ``beam[:num_beams=N]``.

    Raises:
        UnknownMethod, UnknownParameter: with the nearest names.
        InvalidParameter: a value is malformed, out of its range, or given twice.
    """
    kind, _, rest = text.strip().partition(":")
    if kind not in KINDS:
        raise UnknownMethod(f"no decoding {kind!r}: {did_you_mean(kind, KINDS)}")
    takes = _TAKES[kind]
    values: dict[str, float | int] = {}
    for part in filter(None, (piece.strip() for piece in rest.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InvalidParameter(f"{text!r}: write {part!r} as parameter=value")
        if key not in takes:
            hint = did_you_mean(key, takes) if takes else "it takes none"
            raise UnknownParameter(f"{kind} has no parameter {key!r}: {hint}")
        if key in values:
            raise InvalidParameter(f"{text!r}: {key} is given twice")
        try:
            values[key] = takes[key](value)
        except ValueError:
            wanted = "a whole number" if takes[key] is int else "a number"
            raise InvalidParameter(f"{kind}: {key}={value!r} must be {wanted}") from None
    return Decoding(kind=kind, **values)  # type: ignore[arg-type]


def parse_way(text: str, default: Decoding | None = None) -> Way:
    """The way that a spec names: a decoding, or methods, or a decoding and then methods, parted by spaces.

    Args:
        default: the decoding where the spec names none; greedy if not given.

    >>> parse_way("sample vcd:alpha=0.5").name
    'sample vcd:alpha=0.5'

    Raises:
        UnknownMethod, UnknownParameter, InvalidParameter: as ``parse`` and ``parse_decoding``.
        ConflictingMethods: a method is named twice.
    """
    pieces = text.split()
    if not pieces:
        raise UnknownMethod("an empty method: name one, or a decoding such as sample")
    decoding = default or Decoding()
    if pieces[0].partition(":")[0] in KINDS:
        decoding = parse_decoding(pieces.pop(0))
    known = methods()
    for piece in pieces:
        name = piece.partition(":")[0]
        if name in KINDS:
            raise InvalidParameter(f"{text!r}: write {name} first, and once")
        if name.lower() not in known:
            raise UnknownMethod(f"no method {name!r}: {did_you_mean(name, [*known, *KINDS])}")
    recipes = tuple(parse(piece) for piece in pieces)
    names = [recipe.name() for recipe in recipes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConflictingMethods(f"{text!r}: {twice} is named twice; its strength is a parameter")
    return Way(decoding, recipes)


def choose(
    specs: Iterable[str], baselines: Sequence[str] | None = None, decode: str = "greedy"
) -> tuple[Way, ...]:
    """The ways of a run, baselines first.

    Args:
        specs: ways, see ``parse_way``.
        baselines: decodings of the plain model; None is that of ``decode``, empty is none.
        decode: the decoding of every way that names none.

    Raises:
        InvalidParameter: a way is listed twice, or there is none.
    """
    default = parse_decoding(decode)
    plain = [default] if baselines is None else [parse_decoding(spec) for spec in baselines]
    ways = [Way(decoding) for decoding in plain] + [parse_way(spec, default) for spec in specs]
    if not ways:
        raise InvalidParameter("nothing to run: name a method, or leave the baseline in")
    names = [way.name for way in ways]
    if twice := next((name for name in names if names.count(name) > 1), None):
        also = " (the baseline is part of a run anyway)" if twice in names[: len(plain)] else ""
        raise InvalidParameter(f"{twice} is listed twice: name it once{also}")
    return tuple(ways)
