"""The folder of a run: a manifest, the questions, and one line for each answer. It can be read while it grows and after
a crash.

``manifest.json`` says what was run, ``items.jsonl`` what was asked and what is true, and ``answers.jsonl`` what was
answered. Several processes write to ``answers.rank0of2.jsonl`` and so on, which the last step merges into
``answers.jsonl``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from keepsight.eval.image_ids import ImageId
from keepsight.experiments.benchmark import ItemRecord, digest
from keepsight.experiments.errors import CannotRecord, DamagedRun, NotARun
from keepsight.files import CannotWrite, replace_file

FORMAT = 1
"""The number of the form that a run's folder has; a reader refuses any other."""
MANIFEST, ITEMS, ANSWERS = "manifest.json", "items.jsonl", "answers.jsonl"
_SHARD = re.compile(r"answers\.rank\d+of\d+\.jsonl")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line of ``answers.jsonl``.

    Args:
        id: the id of the question.
        image_id: the id of the picture.
        method: the decoding configuration, one of the manifest's ``methods``.
        model, seed: those of the run.
        prompt: what was asked, before the chat template was applied.
        answer: the text; None if the question failed.
        error: why it failed; None if it did not. Exactly one of ``answer`` and ``error`` is None.
        prompt_tokens: the number of tokens of the prompt, with those of the picture and without padding; None if it failed.
        tokens: the number of generated tokens, with the end mark; None if it failed.
        seconds: this answer's share of the wall time of its batch's ``generate``; None if it failed.
        batch: how many questions were answered together with this one, itself included.
        rank: the number of the process that wrote the line.
        versions: those of Python, Keepsight, torch and transformers.
    """

    id: str
    image_id: ImageId
    method: str
    model: str
    seed: int
    prompt: str
    answer: str | None
    error: str | None
    prompt_tokens: int | None
    tokens: int | None
    seconds: float | None
    batch: int
    rank: int
    versions: Mapping[str, str]

    @property
    def failed(self) -> bool:
        """Whether the question failed."""
        return self.error is not None

    def to_line(self) -> str:
        """The answer as a line of JSON with its newline. Raises ``ValueError`` for NaN, which JSON does not have."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Run:
    """A run as its folder holds it now.

    Args:
        folder: the folder.
        manifest: the JSON of ``manifest.json``.
        items: the questions in the order of the benchmark.
        found: for each method its answers by the ids of their questions. Where a question was answered twice, a success
            wins over a failure, the first success over any later one, and the last failure over any earlier one.
    """

    folder: Path
    manifest: Mapping[str, Any]
    items: tuple[ItemRecord, ...]
    found: Mapping[str, Mapping[str, Answer]]

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """The decoding configurations as spec strings, the baseline first."""
        return tuple(self.manifest["methods"])

    @property
    def baseline(self) -> str | None:
        """The method that the others are compared with; None in a run without one."""
        baseline: str | None = self.manifest["baseline"]
        return baseline

    @property
    def seed(self) -> int:
        """The seed of sampling."""
        return int(self.manifest["seed"])

    def answers(self, method: str) -> tuple[Answer, ...]:
        """The answers of ``method`` in the order of the questions, failed ones included and missing ones left out."""
        known = self.found[method]
        return tuple(known[item.id] for item in self.items if item.id in known)

    def failed(self, method: str) -> tuple[Answer, ...]:
        """The answers of ``method`` that failed. A failed answer is not an empty answer, and must not be scored as one."""
        return tuple(answer for answer in self.answers(method) if answer.failed)

    def missing(self, method: str) -> tuple[str, ...]:
        """The ids of the questions that ``method`` has not answered yet; failed answers are not missing."""
        return tuple(item.id for item in self.items if item.id not in self.found[method])

    @property
    def complete(self) -> bool:
        """Whether every method has an answer or a failure for every question."""
        return not any(self.missing(method) for method in self.methods)


