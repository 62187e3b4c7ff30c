"""The scores of a run's answers, and the sums behind them, which the bootstrap of a comparison draws again and again.

Only what was answered is scored. A failed or missing answer is counted as such, and never scored as an empty answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from keepsight.errors import InputError
from keepsight.eval.beaf import score as beaf
from keepsight.eval.beaf.files import Question
from keepsight.eval.chair import score as chair
from keepsight.eval.chair.captions import Caption
from keepsight.eval.chair.report import METRICS as CHAIR
from keepsight.eval.chair.report import Report
from keepsight.eval.image_ids import ImageId
from keepsight.eval.pope import score as binary
from keepsight.eval.pope.answer_parsers import Answer as YesNo
from keepsight.eval.pope.answer_parsers import check_parser
from keepsight.experiments.benchmark import ItemRecord
from keepsight.experiments.store import Run

Truth = Mapping[ImageId, Collection[str]]
Matrix = NDArray[np.float64]
Score = Report | Mapping[str, binary.YesNoReport] | beaf.BeafReport
"""What the scorer of a benchmark says: CHAIR's report, POPE's reports by split, or BEAF's report."""


class NotScorable(InputError):
    """The answers of a run cannot be scored: there is no answer, or it is not known what is in the pictures."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many questions of a run a method has answered, has failed on, and has yet to answer."""

    answered: int
    failed: int
    missing: int


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """The rules by which answers are scored.

    Args:
        family: the CHAIR family. None takes the one in which the run's truth was read, or else ``pattern``.
        parser: the rule that reads yes or no out of an answer, for POPE and BEAF.
        truth: the objects of each picture, for a CHAIR run that does not know them; it takes precedence over what the
            run knows.
    """

    family: str | None = None
    parser: str = "strict"
    truth: Truth | None = None


@dataclass(frozen=True)
class Sums:
    """A score as ratios of sums over pictures.

    Attributes:
        images: the pictures, sorted by their names; of BEAF the originals.
        columns: the names of the ratios.
        top, bottom: numerators and denominators, (images, columns).
    """

    images: tuple[ImageId, ...]
    columns: tuple[str, ...]
    top: Matrix
    bottom: Matrix


def count_answers(run: Run, method: str) -> Counts:
    """How many questions of a run a method has answered, has failed on, and has yet to answer."""
    answers = run.answers(method)
    failed = sum(answer.failed for answer in answers)
    return Counts(answered=len(answers) - failed, failed=failed, missing=len(run.items) - len(answers))


def texts(run: Run, method: str) -> dict[str, str]:
    """The answers of a method by the ids of their questions, without failed and missing ones."""
    return {answer.id: answer.answer for answer in run.answers(method) if answer.answer is not None}


def family_of(run: Run, scorer: Scorer) -> str:
    """The CHAIR family that a run is scored in.

    Raises:
        NotScorable: the scorer names another family than the one in which the run's truth was read.
        UnknownFamily: there is no family of this name.
    """
    # The family decides which objects were read out of reference captions, so a truth that was read in one family cannot
    # judge captions in another. Annotations that are given anew are not bound by that.
    fixed = None if scorer.truth is not None else run.manifest["bench"].get("family")
    family = scorer.family or fixed or "pattern"
    chair.check_family(family)
    if fixed not in (None, family):
        raise NotScorable(
            f"{run.folder}: what is in its pictures was read in the family {fixed}, so {family} cannot score it:"
            f" leave --family out, or give the annotations again"
        )
    return family


