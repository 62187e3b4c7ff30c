"""AMBER: worked numbers, laws, the two conventions, and what readers make of broken files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import fuzz
from parity import amber as parity

from keepsight.errors import InvalidParameter
from keepsight.eval.amber import score as amber
from keepsight.eval.amber.files import (
    Annotation,
    Description,
    Lexicon,
    Response,
    YesNo,
    read_annotations,
    read_lexicon,
    read_queries,
    read_responses,
)
from keepsight.eval.amber.score import AmberReport, describe, exactly, score
from keepsight.eval.amber.similarity import Similarity, similarity
from keepsight.eval.chair import wordnet
from keepsight.eval.errors import (
    DuplicateQuestion,
    EmptyFile,
    MissingData,
    UnknownObject,
    UnmatchedAnswers,
)
from keepsight.eval.pope.answer_parsers import UnknownParser

RELATIONS = {
    "person": ("man", "woman"),
    "forest": ("tree", "bush"),
    "tree": ("forest", "bush"),
    "road": ("path",),
    "sun": (),
    "dog": ("puppy",),
    "lamp": ("light",),
}
LEXICON = Lexicon(
    relations=RELATIONS,
    safe=frozenset({"light"}),
    known=frozenset({*RELATIONS, *(word for words in RELATIONS.values() for word in words)}),
)
PICTURE = Description(id=1, truth=("person", "forest", "tree", "road"), hallu=("sun", "dog"), where="here")
EXACT = similarity("exact")
WORDS = sorted(LEXICON.known)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word of a response is a noun, so that NLTK's data are not needed."""
    monkeypatch.setattr(wordnet, "nouns", str.split)


def plain(text: str, truth: Description = PICTURE, like: Similarity = EXACT) -> amber.Described:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wordnet, "nouns", str.split)
        return describe(text, truth, LEXICON, like)


def said(answers: Iterable[tuple[str, str, str | None]]) -> tuple[dict[int, Annotation], list[Response]]:
    """Annotations and responses for (type, right answer, response)."""
    annotations: dict[int, Annotation] = {}
    responses: list[Response] = []
    for number, (kind, label, text) in enumerate(answers, start=1005):
        annotations[number] = YesNo(id=number, type=kind, label=label, where="here")  # type: ignore[arg-type]
        responses.append(Response(id=number, text=text, where=f"there, entry {number}"))
    return annotations, responses


def judge(answers: Iterable[tuple[str, str, str | None]], **options: Any) -> AmberReport:
    annotations, responses = said(answers)
    return score(responses, annotations, LEXICON, EXACT, **{"resamples": 0, **options})


def test_worked_example_of_a_description(shared: Path, nltk_data: Path) -> None:
    folder = shared / "data" / "amber"
    annotations = read_annotations(folder / "annotations.json")
    lexicon = read_lexicon(folder / "relation.json", folder / "safe_words.txt")
    walk = Response(id=1, text="A man walks a dog on a path near trees under the sun.", where="here")
    for convention in ("exact", "official"):
        one = score([walk], annotations, lexicon, EXACT, convention=convention, resamples=0)
        assert one.described[0].nouns == ("man", "dog", "path", "tree", "sun")
        assert one.described[0].hallucinated == ("dog", "sun")
        assert one.generative.values == pytest.approx(
            {"chair": 0.4, "cover": 3 / 7, "hal": 1, "cog": 0.4}, abs=5e-4
        )
        both = [walk, Response(id=2, text="Nothing.", where="here")]
        two = score(both, annotations, lexicon, EXACT, convention=convention, resamples=0)
        assert two.generative.values == pytest.approx(
            {"chair": 0.4, "cover": 0.176, "hal": 0.5, "cog": 0.2}, abs=5e-4
        )


def test_only_the_first_word_that_fits_is_met_and_related_words_go_first() -> None:
    found = plain("tree path man bush")
    assert found.covered == (True, True, False, True)  # a tree and a bush belong to the forest
    assert found.hallucinated == ()
    assert plain("forest").covered == (False, False, True, False)  # and a forest to the tree


def test_safe_words_are_never_judged_but_counted() -> None:
    found = plain("light unicorn puppy")
    assert (found.nouns, found.hallucinated, found.marked) == (("light", "puppy"), ("puppy",), (False, True))
    assert found.sums[0] == (1, 2)


def test_repeats_count() -> None:
    assert plain("dog dog man dog").sums == ((3, 4), (1, 4), (1, 1), (1, 2))


