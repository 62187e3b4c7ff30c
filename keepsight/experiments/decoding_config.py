"""How answers are decoded, written as one string: the strategy that chooses tokens, and the methods that act
meanwhile.

``greedy`` · ``sample:temperature=0.7,top_p=0.9`` · ``beam:num_beams=5`` · ``m3id:decay=0.05`` · ``pai+vhr`` ·
``sample:temperature=0.7+vcd:alpha=0.5``
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from keepsight.errors import (
    InvalidParameter,
    UnknownMethod,
    UnknownParameter,
    did_you_mean,
)
from keepsight.inference.generation import Generation
from keepsight.method import Method
from keepsight.registry import methods, parse_all

Kind = Literal["greedy", "sample", "beam"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_TAKES: dict[str, dict[str, type]] = {
    "greedy": {},
    "sample": {"temperature": float, "top_p": float},
    "beam": {"num_beams": int},
}


@dataclass(frozen=True, kw_only=True)
class DecodingStrategy:
    """How tokens are chosen.

    Args:
        kind: ``greedy`` takes the most probable token, ``sample`` draws one, ``beam`` is a beam search.
        temperature: what scores are divided by before a token is drawn, above 0, default 1; only ``sample`` reads it.
        top_p: the share of probability that tokens are drawn from, in (0, 1]; the default, 1, keeps all tokens. Only
            ``sample`` reads it. A checkpoint's own top-k is not applied.
        num_beams: the number of beams, 2 or more, default 5; only ``beam`` reads it.

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
            # Generation checks the ranges, so that a run and the other commands refuse the same values.
            Generation(sample=True, temperature=self.temperature, top_p=self.top_p)

    @property
    def spec(self) -> str:
        """The strategy as a string without the parameters that have their defaults, such as ``sample:temperature=0.7``."""
        default = DecodingStrategy(kind=self.kind)
        names = [name for name in _TAKES[self.kind] if getattr(self, name) != getattr(default, name)]
        # A plus joins methods, so an exponent is written without one, as in the specs of methods.
        values = ",".join(f"{name}={getattr(self, name)}".replace("e+", "e") for name in names)
        return self.kind + (":" + values if values else "")


@dataclass(frozen=True)
class DecodingConfig:
    """How answers are decoded.

    Args:
        strategy: how tokens are chosen.
        methods: the methods that act meanwhile, in this order; none for the plain model.
    """

    strategy: DecodingStrategy
    methods: tuple[Method, ...] = ()

    @property
    def name(self) -> str:
        """The canonical string, which runs record. Beside a method, greedy search is left out of it."""
        if not self.methods:
            return self.strategy.spec
        # Greedy search is the default of every comparison, so the name of a method alone is shorter and usual.
        first = [] if self.strategy == DecodingStrategy() else [self.strategy.spec]
        return "+".join([*first, *(method.spec for method in self.methods)])

    @property
    def plain(self) -> bool:
        """Whether no method acts."""
        return not self.methods


GREEDY = DecodingConfig(DecodingStrategy())


def check_joiner(text: str) -> None:
    """Refuse methods that are joined with something other than ``+``.

    Raises:
        InvalidParameter: the text holds another joiner; the message shows the text as it should be written.

    >>> check_joiner("m3id:decay=0.05 vhr")
    Traceback (most recent call last):
    ...
    keepsight.errors.InvalidParameter: methods that act together are joined with +: write 'm3id:decay=0.05+vhr'
    """
    # A joiner stands before a method, a strategy, or somebody's own class, which is written package.module:Class.
    names = "|".join([*map(re.escape, methods()), *KINDS, r"[a-z_]\w*(?:\.\w+)+:[a-z_]\w*"])
    # What follows a wrong joiner must be a whole name, since a value such as the path of a file may hold spaces and commas.
    given = re.sub(r"\s*\+\s*", "+", text.strip())
    fixed = re.sub(rf"\s*[\s,;&]\s*(?=(?:{names})(?:[:+\s,;&]|$))", "+", given, flags=re.IGNORECASE)
    if fixed != given:
        raise InvalidParameter(f"methods that act together are joined with +: write {fixed!r}")


