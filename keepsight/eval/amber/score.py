"""AMBER: hallucinated objects in descriptions, and yes-or-no questions about existence, attributes and relations.

Wang et al., "AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation", 2023
(arXiv 2311.07397); official code junyangwang0410/AMBER, inference.py at 534babf.

*Descriptions.* The nouns of a response that are words of AMBER's relations are judged one by one, repeats included. A noun
is supported if it is an annotated object of the picture or related to one, and that object is then covered. Any other noun
is hallucinated unless it is *similar* to something in the picture; if it is one of the objects that models tend to imagine
in this picture, or similar to one, that object is marked. Safe words are never judged.

    chair = sum of hallucinated nouns / sum of these nouns, safe words included
    cover = sum of covered objects / sum of annotated objects
    hal   = responses with a hallucinated noun / responses
    cog   = sum of marked objects / sum of objects that models tend to imagine

*Questions.* "No" is the positive class:

    accuracy  = right answers / questions
    precision = answers that are rightly no / answers that are no
    recall    = answers that are rightly no / questions whose right answer is no
    f1        = harmonic mean of the two

These figures are made over all questions and for each type; `attribute` is state, number and action together. The right
answer to every question about existence is no, so that precision is 1 there by construction and recall is accuracy.

`amber_score` = (1 - chair + f1) / 2, as papers quote it; the official script does not compute it.

All are fractions in [0, 1]; lower is better for `chair`, `hal` and `cog`. An answer that cannot be read is wrong, and is
neither yes nor no. A response that failed is not scored, but counted.

There are two conventions. `exact` is what is written above, with None where there is nothing to divide by. `official` gives
what the official script prints: 0.001 is added to every denominator, figures are rounded to a tenth of a per cent, and F1
is made of rounded figures with 0.0001 (existence: 0.001) added to its denominator. Intervals are those of `exact` in both.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from keepsight.errors import InvalidParameter, did_you_mean
from keepsight.eval.amber.files import (
    Annotation,
    Description,
    Lexicon,
    Response,
    YesNo,
    check_words,
)
from keepsight.eval.amber.report import (
    CONVENTIONS,
    DISCRIMINATIVE,
    GENERATIVE,
    TYPES,
    AmberReport,
    Answered,
    Described,
    Part,
    part,
    score_interval,
)
from keepsight.eval.amber.similarity import Similarity
from keepsight.eval.errors import DuplicateQuestion, EmptyFile, UnmatchedAnswers
from keepsight.eval.pope.answer_parsers import Decision, check_parser, decide

__all__ = [
    "CONVENTIONS",
    "DISCRIMINATIVE",
    "GENERATIVE",
    "TYPES",
    "AmberReport",
    "Answered",
    "Described",
    "Part",
    "check_convention",
    "describe",
    "exactly",
    "rule",
    "score",
]


def check_convention(convention: str) -> None:
    """Raise `InvalidParameter` unless there is a convention of this name."""
    if convention not in CONVENTIONS:
        raise InvalidParameter(
            f"AMBER has no convention {convention!r}; {did_you_mean(convention, CONVENTIONS)}"
        )


def rule(parser: str | None, convention: str) -> str:
    """Return the name of the rule that reads answers; `official` is AMBER's rule (`exactly`) and not POPE's.

    Args:
        parser: one of `answer_parsers.PARSERS`; None stands for `official` under the official convention, else `strict`.
        convention: "exact" or "official".

    Raises:
        UnknownParser: no rule has this name; the message suggests the nearest.
    """
    if parser is None:
        return "official" if convention == "official" else "strict"
    return check_parser(parser).name


def exactly(answer: str) -> Decision:
    """Read an answer by AMBER's rule: it has to be "Yes" or "No" in this letter case; "No." cannot be read."""
    return "yes" if answer == "Yes" else "no" if answer == "No" else None


def describe(text: str, truth: Description, lexicon: Lexicon, similarity: Similarity) -> Described:
    """Judge the nouns of one description.

    Args:
        text: the description.
        truth: the annotation of its picture.
        lexicon: AMBER's lists of words, which have to hold all objects of the annotation.
        similarity: which nouns count as similar.

    Raises:
        MissingData: NLTK's data are not installed.
    """
    # The import waits, because answers to questions are scored without NLTK.
    from keepsight.eval.chair.wordnet import nouns

    found = tuple(noun for noun in nouns(text) if noun in lexicon.known)
    there, their_places = _candidates(truth.truth, lexicon)
    imagined, imagined_places = _candidates(truth.hallu, lexicon)
    covered, marked = [False] * len(truth.truth), [False] * len(truth.hallu)
    bad: list[str] = []
    for noun in found:
        if noun in lexicon.safe:  # not judged, but counted among the nouns, as the official script does
            continue
        if noun in there:
            covered[their_places[there.index(noun)]] = True
            continue
        if noun in imagined:
            marked[imagined_places[imagined.index(noun)]] = True
        # Like the official script, this also looks for a similar word after it found an equal one. Where a similar word
        # comes before the equal one in the list, one noun marks two objects.
        like = similarity.first(noun, imagined)
        if like is not None:
            marked[imagined_places[like]] = True
        like = similarity.first(noun, there)
        if like is not None:
            covered[their_places[like]] = True
        else:
            bad.append(noun)
    return Described(
        id=truth.id, nouns=found, hallucinated=tuple(bad), covered=tuple(covered), marked=tuple(marked)
    )