def open_run(folder: Path | str) -> Run:
    """The run in ``folder``, finished or not. Shards are merged in memory, and nothing is changed on disk.

    A last line without its newline was cut while it was written, and does not count.

    Raises:
        NotARun: there is no such folder, or no manifest in it.
        DamagedRun: a file is not in the documented form, or a newer Keepsight wrote it; the message names file and line.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    items = tuple(_read_items(folder / ITEMS))
    # Answers are judged by the truths in this file, so it must be the one that the run was begun with.
    if len(items) != manifest["bench"]["n"] or digest(items) != manifest["bench"]["digest"]:
        raise DamagedRun(
            f"{folder / ITEMS}: does not hold the questions of {folder / MANIFEST}: the digests differ"
        )
    ids = {item.id for item in items}
    # A method without a single answer has an entry as well, so that readers need no special case.
    found: dict[str, dict[str, Answer]] = {method: {} for method in manifest["methods"]}
    for path in answer_files(folder):
        for where, answer in _read_answers(path):
            if answer.method not in found:
                raise DamagedRun(f"{where}: the run has no method {answer.method!r}")
            if answer.id not in ids:
                raise DamagedRun(f"{where}: the run has no question {answer.id!r}")
            # A merge that was interrupted leaves an answer both in the merged file and in its shard, and a retry adds a
            # second line for a question, so that a question may come up more than once.
            before = found[answer.method].get(answer.id)
            if before is None or before.failed:
                found[answer.method][answer.id] = answer
    return Run(folder=folder, manifest=manifest, items=items, found=found)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the run in ``folder``.

    Raises:
        NotARun: there is no manifest.
        DamagedRun: the manifest is not in the documented form.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = f"holds no {MANIFEST}" if folder.is_dir() else "is no folder"
        raise NotARun(f"{folder} {what}: name the folder that keepsight run --out made")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    # JSON that is nested too deeply raises RecursionError.
    except (ValueError, RecursionError, OSError) as error:
        raise DamagedRun(f"{path}: cannot be read ({error})") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise DamagedRun(f"{path}: is no manifest of a run: 'format' is missing")
    if manifest["format"] != FORMAT:
        raise DamagedRun(
            f"{path}: format {manifest['format']} is unknown to this Keepsight, which reads {FORMAT}"
        )
    bench, methods = manifest.get("bench"), manifest.get("methods")
    if not (isinstance(bench, dict) and {"name", "split", "n", "digest"} <= bench.keys()):
        raise DamagedRun(f"{path}: 'bench' is missing or lacks name, split, n or digest")
    if not (isinstance(methods, list) and methods and all(isinstance(one, str) for one in methods)):
        raise DamagedRun(f"{path}: 'methods' must be a list of specs")
    # A baseline of None is valid, so another value stands for one that is missing.
    if manifest.get("baseline", 0) not in (None, *methods) or not isinstance(manifest.get("seed"), int):
        raise DamagedRun(f"{path}: 'baseline' must be null or one of 'methods', and 'seed' a whole number")
    return manifest


def holds_run(folder: Path) -> bool:
    """Whether there is a run in ``folder``; False where a run can begin.

    Raises:
        NotARun: ``folder`` is a file, or a folder that holds other things.
    """
    if (folder / MANIFEST).is_file():
        return True
    if folder.exists() and not folder.is_dir():
        raise NotARun(f"{folder} is a file: name a folder")
    # Hidden files are Keepsight's own locks. Questions without a manifest are what is left of a run that was stopped while
    # it was being set up.
    others = [path.name for path in folder.glob("*") if path.name != ITEMS and not path.name.startswith(".")]
    if others:
        raise NotARun(f"{folder} holds {min(others)} and no run: name a new folder")
    return False


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they exist.

    Raises:
        CannotRecord: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotRecord(f"cannot make the folder {folder}: {error.strerror or error}") from error


def create(folder: Path, manifest: Mapping[str, Any], items: Iterable[ItemRecord]) -> None:
    """Begin a run in ``folder``.

    The manifest is written last, since a folder with a manifest is a run: a process that dies before leaves no run
    behind.

    Raises:
        CannotRecord: the folder cannot be written.
    """
    lines = (json.dumps(item.to_json(), ensure_ascii=False) + "\n" for item in items)
    write_durably(folder / ITEMS, lines)
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write or replace the manifest of the run in ``folder``. Raises ``CannotRecord``."""
    write_durably(
        folder / MANIFEST, [json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False), "\n"]
    )


