"""Chooses a method's settings: tries every point of a grid on a validation benchmark, and takes the best that breaks no
floor.

A floor is about the figure itself, not about its interval: a setting passes if its figure is not further below the
baseline's than allowed. A setting looks better on the pictures on which it was chosen than on others, so a report needs
other pictures. Test splits are therefore refused here, and ``compare`` refuses the run of a tuning and whatever shares
questions with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from keepsight.errors import InputError, InvalidParameter, UnknownParameter, did_you_mean
from keepsight.eval.stats.bootstrap import Difference
from keepsight.experiments.benchmark import Benchmark
from keepsight.experiments.compare import LOWER_IS_BETTER, Comparison, Row
from keepsight.experiments.decoding_config import DecodingConfig, parse_config
from keepsight.experiments.merge_runs import TUNING, TunedOnReported, shared
from keepsight.experiments.store import Run
from keepsight.method import Method, read_value

# Reports use these splits, so nothing may be chosen on them.
TEST_SPLITS = ("test", "test-shifted")
GOALS: Mapping[str, str] = {"chair": "chair_i", "pope": "f1"}
"""The figure that the choice is about: the lowest CHAIR_i or the highest F1."""
FLOORS: Mapping[str, tuple[str, ...]] = {
    "chair": ("chair_s", "chair_i", "recall", "precision", "f1", "length", "mentions"),
    "pope": ("accuracy", "precision", "recall", "f1", "yes_ratio"),
}
"""The figures that a floor can be about, by benchmark."""
COUNTED = frozenset({"length", "mentions"})
"""Figures that are numbers; all others are fractions, which users write in points."""


class BadGrid(InputError):
    """A grid or a floor is not written as it should be."""


class NothingPasses(InputError):
    """No setting of the grid keeps the floors."""


@dataclass(frozen=True)
class Floor:
    """How far a figure may fall below the baseline's.

    Args:
        figure: the name of the figure, one of `FLOORS`.
        change: the lowest difference to the baseline that passes: a fraction, or a number for length and mentions.
    """

    figure: str
    change: float

    @property
    def text(self) -> str:
        """The floor as it is written on the command line, such as ``recall=-1``."""
        return f"{self.figure}={self.change * (1 if self.figure in COUNTED else 100):g}"

    def keeps(self, difference: Difference) -> bool:
        """Whether a setting with this difference to the baseline passes. A setting without the figure does not."""
        # The tolerance lets a loss of exactly one point pass a floor of one point, although rounding may make it larger.
        return difference.value is not None and difference.value >= self.change - 1e-12


@dataclass(frozen=True)
class Point:
    """A setting of the grid: its row in the comparison, and the floors that it breaks."""

    row: Row
    broken: tuple[Floor, ...]


@dataclass(frozen=True)
class Tuning:
    """What ``pick`` found.

    Attributes:
        comparison: the baseline and all settings of the grid.
        goal: the figure that the choice is about.
        floors: the floors that a setting has to keep.
        points: the settings in the order of the grid.
        chosen: the best setting that keeps all floors; None where every setting breaks one.
    """

    comparison: Comparison
    goal: str
    floors: tuple[Floor, ...]
    points: tuple[Point, ...]
    chosen: Point | None

    def to_json(self) -> dict[str, Any]:
        """The choice, the floors and the whole comparison as JSON can hold them."""
        return {
            "chosen": None if self.chosen is None else self.chosen.row.method,
            "goal": self.goal,
            "floors": [{"figure": floor.figure, "change": floor.change} for floor in self.floors],
            "refused": {
                point.row.method: [floor.figure for floor in point.broken]
                for point in self.points
                if point.broken
            },
            **self.comparison.to_json(),
        }


def parse_grid(text: str) -> tuple[str, tuple[str, ...]]:
    """An axis of a grid, such as ``decay=0.01,0.02``, as a name and the texts of its values.

    Raises:
        BadGrid: the text is written otherwise, or a value is there twice.
    """
    # Only the first equals sign parts the name from its values, since a value may hold one.
    name, equals, rest = (piece.strip() for piece in text.partition("="))
    values = tuple(piece.strip() for piece in rest.split(","))
    if not equals or not name or not all(values):
        raise BadGrid(f"--grid {text!r}: write parameter=value,value,…")
    if twice := next((value for value in values if values.count(value) > 1), None):
        raise BadGrid(f"--grid {text!r}: {twice} is there twice")
    return name, values


def parse_floor(text: str, bench: str) -> Floor:
    """A floor such as ``recall=-1``, which lets recall lose one point. For length and mentions the number is taken as it
    is.

    Raises:
        BadGrid: the text is written otherwise, or the benchmark has no such figure.
    """
    name, equals, value = (piece.strip() for piece in text.partition("="))
    known = FLOORS[bench]
    if not equals:
        raise BadGrid(f"--floor {text!r}: write figure=points, such as recall=-1")
    if name not in known:
        raise BadGrid(f"--floor {text!r}: no figure {name!r} of {bench}; {did_you_mean(name, known)}")
    try:
        points = float(value)
    except ValueError:
        points = math.nan
    if not math.isfinite(points):
        raise BadGrid(f"--floor {text!r}: {value!r} must be a number of points, such as -1")
    return Floor(name, points if name in COUNTED else points / 100)


def settings(spec: str, grid: Sequence[str]) -> tuple[DecodingConfig, ...]:
    """Every point of the grid over ``spec``; the last axis varies fastest.

    Args:
        spec: a decoding configuration with at least one method; what it sets and the grid does not stays as it is.
        grid: axes as ``parameter=value,value,…``, or ``method.parameter=…`` where several methods have the parameter.

    Raises:
        BadGrid: there is no axis, an axis is given twice or is malformed, several methods have the parameter, or two
            settings are equal.
        UnknownMethod, UnknownParameter, InvalidParameter: as ``parse_config``.
    """
    way = parse_config(spec)
    if way.plain:
        raise BadGrid(f"{spec!r} has nothing to tune: name a method")
    if not grid:
        raise BadGrid("there is no grid: give --grid parameter=value,value,…")
    axes = [(*_owner(way, name), values) for name, values in map(parse_grid, grid)]
    names = [(at, name) for at, name, _ in axes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadGrid(f"--grid {twice[1]} is given twice: write all its values in one")
    found = []
    for values in product(*(axis[2] for axis in axes)):
        methods = list(way.methods)
        # A method is frozen, so its changes from all axes are collected first, and it is made anew once.
        chosen: dict[int, dict[str, Any]] = {}
        for (at, name, _), value in zip(axes, values, strict=True):
            chosen.setdefault(at, {})[name] = read_value(type(methods[at]), name, value)
        for at, changes in chosen.items():
            methods[at] = replace(methods[at], **changes)
        found.append(DecodingConfig(way.strategy, tuple(methods)))
    # Two values may be two spellings of one number, such as 0.1 and 0.10, which only the canonical specs show.
    specs = [one.name for one in found]
    if same := next((name for name in specs if specs.count(name) > 1), None):
        raise BadGrid(f"two points of the grid are the same setting, {same}: leave one out")
    return tuple(found)


def check_split(bench: Benchmark) -> None:
    """Refuse to choose settings on a split of the demo world that reports use.

    Raises:
        TunedOnReported: the split is such a one.
    """
    if bench.split in TEST_SPLITS:
        raise TunedOnReported(f"{bench.split} is what keepsight compare reports: tune on val or val-shifted")


def check_unreported(bench: Benchmark, reported: Sequence[Run]) -> None:
    """Refuse to choose settings on questions that are reported.

    Raises:
        TunedOnReported: the benchmark shares questions, or pictures of the user's, with one of the runs ``reported``.
    """
    for run in reported:
        if found := shared(bench.split, bench.items, run.manifest["bench"]["split"], run.items):
            raise TunedOnReported(
                f"{found} of this bench are in {run.folder}, which is reported: tune on others"
            )


def pick(comparison: Comparison, floors: Sequence[Floor]) -> Tuning:
    """The best setting that keeps every floor: the one with the lowest CHAIR_i or the highest F1. Among equals the one
    with the higher recall is chosen, and then the first in the grid.

    Args:
        comparison: the plain model as the baseline, and all settings of the grid.
        floors: what a setting has to keep.

    Raises:
        InvalidParameter: settings cannot be chosen on this benchmark.
    """
    goal = GOALS.get(comparison.bench)
    if goal is None:
        raise InvalidParameter(f"settings can be chosen on chair and pope, not on {comparison.bench}")
    points = tuple(
        Point(row, tuple(floor for floor in floors if not floor.keeps(row.differences[floor.figure])))
        for row in comparison.rows
        # The baseline has no differences: settings are compared with it, and it cannot be chosen.
        if row.differences is not None
    )
    # ``min`` takes the first of equal settings, which keeps the order of the grid.
    sign = 1 if goal in LOWER_IS_BETTER else -1

    def rank(point: Point) -> tuple[float, float]:
        """The key by which the best setting is the smallest."""
        value, recall = point.row.figures[goal].value, point.row.figures["recall"].value
        return sign * (value or 0), -(recall or 0)

    # A setting without the figure, because there was nothing to count, cannot be compared with others.
    able = [point for point in points if not point.broken and point.row.figures[goal].value is not None]
    return Tuning(comparison, goal, tuple(floors), points, min(able, key=rank) if able else None)


def mark(manifest: Mapping[str, Any], tuning: Tuning, spec: str, grid: Sequence[str]) -> dict[str, Any]:
    """The manifest of the run with what was chosen on it, which ``compare`` looks for to refuse a report on the same
    questions."""
    return {
        **manifest,
        TUNING: {
            "method": spec,
            "grid": list(grid),
            "goal": tuning.goal,
            "floors": [floor.text for floor in tuning.floors],
            "chosen": None if tuning.chosen is None else tuning.chosen.row.method,
        },
    }


def _owner(way: DecodingConfig, name: str) -> tuple[int, str]:
    """The method that has a parameter, as its position in the configuration, and the bare name of the parameter.

    Raises:
        UnknownParameter: no method has it, or there is no such method.
        BadGrid: several methods have it, and the name does not say which is meant.
    """
    # A name without a dot leaves the method empty, and every method with the parameter is an owner.
    method, dot, parameter = name.rpartition(".")
    names = [one.name() for one in way.methods]
    if dot and method not in names:
        raise UnknownParameter(f"--grid {name}: no method {method!r} here; {did_you_mean(method, names)}")
    owners = [
        at
        for at, one in enumerate(way.methods)
        if parameter in _parameters(one) and (not dot or names[at] == method)
    ]
    if not owners:
        known = sorted(
            {each for one in way.methods if not dot or one.name() == method for each in _parameters(one)}
        )
        where = method or "+".join(names)
        raise UnknownParameter(f"{where} has no parameter {parameter!r}: {did_you_mean(parameter, known)}")
    # Setting the parameter in all of them would be a guess at what was meant.
    if len(owners) > 1:
        several = " and ".join(f"{names[at]}.{parameter}" for at in owners)
        raise BadGrid(f"--grid {name} is a parameter of several methods: write {several}")
    return owners[0], parameter


def _parameters(method: Method) -> list[str]:
    """The names of a method's parameters."""
    return [item.name for item in method.parameters()]