def test_similar_words_are_accepted_and_mark_what_they_resemble() -> None:
    like = Similarity(
        name="test",
        first=lambda word, others: next((i for i, o in enumerate(others) if o[0] == word[0]), None),
    )
    assert plain("puppy", like=like).hallucinated == ()  # like "path", a road's word
    assert plain("puppy", like=like).covered == (False, False, False, True)
    assert plain("puppy", like=like).marked == (False, True)
    assert plain("sun", like=like).hallucinated == ("sun",)
    assert plain("sun", like=like).marked == (True, False)


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([*WORDS, "unicorn"]), max_size=8),
    st.lists(st.sampled_from(sorted(RELATIONS)), max_size=4),
)
def test_laws_of_descriptions(spoken: list[str], there: list[str]) -> None:
    truth = Description(id=1, truth=tuple(there), hallu=("dog", "sun"), where="here")
    found = plain(" ".join(spoken), truth)
    assert found.nouns == tuple(word for word in spoken if word != "unicorn")
    assert set(found.hallucinated) <= set(found.nouns) - LEXICON.safe - set(there)
    assert all(0 <= top <= bottom for top, bottom in found.sums)
    everything = Description(id=1, truth=tuple(RELATIONS), hallu=(), where="here")
    assert plain(" ".join(spoken), everything).hallucinated == ()
    # A laxer similarity never finds more made up, and never less covered
    lax = plain(
        " ".join(spoken), truth, Similarity(name="all", first=lambda word, others: 0 if others else None)
    )
    assert len(lax.hallucinated) <= len(found.hallucinated)
    assert sum(lax.covered) >= sum(found.covered)


ANSWERS: list[tuple[str, str, str | None]] = [
    ("existence", "no", "No"),
    ("existence", "no", "Yes"),
    ("state", "yes", "Yes"),
    ("state", "no", "no."),
    ("number", "yes", "No"),
    ("action", "no", ""),
    ("relation", "yes", "Yes"),
    ("relation", "no", "No"),
]


def test_questions_worked_by_hand() -> None:
    rows = judge(ANSWERS).discriminative
    # Noes: ids 1, 4, 5, 8 said no, of which 3 rightly; 5 of 8 answers should be no
    assert rows["all"].values == pytest.approx(
        {"accuracy": 5 / 8, "precision": 3 / 4, "recall": 3 / 5, "f1": 2 / 3}
    )
    assert (rows["all"].n, rows["all"].unparsed) == (8, 1)
    assert rows["existence"].values == pytest.approx(
        {"accuracy": 0.5, "precision": 1, "recall": 0.5, "f1": 2 / 3}
    )
    assert rows["attribute"].values == pytest.approx(
        {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    )
    assert rows["action"].values == {"accuracy": 0, "precision": None, "recall": 0, "f1": 0}
    assert list(rows) == ["all", "existence", "attribute", "state", "number", "action", "relation"]


def test_the_official_convention_rounds_and_reads_exactly() -> None:
    report = judge(ANSWERS, convention="official")
    assert report.parser == "official"
    assert report.discriminative["all"].unparsed == 2  # "no." as well
    # 2 of 3.001 noes, 2 of 5.001
    assert report.discriminative["all"].values == {
        "accuracy": 0.5,
        "precision": 0.666,
        "recall": 0.4,
        "f1": 0.5,
    }
    assert report.discriminative["action"].values == {"accuracy": 0, "precision": 0, "recall": 0, "f1": 0}
    assert judge(ANSWERS, convention="official", parser="strict").discriminative["all"].unparsed == 1


@pytest.mark.parametrize(
    ("text", "read"), [("Yes", "yes"), ("No", "no"), ("no", None), ("No.", None), (" No", None), ("", None)]
)
def test_the_official_rule(text: str, read: str | None) -> None:
    assert exactly(text) == read


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["existence", "state", "number", "action", "relation"]),
            st.sampled_from(["yes", "no"]),
            st.sampled_from(["Yes", "No", "no", "Maybe"]),
        ),
        min_size=1,
        max_size=30,
    ),
    st.randoms(use_true_random=False),
)
def test_laws_of_questions(answers: list[tuple[str, str, str | None]], draw: Any) -> None:
    rows = judge(answers).discriminative
    for row in rows.values():
        values = [value for value in row.values.values() if value is not None]
        assert all(0 <= value <= 1 for value in values)
        precision, recall, f1 = (row.values[name] for name in ("precision", "recall", "f1"))
        if precision and recall:
            assert f1 == pytest.approx(2 * precision * recall / (precision + recall))
    singles = [rows[name].n for name in amber.TYPES["all"] if name in rows]
    assert sum(singles) == rows["all"].n == len(answers)
    shuffled = [*answers]
    draw.shuffle(shuffled)
    assert judge(shuffled).discriminative["all"].values == rows["all"].values
    # On a hundred times the answers the official additions to denominators are nearly nothing
    many, official = (judge(answers * 100, convention=one, parser="official") for one in amber.CONVENTIONS)
    for name, value in many.discriminative["all"].values.items():
        assert official.discriminative["all"].values[name] == pytest.approx(value or 0, abs=0.0015)


def test_a_failed_response_is_not_an_empty_one() -> None:
    failed = judge([*ANSWERS, ("state", "no", None)])
    assert (failed.discriminative["all"].n, failed.failed) == (8, (0, 1))
    assert failed.discriminative["all"].values == judge(ANSWERS).discriminative["all"].values
    assert judge([*ANSWERS, ("state", "no", "")]).discriminative["all"].n == 9
    with pytest.raises(EmptyFile, match="all of them failed"):
        judge([("state", "no", None)])


