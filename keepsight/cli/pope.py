"""``keepsight pope``: builds the questions of POPE, and scores answers to them by a named rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keepsight.cli._options import (
    Annotations,
    AnswerKey,
    BootstrapSeed,
    Family,
    ImageKey,
    JsonFile,
    Parser,
    Partial,
    RecordedMethod,
    References,
    Resamples,
    command_group,
)

if TYPE_CHECKING:
    from keepsight.eval.pope.pairing import Joined
    from keepsight.eval.pope.repope import Corrected
    from keepsight.eval.pope.score import Reply, YesNoReport

app = command_group()


@app.callback()
def pope(context: typer.Context) -> None:
    """Build POPE's questions, about objects that are in a picture and objects that are not, and score answers to them."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def build(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the files; made if it is not there.")],
    annotations: Annotations = None,
    references: References = None,
    objects: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help='Instead of COCO files: JSON lines of {"image": "a.jpg", "objects": ["cat", "sofa"]}.',
        ),
    ] = None,
    family: Family = "pattern",
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many pictures are drawn at random to ask about.")
    ] = 500,
    per_image: Annotated[
        int,
        typer.Option(
            min=1,
            help="How many objects of each picture are asked about, and as many that are not in it.",
        ),
    ] = 3,
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="Seed of the drawing. The same seed gives the questions of the official builder."
        ),
    ] = 0,
    name: Annotated[str, typer.Option(help="What the files' names begin with.")] = "coco",
    image_name: Annotated[
        str,
        typer.Option(
            metavar="TEMPLATE",
            help="File names of pictures of which only the number is known, such as COCO_val2014_{:012d}.jpg.",
        ),
    ] = "{}",
) -> None:
    """Build POPE's questions from what is in the pictures: random, popular and adversarial.

        keepsight pope build --annotations instances_val2014.json --references captions_val2014.json --out questions

    Writes NAME_pope_random.json, NAME_pope_popular.json and
    NAME_pope_adversarial.json, and the counts they rest on beside them.
    """
    from keepsight.eval.pope.build import build as choose
    from keepsight.eval.pope.object_lists import read_pictures
    from keepsight.files import CannotWrite, check_writable, write_whole

    # A name with a folder in it would write the files elsewhere than in --out.
    if not name or Path(name).name != name:
        raise CannotWrite(
            f"--name {name!r} cannot begin a file's name: leave out folders, they belong to --out"
        )
    pictures = read_pictures(
        [*(annotations or ()), *(objects or ())],
        references=references or (),
        image_name=image_name,
        family=family,
    )
    built = choose(pictures, images=limit, per_image=per_image, seed=seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot make the folder {out}: {error.strerror}") from error
    files = {out / file: text for file, text in built.files(name).items()}
    for path in files:
        check_writable(path)
    for path, text in files.items():
        write_whole(path, text)
    print(f"{len(built.images)} of {built.eligible} pictures with {per_image} objects or more, seed {seed}")
    for kind, questions in built.questions.items():
        yes = sum(question.label == "yes" for question in questions)
        print(f"{out / f'{name}_pope_{kind}.json'}: {len(questions)} questions, {yes} yes")


@app.command()
def score(
    answers: Annotated[
        list[Path],
        typer.Argument(
            metavar="ANSWERS…",
            help="Answers, one file for each file of questions in the same order, or one for all: what POPE, LLaVA, VCD,"
            " PAI, lmms-eval (--log_samples) and VLMEvalKit (JSON or xlsx) write, or answers.jsonl of a run. The output"
            " says in which form a file was read; a file of another form needs --answer-key.",
        ),
    ],
    questions: Annotated[
        list[Path] | None,
        typer.Option(
            "--questions",
            "-q",
            metavar="FILE",
            help="Questions with their labels, such as coco_pope_random.json, or items.jsonl of a run. Give the option "
            "once for each file; a file's name says its split. Not needed where the answers hold question and label.",
        ),
    ] = None,
    answer_key: AnswerKey = None,
    image_key: ImageKey = None,
    parser: Parser = "strict",
    compare_parsers: Annotated[
        bool, typer.Option("--compare-parsers", help="Also print what every rule makes of these answers.")
    ] = False,
    baseline: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Other answers to the same questions: print the paired difference to them. As many files as ANSWERS.",
        ),
    ] = None,
    repope: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="RePOPE's corrected labels, such as coco_repope_random.json, once for each split: score by them as well,"
            " and print both.",
        ),
    ] = None,
    method: RecordedMethod = None,
    partial: Partial = False,
    json_file: JsonFile = None,
    resamples: Resamples = 1000,
    seed: BootstrapSeed = 0,
) -> None:
    """Score answers to POPE's questions: accuracy, precision, recall, F1, and how often yes is said.

    keepsight pope score random.jsonl popular.jsonl -q coco_pope_random.json -q coco_pope_popular.json
    """
    from rich.console import Console

    from keepsight.cli._files import check_outputs, silent, write
    from keepsight.cli._methods import one_recorded
    from keepsight.cli._yesno_tables import (
        show_changes,
        show_differences,
        show_forms,
        show_parsers,
        show_score,
        warn_of_labels,
    )
    from keepsight.eval.pope.answer_parsers import check_parser
    from keepsight.eval.pope.compare_parsers import compare_parsers as read_by_all
    from keepsight.eval.pope.pairing import match_files
    from keepsight.eval.pope.repope import correct
    from keepsight.eval.pope.score import mean
    from keepsight.files import as_json

    check_parser(parser)
    wanted = one_recorded(method, "pope score")
    check_outputs([json_file])
    keys = {"answer_key": answer_key, "image_key": image_key}
    joined = match_files(answers, questions or (), method=wanted, partial=partial, **keys)
    reports = _reports(joined.replies, parser, resamples, seed)
    over_splits = mean(reports)
    corrected = correct(joined, repope) if repope else None
    by_corrected = _reports(corrected.replies, parser, resamples, seed) if corrected else None
    rows = read_by_all(joined.replies) if compare_parsers else []
    changes: list[dict[str, Any]] = []
    others: Joined | None = None
    if baseline:
        others = match_files(baseline, questions or (), method=wanted, partial=partial, **keys)
        changes = _changes(others, joined, parser, resamples, seed)
    if json_file is not None:
        result = {
            "bench": "pope",
            "parser": parser,
            "n": over_splits.n,
            **_read_json(joined, others),
            "splits": [_split_json(split, report, joined) for split, report in reports.items()],
            "mean": over_splits.to_json(),
            **({} if corrected is None else {"repope": _repope_json(corrected, by_corrected or {})}),
            **({"parsers": [row.to_json() for row in rows]} if compare_parsers else {}),
            **({"difference_to_baseline": changes} if baseline else {}),
            "resamples": resamples,
            "seed": seed,
        }
        write(json_file, as_json(result))
    if silent(json_file):
        return
    console = Console(highlight=False)
    show_forms(console, joined.files, _by(joined))
    if others is not None:
        show_forms(console, others.files, _by(others), "the baseline ")
    show_score(console, reports, over_splits, joined, by_corrected)
    warn_of_labels(console, joined.repeats_labels)
    if corrected is not None:
        show_changes(console, corrected.changes)
    if changes:
        show_differences(console, changes)
    if rows:
        show_parsers(console, rows, len(reports))