def score(
    run: Run,
    method: str,
    scorer: Scorer | None = None,
    *,
    ids: Collection[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Score:
    """Score what a method answered.

    Args:
        run: the run.
        method: a method of the run.
        scorer: the rules; None takes the defaults of ``Scorer``.
        ids: the questions to score; None scores all. A question without an answer is left out.
        resamples, seed: those of the bootstrap over pictures.

    Raises:
        NotScorable: there is no answer, or it is not known what is in the pictures.
        UnknownFamily, UnknownParser: there is no such rule.
    """
    answers = texts(run, method)
    wanted = answers.keys() if ids is None else answers.keys() & set(ids)
    return score_texts(
        run, {one: answers[one] for one in wanted}, scorer or Scorer(), method, resamples=resamples, seed=seed
    )


def score_texts(
    run: Run, answers: Mapping[str, str], scorer: Scorer, who: str, *, resamples: int = 0, seed: int = 0
) -> Score:
    """Score answers to a run's questions, whoever gave them.

    Args:
        run: the run that holds the questions.
        answers: texts by the ids of their questions.
        scorer: the rules.
        who: who answered, for messages.
        resamples, seed: those of the bootstrap over pictures; the default, 0 resamples, gives no intervals.

    Raises:
        NotScorable, UnknownFamily, UnknownParser: as ``score``.
    """
    items = [item for item in run.items if item.id in answers]
    if not items:
        raise NotScorable(f"{run.folder}: {who} has no answer that could be scored")
    name = run.manifest["bench"]["name"]
    if name == "chair":
        return chair.score(
            [Caption(item.image_id, answers[item.id]) for item in items],
            truth_of(run, items, scorer),
            family=family_of(run, scorer),
            resamples=resamples,
            seed=seed,
        )
    if name == "pope":
        check_parser(scorer.parser)
        splits = dict.fromkeys(item.truth["split"] for item in items)
        return {
            split: binary.score(
                [_reply(item, answers) for item in items if item.truth["split"] == split],
                scorer.parser,
                resamples=resamples,
                seed=seed,
            )
            for split in splits
        }
    # BEAF compares answers before and after an object is taken out, so its scorer gets all questions and finds out itself
    # which pairs lack an answer.
    asked = [beaf_question(item) for item in run.items]
    # A dictionary of texts is no dictionary of optional texts to mypy, so it is copied.
    given: dict[ImageId, str | None] = {one: text for one, text in answers.items()}  # noqa: C416
    return beaf.score(asked, given, scorer.parser, resamples=resamples, seed=seed)


def sums(run: Run, score: Score) -> Sums:
    """The sums over pictures behind a score of ``run``."""
    if isinstance(score, Report):
        return _chair_sums(score)
    if isinstance(score, beaf.BeafReport):
        return _beaf_sums(run, score)
    return _binary_sums({f"{split}.": report.replies for split, report in score.items()}, binary.METRICS)


def figures(columns: Sequence[str], ratios: Matrix) -> dict[str, Matrix]:
    """The figures that follow from ratios.

    CHAIR's figures are the ratios themselves. POPE's are those of each split, such as ``random.f1``, and under the bare
    name the plain mean over splits. BEAF's include the harmonic mean of TU and 1 - ID.

    Args:
        columns: the names of the ratios.
        ratios: their values, (draws, columns).

    Returns:
        The values of each figure, (draws,); NaN where there is nothing to count.
    """
    found = {name: ratios[:, at] for at, name in enumerate(columns)}
    if "id" in found:
        tu, firm = found["tu"], 1 - found["id"]
        # The mean of two ratios is no ratio of sums, so it is computed from the ratios of each draw. Where both are 0 the
        # harmonic mean is 0 by definition, and the division that numpy tries anyway would warn.
        with np.errstate(invalid="ignore", divide="ignore"):
            harmonic = np.where(tu + firm == 0, 0.0, 2 * tu * firm / (tu + firm))
        return {name: {**found, "f1_tu_id": harmonic}[name] for name in beaf.METRICS}
    splits = list(dict.fromkeys(name.rpartition(".")[0] for name in columns))
    # CHAIR's columns have no prefix: there is one group, and nothing to average over.
    if splits == [""]:
        return found
    means = {name: np.mean([found[f"{split}.{name}"] for split in splits], axis=0) for name in binary.METRICS}
    # With a single split its figures are the means, and would stand there twice.
    return means if len(splits) == 1 else means | found


def unparsed(score: Score) -> int | None:
    """How many answers could not be read as yes or no; None for CHAIR, which reads no yes or no."""
    if isinstance(score, Report):
        return None
    if isinstance(score, beaf.BeafReport):
        return score.counts.unparsed
    return sum(report.counts.unparsed for report in score.values())


def truth_of(run: Run, items: Sequence[ItemRecord], scorer: Scorer) -> Truth:
    """The objects in the pictures of some questions.

    Raises:
        NotScorable: it is not known what is in a picture.
    """
    found: dict[ImageId, Collection[str]] = {}
    for item in items:
        known = item.truth["objects"]
        # Annotations that the user gives take precedence over what the run knows.
        if scorer.truth is not None:
            known = scorer.truth.get(item.image_id)
        if known is None:
            where = "the annotations" if scorer.truth is not None else f"{run.folder}"
            raise NotScorable(
                f"{where} do not say what is in picture {item.image_id}: give annotations that do (--annotations,"
                " --references, --ground-truth)"
            )
        found[item.image_id] = known
    return found


def beaf_question(item: ItemRecord) -> Question:
    """A question of a BEAF run as BEAF's scorer takes it."""
    image: str = item.truth["image"]
    # An edited picture is called like its original, with _ and two digits before the ending.
    stem = image.rpartition(".")[0]
    edited = not item.truth["orig_img"]
    return Question(
        id=item.id,
        image=image,
        original=stem[:-3] if edited else stem,
        text=item.question,
        label=item.truth["label"],
        edited=edited,
        removable=item.truth["removed_q"],
        where=f"question {item.id}",
    )


def _reply(item: ItemRecord, answers: Mapping[str, str]) -> binary.Reply:
    """A question and its answer as the scorer of yes-or-no questions takes them."""
    return binary.Reply(
        question_id=item.id,
        image=item.image_id,
        label=cast(YesNo, item.truth["label"]),
        answer=answers[item.id],
    )


def _chair_sums(report: Report) -> Sums:
    """The sums behind a CHAIR report. A picture with several captions has one row, to which all of them add."""
    rows = report.captions
    place = _places(row.image_id for row in rows)
    at = [place[row.image_id] for row in rows]
    top, bottom = np.zeros((len(place), len(CHAIR))), np.zeros((len(place), len(CHAIR)))
    for column, (numerator, denominator) in enumerate(CHAIR.values()):
        # Plain indexing would keep only the last of several captions of one picture.
        np.add.at(top[:, column], at, [numerator(row) for row in rows])
        np.add.at(bottom[:, column], at, [denominator(row) for row in rows])
    return Sums(tuple(place), tuple(CHAIR), top, bottom)


def _binary_sums(groups: Mapping[str, Sequence[binary.Judged]], metrics: Collection[str]) -> Sums:
    """The sums behind yes-or-no figures, with a column for each group and figure.

    Args:
        groups: judged answers by the prefix of their group's columns.
        metrics: the figures, keys of ``binary.METRICS``.
    """
    place = _places(reply.image for replies in groups.values() for reply in replies)
    columns = [f"{prefix}{name}" for prefix in groups for name in metrics]
    top, bottom = np.zeros((len(place), len(columns))), np.zeros((len(place), len(columns)))
    # What one answer adds to the sums depends only on its label and on how it was read, so that it is worked out once for
    # each of these few combinations.
    share: dict[tuple[Any, Any], Matrix] = {}
    for number, replies in enumerate(groups.values()):
        part = slice(number * len(metrics), (number + 1) * len(metrics))
        for reply in replies:
            kind = (reply.label, reply.decision)
            if kind not in share:
                one = binary.count([reply])
                pairs = [binary.METRICS[name] for name in metrics]
                share[kind] = np.array([[side(one) for side in pair] for pair in pairs], dtype=np.float64).T
            top[place[reply.image], part] += share[kind][0]
            bottom[place[reply.image], part] += share[kind][1]
    return Sums(tuple(place), tuple(columns), top, bottom)


def _beaf_sums(run: Run, report: beaf.BeafReport) -> Sums:
    """The sums behind a BEAF report: BEAF's own scorer judges one original at a time."""
    names = [name for name in beaf.METRICS if name in binary.METRICS]
    over_all = _binary_sums({"": report.replies}, names)
    # The scorer is given what the answers were read as, so that the parser of the report decides and not the default one.
    # An unreadable answer becomes the word None, which is not read as yes or no either.
    read = {reply.question_id: str(reply.decision) for reply in report.replies}
    asked: dict[str, list[Question]] = {}
    for question in map(beaf_question, run.items):
        asked.setdefault(question.original, []).append(question)
    columns = (*beaf.CHANGES, "id")
    top, bottom = (np.zeros((len(over_all.images), len(columns))) for _ in range(2))
    for at, original in enumerate(over_all.images):
        questions = asked[str(original)]
        answers: dict[ImageId, str | None] = {one.id: read[one.id] for one in questions if one.id in read}
        alone = beaf.score(questions, answers, resamples=0)
        # The report holds rates. A rate times its denominator is a whole number, and rounding takes away what the
        # division left of it.
        bottom[at] = [alone.removed_pairs] * len(beaf.CHANGES) + [alone.other_pairs]
        top[at] = [
            round((alone.values[name] or 0) * below) for name, below in zip(columns, bottom[at], strict=True)
        ]
    return Sums(
        over_all.images,
        (*columns, *over_all.columns),
        np.hstack([top, over_all.top]),
        np.hstack([bottom, over_all.bottom]),
    )


def _places(images: Any) -> dict[ImageId, int]:
    """The row of each picture in the sums."""
    # The order decides which resample draws which picture, so it must not depend on the order of the answers.
    return {
        image: at for at, image in enumerate(sorted(set(images), key=lambda one: (str(one), str(type(one)))))
    }
