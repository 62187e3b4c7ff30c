"""Carries out a run: every decoding configuration answers the same questions, batch by batch, and each answer is kept at
once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keepsight.errors import KeepsightError, NoImageTokens
from keepsight.experiments import store
from keepsight.experiments.answer_log import AnswerLog, claim_rank
from keepsight.experiments.benchmark import Item
from keepsight.experiments.decoding_config import DecodingConfig
from keepsight.experiments.distributed import ProcessGroup
from keepsight.experiments.environment import hardware, versions
from keepsight.experiments.errors import CannotRecord, EverythingFails
from keepsight.experiments.manifest import RunConfig, check_same, new_manifest, new_session
from keepsight.experiments.store import Answer, Run, open_run
from keepsight.inference.generation import Answers, Generation, answer_batch
from keepsight.inference.row_sampler import RowSampler
from keepsight.source.images import BadImage
from keepsight.source.prompts import BadPrompt

if TYPE_CHECKING:
    from PIL.Image import Image

STREAK = 20
"""After so many failures of one decoding configuration in a row the run stops, since more than one question is wrong.

Pictures that cannot be read are not counted."""
WARM_UP = 2
"""The number of tokens that each decoding configuration generates before anything is timed."""
_OF_THE_SAMPLE = (BadImage, BadPrompt, NoImageTokens)
"""Errors that are about a single question. Any other KeepsightError is about method, model or settings, and ends the run."""


@dataclass
class Progress:
    """How far a process is with its share of the answers.

    Attributes:
        total: how many answers the process has to make in this start of the run.
        done: how many it has made, failed ones included.
        failed: how many of these failed.
    """

    total: int = 0
    done: int = 0
    failed: int = 0


def execute(
    config: RunConfig,
    model: Any,
    processor: Any,
    folder: Path,
    *,
    weights: Mapping[str, str | None],
    group: ProcessGroup | None = None,
    retry_failed: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Run:
    """Run ``config`` into ``folder``, or go on where an earlier process stopped, and return the finished run.

    The batches are the same however often a run was resumed and however many processes share it, and sampling draws by
    question (see ``RowSampler``). The answers therefore are those of one undisturbed process, up to rounding in padded
    batches. Before anything is timed, every configuration begins to answer the first batch.

    Args:
        config: the settings of the run.
        model, processor: the loaded model of ``config.model``.
        folder: the folder of the run, which is made if it does not exist.
        weights: what ``environment.weights`` says of the model.
        group: the processes that share the run; None is this process alone.
        retry_failed: whether questions that failed before are asked again.
        on_progress: called once at the start, and then after every batch of one configuration, with the progress of
            this process.

    Raises:
        RunMismatch, RunInUse, NotARun, DamagedRun: the folder cannot take this run; nothing was changed.
        UnsupportedModel, NeedsCalibration, …: a method cannot run on this model; nothing was begun.
        EverythingFails: a configuration failed time after time, or always. What is recorded stays, and can be retried.
        CannotRecord: the folder cannot be written.
    """
    group = group or ProcessGroup()
    worker = _Worker(config, model, processor, group.rank, versions(), on_progress)
    # The folder is checked before the warm-up, which takes a while, and claimed after it, so that a method that cannot
    # run leaves no folder behind.
    group.on_main_process(lambda: check_folder(folder, config, weights))
    worker.warm_up()
    with ExitStack() as claims:

        def begin() -> None:
            """Claim the folder, and write the manifest of a new run or one more session into that of an old one."""
            store.make_folder(folder)
            claims.enter_context(claim_rank(folder, 0))
            session = new_session(group.world_size, hardware(model.device))
            # The folder is checked once more, because another process may have begun a run before this one held the claim.
            if check_folder(folder, config, weights):
                manifest = store.read_manifest(folder)
                store.write_manifest(folder, {**manifest, "sessions": [*manifest["sessions"], session]})
            else:
                store.create(folder, new_manifest(config.settings(weights), session), config.bench.items)

        group.on_main_process(begin)
        if group.rank:
            if not (folder / store.MANIFEST).is_file():
                raise CannotRecord(
                    f"process {group.rank} does not see the run in {folder}: all need the same folder, on a disk they share"
                )
            claims.enter_context(claim_rank(folder, group.rank))
        batches = _to_do(config, open_run(folder), retry_failed)
        # Each process works out the batches that are left from the folder, so all must have read it before anyone writes:
        # otherwise two processes could disagree on which batches there are.
        group.barrier()
        with AnswerLog(store.shard(folder, group.rank, group.world_size)) as log:
            worker.work(batches[group.rank :: group.world_size], log)
        # The shards can be merged only once every process has closed its own.
        group.barrier()
        group.on_main_process(lambda: store.merge(open_run(folder)))
        run = open_run(folder)
    for method in run.methods:
        failed = run.failed(method)
        if len(failed) == len(run.items):
            raise EverythingFails(
                f"every answer of {method} failed, the first with: {failed[0].error}; once that is mended, --retry-failed"
                " asks again"
            )
    return run


def check_folder(folder: Path, config: RunConfig, weights: Mapping[str, str | None]) -> bool:
    """Whether ``folder`` holds this very run, to be resumed; False where the run can begin there. Nothing is changed.

    Raises:
        RunMismatch: the folder holds a run with other settings.
        NotARun, DamagedRun: the folder holds something else.
        BadCalibration: a method names a file that is not a calibration.
    """
    settings = config.settings(weights)
    if not store.holds_run(folder):
        return False
    check_same(store.read_manifest(folder), settings, folder)
    return True


_Batch = tuple[Sequence[Item], Mapping[DecodingConfig, Sequence[Item]]]
"""The questions of one batch, and for each configuration those that it has yet to answer."""


def _to_do(config: RunConfig, run: Run, retry_failed: bool) -> list[_Batch]:
    """The batches in which some configuration has a question left to answer."""
    done = {
        way: {answer.id for answer in run.answers(way.name) if not (retry_failed and answer.failed)}
        for way in config.ways
    }
    found: list[_Batch] = []
    items = config.bench.items
    # Batches are cut from all questions and not from those that are left, so that a resumed run puts the same questions
    # together.
    for start in range(0, len(items), config.batch):
        batch = items[start : start + config.batch]
        left = {way: [item for item in batch if item.id not in done[way]] for way in config.ways}
        if any(left.values()):
            found.append((batch, {way: asked for way, asked in left.items() if asked}))
    return found


@dataclass
class _Worker:
    """One process, which answers its share of the batches."""

    config: RunConfig
    model: Any
    processor: Any
    rank: int
    versions: Mapping[str, str]
    on_progress: Callable[[Progress], None]

    def work(self, batches: Sequence[_Batch], log: AnswerLog) -> None:
        """Answer the batches and record each answer.

        Raises:
            EverythingFails: a configuration failed `STREAK` times in a row.
            CannotRecord: the answers cannot be written.
        """
        progress = Progress(sum(len(asked) for _, left in batches for asked in left.values()))
        self.on_progress(progress)
        streaks = dict.fromkeys(self.config.ways, 0)
        for number, (batch, left) in enumerate(batches):
            # Pictures are opened outside what is timed, and once for all configurations.
            pictures = _open(batch)
            ways = list(left)
            # Whichever configuration comes first in a batch finds caches cold, so each comes first in its turn.
            turn = number % len(ways)
            for way in ways[turn:] + ways[:turn]:
                asked = left[way]
                answers = self._answer_all(way, asked, pictures)
                log.add(answers)
                progress.done += len(answers)
                progress.failed += sum(answer.failed for answer in answers)
                self.on_progress(progress)
                for answer in answers:
                    # A folder of broken pictures says nothing about a configuration, which the count of failures in a row
                    # is about.
                    if not isinstance(pictures[answer.id], BadImage):
                        streaks[way] = streaks[way] + 1 if answer.failed else 0
                    if streaks[way] >= STREAK and answer.failed:
                        raise EverythingFails(
                            f"{way.name} failed {streaks[way]} times in a row, last with: {answer.error}; once that is"
                            " mended, --retry-failed asks again"
                        )

    def warm_up(self) -> None:
        """Generate a few tokens under every configuration, so that the slow first pass counts as nobody's cost.

        A method that cannot run on this model fails here, before anything is written.

        Raises:
            UnsupportedModel, NeedsCalibration, …: a method cannot run on this model.
        """
        batch = self.config.bench.items[: self.config.batch]
        pictures = _open(batch)
        shown = [item for item in batch if not isinstance(pictures[item.id], BadImage)]
        for way in self.config.ways if shown else ():
            try:
                self._generate(way, shown, pictures, longest=WARM_UP)
            except Exception as error:
                if _ends_the_run(error):
                    raise
                # The same error comes again when the question is asked, and is recorded then.
                _free(error)

    def _answer_all(
        self, way: DecodingConfig, asked: Sequence[Item], pictures: Mapping[str, Image | BadImage]
    ) -> list[Answer]:
        """One answer for each question, in their order; a question with an unreadable picture gets a failed one."""
        shown = [item for item in asked if not isinstance(pictures[item.id], BadImage)]
        answered = {answer.id: answer for answer in self._try(way, shown, pictures)}
        return [
            answered[item.id] if item.id in answered else self._failure(way, item, pictures[item.id])
            for item in asked
        ]

    def _try(
        self, way: DecodingConfig, asked: Sequence[Item], pictures: Mapping[str, Image | BadImage]
    ) -> list[Answer]:
        """Answers to questions with readable pictures. A batch that fails, for lack of memory for example, is asked one
        by one."""
        if not asked:
            return []
        try:
            said = self._generate(way, asked, pictures, self.config.longest)
        except Exception as error:
            if _ends_the_run(error):
                raise
            if len(asked) == 1:
                return [self._failure(way, asked[0], error)]
            # Python deletes the name ``error`` at the end of the handler, so the error is kept under another one.
            failure = error
        else:
            return [
                self._answer(
                    way,
                    item,
                    answer=said.texts[row],
                    prompt_tokens=said.prompt_lengths[row],
                    tokens=said.lengths[row],
                    # A batch is generated as a whole, so each answer is charged an equal share of its time.
                    seconds=said.seconds / len(asked),
                    batch=len(asked),
                )
                for row, item in enumerate(asked)
            ]
        # This stands outside the handler, because inside it the traceback would keep the failed batch's tensors in memory.
        _free(failure)
        return [answer for item in asked for answer in self._try(way, [item], pictures)]

    def _generate(
        self, way: DecodingConfig, asked: Sequence[Item], pictures: Mapping[str, Any], longest: int
    ) -> Answers:
        """What the model says under a configuration about some questions, in at most ``longest`` tokens each."""
        decoding = way.strategy
        last = []
        # The sampler comes after all methods and leaves one token, so that ``generate`` itself always searches greedily
        # or with beams.
        if decoding.kind == "sample":
            keys = [f"{self.config.seed}/{item.id}" for item in asked]
            last = [RowSampler(keys, temperature=decoding.temperature, top_p=decoding.top_p)]
        return answer_batch(
            self.model,
            self.processor,
            [pictures[item.id] for item in asked],
            [self.config.prompt_for(item) for item in asked],
            *way.methods,
            raw=self.config.raw_prompt,
            generation=Generation(
                max_new_tokens=longest, num_beams=decoding.num_beams if decoding.kind == "beam" else 1
            ),
            last=last,
        )

    def _failure(self, way: DecodingConfig, item: Item, error: object) -> Answer:
        """A failed answer with the kind of the error and the first line of its message."""
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return self._answer(way, item, error=f"{type(error).__name__}: {reason}")

    def _answer(self, way: DecodingConfig, item: Item, *, batch: int = 1, **facts: Any) -> Answer:
        """An answer of this run. ``facts`` are the fields that differ between successes and failures; the others become
        None."""
        nothing = dict.fromkeys(("answer", "error", "prompt_tokens", "tokens", "seconds"))
        return Answer(
            id=item.id,
            image_id=item.image_id,
            method=way.name,
            model=self.config.model,
            seed=self.config.seed,
            prompt=self.config.prompt_for(item),
            batch=batch,
            rank=self.rank,
            versions=self.versions,
            **{**nothing, **facts},
        )


def _open(batch: Sequence[Item]) -> dict[str, Image | BadImage]:
    """The pictures of a batch by the ids of their questions; for a picture that cannot be read, the error that says why."""
    found: dict[str, Image | BadImage] = {}
    for item in batch:
        try:
            found[item.id] = item.picture()
        except BadImage as error:
            found[item.id] = error
    return found


def _ends_the_run(error: Exception) -> bool:
    """Whether an error is about method, model or settings, and would come again with every question."""
    return isinstance(error, KeepsightError) and not isinstance(error, _OF_THE_SAMPLE)


def _free(error: BaseException) -> None:
    """Let go of the tensors that a failed batch held, so that its questions find room in memory one by one."""
    import gc

    import torch

    # The traceback refers to the frames of the failed call, and these to its tensors.
    error.__traceback__ = None
    if torch.cuda.is_available():
        # The allocator can return only blocks whose tensors are gone, and tensors in cycles of references go when the
        # collector runs.
        gc.collect()
        torch.cuda.empty_cache()
