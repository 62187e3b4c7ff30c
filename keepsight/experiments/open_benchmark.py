"""Opens a benchmark by its name, over the demo world or over the user's own files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from keepsight.experiments.benchmark import USER, Benchmark, check_name
from keepsight.experiments.errors import BadBenchmark


def demo_benchmark(name: str, split: str = "test", n: int = 500, seed: int = 0) -> Benchmark:
    """A benchmark over pictures of the demo world.

    - chair: the first ``n`` scenes, "Describe this image.".
    - pope: the first ``n`` scenes that show three objects or more, as in the paper; six questions for each of the kinds
      random, popular and adversarial, as ``world.questions`` makes them. 500 scenes give 3,000 questions of each kind.
    - beaf: the first ``n`` scenes that show two objects or more, and for up to two of their objects the same picture
      without this one object. Every picture of a scene is asked about all objects of the scene and four absent ones.

    Args:
        name: chair, pope or beaf.
        split: val, val-shifted, test or test-shifted.
        n: the number of scenes, 1 or more.
        seed: the seed of the world, 0 or more; another seed gives other pictures from the same distribution.

    Raises:
        BadBenchmark: there is no such benchmark, or n or seed is out of its range.
        UnknownSplit: there is no such split; the message suggests the nearest name.
    """
    from keepsight.demo.splits import check_split
    from keepsight.experiments import demo_items

    check_name(name)
    check_split(split)
    if n < 1 or seed < 0:
        raise BadBenchmark(f"n={n} must be 1 or more and seed={seed} 0 or more")
    build = {"chair": demo_items.chair, "pope": demo_items.pope, "beaf": demo_items.beaf}[name]
    source = f"the demo world, split {split}, {n} scenes, seed {seed}"
    return Benchmark(name=check_name(name), split=split, source=source, items=tuple(build(split, n, seed)))


def user_benchmark(
    name: str,
    *,
    images: Path | None,
    questions: Sequence[Path] = (),
    truth: Sequence[Path] = (),
    family: str | None = None,
    limit: int | None = None,
) -> Benchmark:
    """A benchmark over the user's pictures.

    - chair: every picture in the folder ``images``, in the order of their names. ``truth``, where given, says what is in
      them, in any form that ``annotations.load_truth`` reads; without it the answers can be scored later.
    - pope: the questions of ``questions``, one file for each split, as ``eval.pope.files.read_questions`` reads them. The
      split is the one of random, popular and adversarial that is in the file's name, else that name.
    - beaf: one file of questions, as ``eval.beaf.files.read_questions`` reads it.

    Args:
        name: chair, pope or beaf.
        images: the folder with the pictures.
        questions: the files of questions; for pope and beaf only.
        truth: files that say what is in the pictures; for chair only.
        family: the CHAIR family in which reference captions among ``truth`` are read.
        limit: how many pictures are kept (of beaf: originals), with all questions about them and their edits; None
            keeps all.

    Raises:
        BadBenchmark: there are no pictures, a question is about a picture that does not exist, or an option does not
            belong to this benchmark.
        MalformedFile, EmptyFile: a file of questions or truth is not in its form; the message names the line.
        UnknownImage: ``truth`` does not know a picture.
    """
    from keepsight.experiments import user_items

    check_name(name)
    if images is None:
        raise BadBenchmark(f"a {name} bench of your own needs the folder with its pictures: --images DIR")
    if not images.is_dir():
        raise BadBenchmark(f"no folder of pictures: {images}")
    if limit is not None and limit < 1:
        raise BadBenchmark(f"limit={limit} must be 1 or more")
    # CHAIR needs no questions, and the others need them: both mistakes are caught by one condition.
    if (name == "chair") == bool(questions):
        raise BadBenchmark(
            "a chair bench asks one question about every picture: leave --questions out"
            if questions
            else f"a {name} bench needs its questions: --questions FILE"
        )
    if truth and name != "chair":
        raise BadBenchmark(f"the questions of a {name} bench hold the truth: leave the annotations out")
    items = (
        user_items.chair(images, truth, family, limit)
        if name == "chair"
        else (user_items.pope if name == "pope" else user_items.beaf)(images, questions, limit)
    )
    source = ", ".join(map(str, [images, *questions, *truth]))
    return Benchmark(name=check_name(name), split=USER, source=source, items=tuple(items), family=family)