def _candidates(objects: Sequence[str], lexicon: Lexicon) -> tuple[list[str], list[int]]:
    """Return the words that name one of the objects, and for each word the place of its object.

    Related words stand before the objects themselves. The order decides which object a noun names, since only the first
    word that equals it counts: "tree" may cover "forest" instead of "tree".
    """
    words = [(word, at) for at, name in enumerate(objects) for word in lexicon.relations[name]]
    words += [(name, at) for at, name in enumerate(objects)]
    return [word for word, _ in words], [at for _, at in words]


def score(
    responses: Sequence[Response],
    annotations: Mapping[int, Annotation],
    lexicon: Lexicon,
    similarity: Similarity,
    *,
    convention: str = "exact",
    parser: str | None = None,
    pictures: Mapping[int, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> AmberReport:
    """Score responses to AMBER's prompts, all of them or some.

    The cost is about 2 ms for a description, most of it for NLTK's tagger.

    Args:
        responses: descriptions, answers or both; the annotation of an id says which of the two a response is.
        annotations: the annotations by their ids.
        lexicon: AMBER's lists of words.
        similarity: which nouns count as similar, see `similarity.similarity`.
        convention: "exact" or "official", as the docstring of the module explains.
        parser: the rule that reads answers; by default `strict`, and AMBER's rule under the official convention.
        pictures: the picture of each id. Without it, the id of a description stands for its picture, and every question
            counts as a picture of its own.
        resamples: number of bootstrap resamples of the pictures; 0 gives no intervals.
        seed: seed of the bootstrap.

    Raises:
        EmptyFile: there is no response that can be scored.
        UnmatchedAnswers: an id is not among the annotations or not among the pictures.
        DuplicateQuestion: an id comes twice.
        UnknownObject: the lexicon lacks an object of the annotations.
        MissingData: NLTK's data are not installed, which descriptions need.
        UnknownParser: no rule has the name `parser`.
        InvalidParameter: there is no such convention, or `resamples` is negative.
    """
    check_convention(convention)
    name = rule(parser, convention)
    check_words(annotations, lexicon)
    seen: dict[int, str] = {}
    for one in responses:
        if one.id not in annotations:
            raise UnmatchedAnswers(f"{one.where}: there is no annotation of id {one.id}")
        if one.id in seen:
            raise DuplicateQuestion(
                f"{one.where}: id {one.id} was answered before ({seen[one.id]}): keep one"
            )
        if pictures is not None and one.id not in pictures:
            raise UnmatchedAnswers(
                f"{one.where}: the queries do not hold id {one.id}, so its picture is not known"
            )
        seen[one.id] = one.where
    described: list[Described] = []
    asked: list[tuple[YesNo, str]] = []
    failed = [0, 0]  # descriptions, questions
    for one in responses:
        truth = annotations[one.id]
        if one.text is None:
            failed[isinstance(truth, YesNo)] += 1  # False and True are the indices 0 and 1
        elif isinstance(truth, Description):
            described.append(describe(one.text, truth, lexicon, similarity))
        else:
            asked.append((truth, one.text))
    if not described and not asked:
        raise EmptyFile("no response that could be scored: all of them failed")
    answered = _read(asked, name)
    # Without queries only the pictures of descriptions are known, since AMBER numbers these by picture.
    sides: tuple[Mapping[int, Hashable], Mapping[int, Hashable]] = (
        {one.id: one.id for one in described} if pictures is None else pictures,
        {one.id: one.id for one in answered} if pictures is None else pictures,
    )
    official = convention == "official"
    generative = (
        part(described, sides[0], official=official, resamples=resamples, seed=seed) if described else None
    )
    rows: dict[str, Part] = {}
    # A type without answers has no row, which tells it from a type whose answers are all wrong.
    for kind, types in TYPES.items():
        some = [one for one in answered if one.type in types]
        if some:
            rows[kind] = part(some, sides[1], official=official, kind=kind, resamples=resamples, seed=seed)
    final = bounds = None
    if generative is not None and rows:
        chair, f1 = generative.values["chair"], rows["all"].values["f1"]
        # Under the official convention these are the rounded figures, the only ones that the script prints.
        final = None if chair is None or f1 is None else (1 - chair + f1) / 2
        # Both parts have to be drawn by the same pictures, so that the interval needs the pictures of the questions.
        if pictures is not None and final is not None:
            bounds = score_interval(described, answered, pictures, resamples=resamples, seed=seed)
    questions = sum(isinstance(one, YesNo) for one in annotations.values())
    return AmberReport(
        convention=convention,
        similarity=similarity.name,
        parser=name,
        generative=generative,
        discriminative=rows,
        amber_score=final,
        amber_score_ci=bounds,
        described=tuple(described),
        answered=tuple(answered),
        total=(len(annotations) - questions, questions),
        failed=(failed[0], failed[1]),
        unit="question" if pictures is None else "image",
        resamples=resamples,
        seed=seed,
    )


def _read(asked: Sequence[tuple[YesNo, str]], name: str) -> list[Answered]:
    """Return the answers with their decisions."""
    # `official` is AMBER's rule here, while `decide` would read it as POPE's.
    texts, labels = [text for _, text in asked], [truth.label for truth, _ in asked]
    read = [exactly(text) for text in texts] if name == "official" else decide(texts, labels, name)
    return [
        Answered(id=truth.id, type=truth.type, label=truth.label, answer=text, decision=decision)
        for (truth, text), decision in zip(asked, read, strict=True)
    ]