def answer_files(folder: Path) -> list[Path]:
    """The files that hold answers: the merged one first, then the shards in the order of their names."""
    shards = sorted(path for path in folder.iterdir() if _SHARD.fullmatch(path.name))
    whole = folder / ANSWERS
    return [whole, *shards] if whole.is_file() else shards


def shard(folder: Path, rank: int, world_size: int) -> Path:
    """The file that process ``rank`` of ``world_size`` processes writes its answers to."""
    # A single process writes to the merged file at once, so that there is nothing to merge in the end.
    return folder / (ANSWERS if world_size == 1 else f"answers.rank{rank}of{world_size}.jsonl")


def merge(run: Run) -> None:
    """Bring all answers of ``run`` into one ``answers.jsonl``, question by question, and remove the shards.

    Whoever opens the folder meanwhile, or after a crash, finds every answer. If there is one tidy file already, nothing
    is done.

    Raises:
        CannotRecord: the folder cannot be written.
    """
    files = answer_files(run.folder)
    ordered = [
        run.found[method][item.id]
        for item in run.items
        for method in run.methods
        if item.id in run.found[method]
    ]
    whole = run.folder / ANSWERS
    # A file with more lines than answers holds retries of failed questions, and is written anew with one line for each.
    if files == [whole] and sum(1 for _ in _read_answers(whole)) == len(ordered):
        return
    write_durably(whole, (answer.to_line() for answer in ordered))
    # The shards go only when their answers are on disk in the merged file; until then readers drop the double lines.
    for path in files:
        if path != whole:
            path.unlink()


def write_durably(path: Path, pieces: Iterable[str]) -> None:
    """Replace ``path`` in one step, so that after a crash of the machine it holds the old content or the whole new one.

    Raises:
        CannotRecord: the disk is full, for example.
    """
    try:
        replace_file(path, pieces, durable=True)
    except CannotWrite as error:
        raise CannotRecord(str(error)) from error


def whole_lines(data: bytes) -> int:
    """How many bytes of a file of answers can be trusted: those up to the last newline whose line is JSON.

    A process that was killed while it wrote leaves half a line, and a machine that lost its power may leave a last line
    of zeros.
    """
    end = data.rfind(b"\n") + 1
    while end:
        begin = data.rfind(b"\n", 0, end - 1) + 1
        try:
            json.loads(data[begin:end])
            break
        except ValueError:
            end = begin
    return end


def _read_items(path: Path) -> Iterator[ItemRecord]:
    """The questions of ``items.jsonl``. Raises ``DamagedRun`` with the line."""
    try:
        # ``splitlines`` would also break at characters such as U+2028, which stand unescaped in the JSON of a question.
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, ValueError) as error:
        raise DamagedRun(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            yield ItemRecord(
                id=entry["id"],
                image_id=entry["image_id"],
                question=entry["question"],
                truth=entry["truth"],
            )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DamagedRun(f"{path}:{number}: is no question of a run ({error!r})") from error


_NAMES = {item.name for item in fields(Answer)}


def _read_answers(path: Path) -> Iterator[tuple[str, Answer]]:
    """Every whole line of a file of answers, with its place as ``FILE:LINE``. Raises ``DamagedRun``."""
    data = path.read_bytes()
    for number, line in enumerate(data[: whole_lines(data)].split(b"\n")[:-1], start=1):
        where = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DamagedRun(f"{where}: is not JSON ({error})") from error
        if not isinstance(entry, dict) or not entry.keys() >= _NAMES:
            lacking = sorted(_NAMES - entry.keys()) if isinstance(entry, dict) else ["an object"]
            raise DamagedRun(f"{where}: lacks {', '.join(lacking)}")
        if (entry["answer"] is None) == (entry["error"] is None):
            raise DamagedRun(f"{where}: exactly one of 'answer' and 'error' must be null")
        # Keys that this version does not know are left out.
        yield where, Answer(**{name: entry[name] for name in _NAMES})