@pytest.mark.usefixtures("words")
def test_both_parts_make_a_score_and_pictures_its_interval() -> None:
    annotations, responses = said(ANSWERS)
    annotations[1] = PICTURE
    responses.insert(0, Response(id=1, text="man dog", where="here"))
    alone = score(responses, annotations, LEXICON, EXACT, resamples=50)
    assert alone.amber_score == pytest.approx((1 - 0.5 + 2 / 3) / 2)
    assert (alone.amber_score_ci, alone.unit, alone.total) == (None, "question", (1, 8))
    one_picture = score(
        responses, annotations, LEXICON, EXACT, pictures=dict.fromkeys(annotations, "a.jpg"), resamples=50
    )
    assert one_picture.amber_score_ci == pytest.approx((alone.amber_score,) * 2)
    assert one_picture.unit == "image"
    low, high = alone.discriminative["all"].ci["accuracy"]
    assert low < 5 / 8 < high
    shown = json.loads(json.dumps(alone.to_json(), allow_nan=False))
    assert shown["generative"]["responses"][0]["hallucinated"] == ["dog"]
    assert shown["discriminative"]["types"]["all"]["f1"] == pytest.approx(2 / 3)
    assert judge(ANSWERS).amber_score is None


@pytest.mark.usefixtures("words")
def test_what_does_not_fit_is_refused() -> None:
    annotations, responses = said(ANSWERS)
    with pytest.raises(UnmatchedAnswers, match="there, entry 1005: there is no annotation of id 1005"):
        score(responses, {1: PICTURE}, LEXICON, EXACT)
    with pytest.raises(DuplicateQuestion, match="id 1005 was answered before"):
        score([*responses, responses[0]], annotations, LEXICON, EXACT)
    with pytest.raises(UnmatchedAnswers, match="queries do not hold id 1005"):
        score(responses, annotations, LEXICON, EXACT, pictures={1: "a"})
    odd = Description(id=1, truth=("elk",), hallu=(), where="here")
    with pytest.raises(UnknownObject, match="here: the object 'elk'"):
        score(responses, annotations | {1: odd}, LEXICON, EXACT)
    with pytest.raises(InvalidParameter, match="did you mean 'official'"):
        score(responses, annotations, LEXICON, EXACT, convention="oficial")
    with pytest.raises(UnknownParser):
        score(responses, annotations, LEXICON, EXACT, parser="strickt")


def test_missing_nltk_data_say_what_to_download(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    wordnet._tools.cache_clear()
    with pytest.raises(
        MissingData, match=r"nltk\.downloader punkt_tab averaged_perceptron_tagger_eng wordnet"
    ):
        wordnet.nouns("A dog.")
    wordnet._tools.cache_clear()


ANNOTATED = [
    {"id": 1, "type": "generative", "truth": ["person"], "hallu": ["dog"]},
    {"id": 2, "type": "relation", "truth": "no"},
    {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
]


@pytest.mark.usefixtures("words")
def test_readers_never_fall_over(tmp_path: Path) -> None:
    safe = tmp_path / "safe.txt"
    safe.write_text("light")
    annotations: dict[int, Annotation] = {1: PICTURE, **said(ANSWERS[:2])[0]}
    responses = [
        {"id": 1, "response": "A man."},
        {"id": 1005, "response": "No"},
        {"id": 1006, "answer": "Yes"},
    ]
    captions = [{"image_id": "AMBER_1", "image": "AMBER_1.jpg", "caption": "dog"}]

    def scored(path: Path) -> None:
        score(read_responses(path), annotations, LEXICON, EXACT, resamples=0)

    for read, originals in (
        (scored, [responses, captions]),
        (read_annotations, [ANNOTATED]),
        (read_queries, [[{"id": 1, "image": "AMBER_1.jpg"}]]),
        (lambda path: read_lexicon(path, safe), [{"sofa": ["couch"], "sky": []}]),
        (lambda path: read_lexicon(tmp_path / "good.json", path), [{"sofa": ["couch"]}]),
    ):
        (tmp_path / "good.json").write_text('{"sofa": ["couch"]}')
        outcome = fuzz(
            read, [json.dumps(one).encode() for one in originals], tmp_path / "x.json", times=250, seed=2
        )
        assert outcome.read > 10
        assert outcome.refused > 5


def test_odd_texts_are_read(nltk_data: Path) -> None:
    assert wordnet.nouns("") == wordnet.nouns(" \n\u2028") == []
    assert wordnet.nouns("Two DOGS and a dog; the women's cars.") == ["DOGS", "dog", "woman", "car"]
    assert len(wordnet.nouns("a dog " * 20_000)) == 20_000


def test_equals_the_official_script(shared: Path) -> None:
    rows = list(parity.differences(shared))
    assert [row for row in rows if row.differing] == []
    assert sum(row.compared for row in rows) == 150 + 150 + 4 + 7 * 4
