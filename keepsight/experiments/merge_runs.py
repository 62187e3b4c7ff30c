"""Merges several run folders: checks that they asked the same model the same questions, and says whose answers are used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keepsight.errors import InputError, did_you_mean
from keepsight.experiments.benchmark import USER, ItemRecord
from keepsight.experiments.scores import texts
from keepsight.experiments.store import Run

TUNING = "tuning"
"""The key of a manifest that says which settings were chosen on the questions of the run."""
# The batch and the seed may differ: neither is what was asked. ``compare`` remarks on baselines that differ for such
# reasons.
_SAME = ("prompt", "raw_prompt", "max_new_tokens", "dtype")


class Incomparable(InputError):
    """The runs differ in more than the method; the message names what differs."""


class NoBaseline(InputError):
    """The runs hold no baseline, different baselines, or not the method that was named as one."""


class TunedOnReported(InputError):
    """Settings were chosen on the very questions that are to be reported."""


@dataclass(frozen=True)
class MethodAnswers:
    """A method, and the run whose answers are used for it."""

    method: str
    run: Run


@dataclass(frozen=True)
class MergedRuns:
    """The runs that are compared.

    Attributes:
        runs: the runs, the one that was begun first in front, whatever order they were given in.
        sources: each method with the run whose answers are used, the baseline first.
        ids: the ids of the questions that all methods answered, in the order of the benchmark.
        notes: what a reader should know of how the runs were put together, a sentence each.
    """

    runs: tuple[Run, ...]
    sources: tuple[MethodAnswers, ...]
    ids: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def baseline(self) -> MethodAnswers:
        """The method that the others are compared with."""
        return self.sources[0]


def merge_runs(runs: Sequence[Run], baseline: str | None = None) -> MergedRuns:
    """Put runs side by side.

    Where several runs hold the same baseline, the answers of the run that was begun first are used. The order in which
    the runs are given does not matter.

    Args:
        runs: one run or more.
        baseline: the method that the others are compared with; None takes the one that the runs themselves name.

    Raises:
        Incomparable: the runs have other questions, another model or other settings; two runs answered one method
            differently; a folder is given twice; or no question was answered by all methods.
        NoBaseline: the runs have no baseline, different ones, or not the one that was named.
    """
    if not runs:
        raise Incomparable("there is no run to compare: name a folder that keepsight run --out made")
    ordered = sorted(runs, key=lambda run: (str(run.manifest.get("created", "")), str(run.folder)))
    places = [run.folder.resolve() for run in ordered]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise Incomparable(f"{twice} is given twice: name each folder once")
    for other in ordered[1:]:
        check_same(ordered[0], other)
    first = _baseline(ordered, baseline)
    # A dictionary keeps its order, so that the entry made here puts the baseline in front of the methods of every run.
    holders: dict[str, list[Run]] = {first: []}
    for run in ordered:
        for method in run.methods:
            holders.setdefault(method, []).append(run)
    notes: list[str] = []
    for method, those in holders.items():
        notes += _repeated(method, those, method == first)
    sources = tuple(MethodAnswers(method, those[0]) for method, those in holders.items())
    answered = [texts(source.run, source.method).keys() for source in sources]
    ids = tuple(item.id for item in ordered[0].items if all(item.id in known for known in answered))
    if not ids:
        raise Incomparable("there is no question that all methods answered: finish the runs first")
    return MergedRuns(tuple(ordered), sources, ids, (*notes, *_machines(ordered)))


def check_same(one: Run, other: Run) -> None:
    """Check that two runs asked the same model the same questions, methods aside.

    Raises:
        Incomparable: they did not; the message names up to three differences.
    """
    # The two runs are passed in both orders, because which facts can be compared depends on what both manifests hold.
    before, after = dict(_facts(one, other)), dict(_facts(other, one))
    differ = [name for name in before if before[name] != after[name]]
    if differ:
        facts = "; ".join(f"{name}: {_short(before[name])} and {_short(after[name])}" for name in differ[:3])
        raise Incomparable(
            f"{one.folder} and {other.folder} differ in more than the method ({facts}): compare runs of one bench, one model"
            " and one prompt"
        )


def check_not_tuned_on(merged: MergedRuns, tunings: Sequence[Run]) -> tuple[str, ...]:
    """What leaked: one sentence for each run on which settings were chosen and that shares questions with what is
    reported.

    Args:
        merged: the runs that are reported.
        tunings: runs of ``keepsight tune`` that chose settings used here, besides those among the reported runs.
    """
    found = []
    for run in merged.runs:
        if (tuned := run.manifest.get(TUNING)) is not None:
            found.append(f"{run.folder} is the run on which {_chosen(tuned)} chosen")
    for run in tunings:
        # A tuning that is itself among the reported runs was named by the loop above.
        if run.folder.resolve() in {one.folder.resolve() for one in merged.runs}:
            continue
        if shared := overlap(merged.runs[0], run):
            found.append(
                f"{run.folder}, on which {_chosen(run.manifest.get(TUNING))} chosen, shares {shared}"
            )
    return tuple(found)


def overlap(one: Run, other: Run) -> str:
    """What two runs share, in words; empty if they share nothing."""
    splits = one.manifest["bench"]["split"], other.manifest["bench"]["split"]
    return shared(splits[0], one.items, splits[1], other.items)


def shared(split: str, items: Sequence[ItemRecord], other_split: str, others: Sequence[ItemRecord]) -> str:
    """What two benchmarks share, in words: questions of the demo world, or pictures of the user; empty if they share
    nothing.

    Args:
        split, items: the split and the questions of one benchmark.
        other_split, others: those of the other benchmark.
    """
    # Of the user's pictures, the pictures are counted, since another question about the same picture is no new data. In
    # the demo world another seed gives the same image ids to other pictures, while the ids of questions hold the seed.
    if USER in (split, other_split):
        found = len({item.image_id for item in items} & {item.image_id for item in others})
        return _many(found, "picture")
    found = len({item.id for item in items} & {item.id for item in others})
    return _many(found, "question")


def _many(found: int, what: str) -> str:
    """A count with its noun, such as ``2 pictures``; empty for none."""
    return f"{found} {what}{'' if found == 1 else 's'}" if found else ""


def _chosen(tuned: Mapping[str, Any] | None) -> str:
    """The subject and verb of a sentence about what a tuning chose, such as ``m3id was``."""
    spec = (tuned or {}).get("chosen")
    return f"{spec} was" if spec else "settings were"


def _baseline(runs: Sequence[Run], wanted: str | None) -> str:
    """The method that is the baseline. Raises ``NoBaseline``."""
    known = list(dict.fromkeys(method for run in runs for method in run.methods))
    if wanted is not None:
        if wanted not in known:
            raise NoBaseline(f"no method {wanted!r} in these runs: {did_you_mean(wanted, known)}")
        return wanted
    own = list(dict.fromkeys(run.baseline for run in runs if run.baseline is not None))
    if len(own) == 1:
        return own[0]
    what = f"different baselines ({', '.join(own)})" if own else "no baseline"
    raise NoBaseline(f"the runs have {what}: choose one with --baseline, of {', '.join(known)}")


def _facts(run: Run, other: Run) -> Iterator[tuple[str, Any]]:
    """What must be equal in two runs for their methods to be comparable: names of facts, and their values in ``run``."""
    bench = run.manifest["bench"]
    yield "bench", bench["name"]
    yield "split", bench["split"]
    yield "questions (digest)", bench["digest"]
    yield "family", bench.get("family")
    mine, theirs = (one.manifest.get("weights") or {} for one in (run, other))
    known = [name for name in ("sha256", "revision") if mine.get(name) and theirs.get(name)]
    # One checkpoint may lie in two folders, so its digest or commit decides where both runs know it, and its name does not.
    if known:
        yield "weights", mine[known[0]]
    else:
        yield "model", run.manifest.get("model")
        yield "weights", {name: value for name, value in mine.items() if value}
    for name in _SAME:
        yield name, run.manifest.get(name)


def _repeated(method: str, runs: Sequence[Run], baseline: bool) -> Iterator[str]:
    """The remarks on a method that several runs hold.

    Raises:
        Incomparable: runs hold other answers of a method that is not the baseline.
    """
    first = texts(runs[0], method)
    for other in runs[1:]:
        again = texts(other, method)
        both = first.keys() & again.keys()
        differ = sum(first[one] != again[one] for one in both)
        # The baseline is run again beside every new method, and its answers may differ by rounding on another machine, so
        # that a difference there is remarked on and not refused.
        if differ and not baseline:
            raise Incomparable(
                f"{runs[0].folder} and {other.folder} both hold {method}, with other answers to {differ} of {len(both)}"
                " questions: leave one of them out"
            )
        if differ:
            yield (
                f"{method} answered {differ} of {len(both)} questions otherwise in {other.folder} than in {runs[0].folder},"
                f" whose answers are used; is the difference of machines, batches or seeds as large as a method's?"
            )


def _machines(runs: Sequence[Run]) -> Iterator[str]:
    """One remark for each run whose sessions ran on different hardware, since its cost then is a mixture."""
    for run in runs:
        sessions = run.manifest.get("sessions") or ()
        kinds = {json.dumps(one.get("hardware"), sort_keys=True) for one in sessions}
        if len(kinds) > 1:
            yield f"{run.folder} ran on {len(kinds)} kinds of hardware: its cost is a mixture of theirs"


def _short(value: Any) -> str:
    """A value as JSON of at most about 70 characters, for a message of one line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 70 else text[:67] + "…"