def parse_strategy(text: str) -> DecodingStrategy:
    """The strategy that a string names: ``greedy``, ``sample[:temperature=T,top_p=P]``, ``beam[:num_beams=N]``.

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
        # A dictionary would keep the later of two values without a word.
        if key in values:
            raise InvalidParameter(f"{text!r}: {key} is given twice")
        try:
            values[key] = takes[key](value)
        except ValueError:
            wanted = "a whole number" if takes[key] is int else "a number"
            raise InvalidParameter(f"{kind}: {key}={value!r} must be {wanted}") from None
    return DecodingStrategy(kind=kind, **values)  # type: ignore[arg-type]


def parse_config(text: str, default: DecodingStrategy | None = None) -> DecodingConfig:
    """The configuration that a string names: a strategy, methods, or a strategy and then methods, joined with ``+``.

    Args:
        text: the string, such as ``sample+vcd:alpha=0.5``.
        default: the strategy where the string names none; None is greedy.

    >>> parse_config("sample+vcd:alpha=0.5").name
    'sample+vcd:alpha=0.5'

    Raises:
        UnknownMethod, UnknownParameter, InvalidParameter: as ``parse_all`` and ``parse_strategy``.
        ConflictingMethods: a method is named twice.
    """
    if not text.strip():
        raise UnknownMethod("an empty method: name one, or a decoding such as sample")
    check_joiner(text)
    pieces = [piece.strip() for piece in text.split("+")]
    # An empty piece is a plus at the start or at the end, or two in a row.
    if not all(pieces):
        raise InvalidParameter(f"{text!r}: + joins two methods, such as m3id+vhr")
    # A strategy applies to the whole generation, so it can only stand once, and it stands first.
    kinds = [piece.partition(":")[0] for piece in pieces]
    if twice := next((kind for kind in kinds[1:] if kind in KINDS), None):
        raise InvalidParameter(f"{text!r}: write {twice} first, and once")
    strategy = default or DecodingStrategy()
    if kinds[0] in KINDS:
        # An exponent with a plus, as in temperature=1e+3, was split into two pieces above. The mistake gets a message
        # of its own, because the parts alone would be reported as an unknown method 3.
        number = pieces[1].partition(",")[0] if len(pieces) > 1 else ""
        if number.isdigit() and pieces[0][-1:] in ("e", "E"):
            written = f"{pieces[0].rpartition('=')[2]}{number}"
            raise InvalidParameter(f"{text!r}: + joins methods; write the exponent without it: {written}")
        strategy = parse_strategy(pieces.pop(0))
        if not pieces:
            return DecodingConfig(strategy)
    elif len(pieces) == 1 and kinds[0].isidentifier() and kinds[0].lower() not in methods():
        # The registry knows methods alone, and would not suggest a strategy that was misspelt.
        raise UnknownMethod(f"no method {kinds[0]!r}: {did_you_mean(kinds[0], [*methods(), *KINDS])}")
    return DecodingConfig(strategy, parse_all("+".join(pieces)))


def build_configs(
    specs: Iterable[str], baselines: Sequence[str] | None = None, decode: str = "greedy"
) -> tuple[DecodingConfig, ...]:
    """The configurations of a run, those of the plain model first.

    Args:
        specs: configurations, see ``parse_config``.
        baselines: strategies of the plain model. None takes the strategy of ``decode``, an empty sequence leaves the
            plain model out.
        decode: the strategy of every configuration that names none.

    Raises:
        InvalidParameter: a configuration is listed twice, or there is none.
        UnknownMethod, UnknownParameter, ConflictingMethods: as ``parse_config``.
    """
    default = parse_strategy(decode)
    plain = [default] if baselines is None else [parse_strategy(spec) for spec in baselines]
    configs = [DecodingConfig(strategy) for strategy in plain] + [
        parse_config(spec, default) for spec in specs
    ]
    if not configs:
        raise InvalidParameter("nothing to run: name a method, or leave the baseline in")
    # Runs tell configurations apart by their canonical names, so two spellings of one configuration are the same one.
    names = [config.name for config in configs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        also = " (the baseline is part of a run anyway)" if twice in names[: len(plain)] else ""
        raise InvalidParameter(f"{twice} is listed twice: name it once{also}")
    return tuple(configs)