def _reports(
    replies: Mapping[str, Sequence[Reply]], parser: str, resamples: int, seed: int
) -> dict[str, YesNoReport]:
    """The score of each split."""
    from keepsight.eval.pope.score import score as judge

    return {split: judge(group, parser, resamples=resamples, seed=seed) for split, group in replies.items()}


def _by(joined: Joined) -> str:
    """What the answers were matched by, in the words of ``show_forms``."""
    return "id alone" if joined.matched == "id" and not joined.checked else joined.matched


def _read_json(joined: Joined, baseline: Joined | None) -> dict[str, Any]:
    """How the files of answers were read, as the part of the dictionary that JSON output holds."""
    return {
        "read": [file.to_json() for file in joined.files],
        **({} if baseline is None else {"baseline_read": [file.to_json() for file in baseline.files]}),
        "matched": joined.matched,
        "checked": joined.checked,
        "unit": "image" if joined.pictures_known else "question",
        "answers_repeat_labels": joined.repeats_labels,
    }


def _repope_json(corrected: Corrected, reports: Mapping[str, YesNoReport]) -> dict[str, Any]:
    """The score by RePOPE's labels as the dictionary that JSON output holds."""
    from keepsight.eval.pope.score import mean

    return {
        "splits": [
            {
                "split": split,
                **corrected.changes[split].to_json(),
                **report.to_json(),
                "answers": [reply.to_json() for reply in report.replies],
            }
            for split, report in reports.items()
        ],
        "mean": mean(reports).to_json(),
    }


def _changes(before: Joined, after: Joined, parser: str, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Paired differences of every figure's mean over splits, on the questions that both answered.

    Args:
        before, after: the answers of the baseline, and those compared with it.
        parser: the rule that reads yes or no.
        resamples, seed: those of the bootstrap.
    """
    from keepsight.eval.pope.pairing import shared_questions
    from keepsight.eval.pope.score import METRICS, paired

    # The scores need no intervals of their own here, since the pairs are resampled below.
    first, second = (_reports(side.replies, parser, 0, seed) for side in shared_questions(before, after))
    n = sum(report.n for report in first.values())
    found = [paired(first, second, metric, resamples=resamples, seed=seed) for metric in METRICS]
    return [
        {
            "metric": one.metric,
            "value": one.value,
            "ci": None if one.low is None else [one.low, one.high],
            "n": n,
        }
        for one in found
    ]


def _split_json(split: str, report: YesNoReport, joined: Joined) -> dict[str, Any]:
    """The score of a split as the dictionary that JSON output holds, with every answer."""
    from keepsight.eval.pope.official_output import published

    figures = published(report)
    return {
        "split": split,
        **report.to_json(),
        "failed": joined.failed[split],
        "missing": joined.missing[split],
        **({} if figures is None else {"published": figures}),
        "answers": [reply.to_json() for reply in report.replies],
    }
