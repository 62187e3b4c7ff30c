from __future__ import annotations

import json
from pathlib import Path

import pytest

from keepsight.errors import InvalidParameter
from keepsight.eval.chair.captions import Caption
from keepsight.eval.chair.score import (
    Vocabulary,
    mentions,
    official_indices,
    score,
    truncate_mentions,
    words,
)
from keepsight.eval.errors import (
    EmptyFile,
    MissingData,
    UnknownFamily,
    UnknownImage,
    UnknownObject,
)

CASES = json.loads((Path(__file__).parent / "cases" / "chair.json").read_text(encoding="utf-8"))


@pytest.fixture(params=["pattern", "wordnet"])
def family(request: pytest.FixtureRequest) -> str:
    if request.param == "wordnet":
        request.getfixturevalue("nltk_data")
    return str(request.param)


@pytest.mark.parametrize("case", CASES["scores"], ids=lambda case: case["note"][:30])
def test_score_of_worked_cases(case: dict, family: str) -> None:
    captions = [Caption(entry["image_id"], entry["caption"]) for entry in case["captions"]]
    truth = {entry["image_id"]: entry["objects"] for entry in case["captions"]}
    report = score(captions, truth, family=family, resamples=10)
    assert (report.family, report.n) == (family, len(captions))
    for name, (numerator, denominator) in case["figures"].items():
        assert getattr(report, name) == pytest.approx(numerator / denominator), name
    for row, entry in zip(report.captions, case["captions"], strict=True):
        assert list(row.generated) == entry["generated"]
        assert [[m.word, m.object, m.index, list(m.span)] for m in row.hallucinated] == entry["hallucinated"]
        assert row.length == entry["length"]


@pytest.mark.parametrize("case", CASES["mentions"], ids=lambda case: case["caption"] or "empty")
def test_mentions_of_worked_cases(case: dict, family: str) -> None:
    found = mentions(case["caption"], family=family)
    assert [mention.object for mention in found] == case.get("objects", case.get(family))


def test_spans_are_of_the_caption_as_given() -> None:
    caption = 'İstanbul: "Two  HOT\tdogs", a cat\'s bowl (and two Wine-glasses).\n\nThe DOG!'
    spoken = [caption[slice(*mention.span)] for mention in mentions(caption)]
    assert spoken == ["HOT\tdogs", "cat", "bowl", "DOG"]


def test_index_is_right_where_the_official_one_forgets_a_dropped_seat() -> None:
    caption = "A toilet next to a seat next to a dog"
    assert [mention.index for mention in mentions(caption)] == [1, 9]
    assert official_indices(caption) == (1, 8)
    assert [word.token for word in words(caption)][9] == 9
    unaffected = "A toilet next to a dog and a hot dog"
    assert official_indices(unaffected) == tuple(mention.index for mention in mentions(unaffected))


def test_rates_without_denominator_are_none() -> None:
    report = score([Caption(1, "Nothing.")], {1: []}, resamples=20)
    assert (report.chair_s, report.no_object, report.mentions) == (0.0, 1.0, 0.0)
    assert report.chair_i is report.recall is report.precision is report.f1 is None
    assert report.ci["chair_i"] is None
    row = report.to_json()["captions"][0]
    assert (row["chair_i"], row["recall"]) == (None, None)
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["chair_i"] is None


def test_image_without_objects_is_judged_but_an_unknown_one_is_not() -> None:
    assert score([Caption(7, "a dog")], {7: []}, resamples=0).chair_i == 1.0
    with pytest.raises(UnknownImage, match=r"image 8 \(said\.jsonl:2\) is not in the ground truth"):
        score([Caption(7, "a dog"), Caption(8, "a dog", where="said.jsonl:2")], {7: []})


def test_image_ids_are_matched_by_what_they_mean() -> None:
    report = score([Caption("COCO_val2014_000000000042.jpg", "a dog")], {"42": ["dog"]}, resamples=0)
    assert report.chair_s == 0.0


def test_misspelt_truth_is_refused_rather_than_counted_as_hallucination() -> None:
    with pytest.raises(UnknownObject, match="'tabel'"):
        score([Caption(1, "a table")], {1: ["tabel"]})
    with pytest.raises(UnknownFamily, match="did you mean 'pattern'"):
        score([Caption(1, "a table")], {1: []}, family="patern")
    with pytest.raises(EmptyFile):
        score([], {})


def test_report_keeps_the_order_and_every_field() -> None:
    said = [Caption(2, "a dog and a cat"), Caption(1, "a cat")]
    plain = score(said, {1: ["cat"], 2: ["cat"]}, resamples=0).to_json()
    assert [row["image_id"] for row in plain["captions"]] == [2, 1]
    assert plain["captions"][0]["hallucinated"] == [
        {"word": "dog", "object": "dog", "index": 1, "span": [2, 5]}
    ]
    assert plain["ci"]["chair_s"] is None
    assert (plain["family"], plain["n"], plain["chair_i"]) == ("pattern", 2, pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ("k", "cut"),
    [(0, ""), (1, "A dog"), (2, "A dog's hot dogs"), (3, "A dog's hot dogs near a table"), (4, None)],
)
def test_truncate_cuts_right_after_the_kth_mention(k: int, cut: str | None) -> None:
    caption = "A dog's hot dogs near a table and nothing."
    assert truncate_mentions(caption, k) == (caption if cut is None else cut)


def test_truncated_caption_never_holds_more_mentions_than_asked() -> None:
    # Cutting the toilet off would bring its hidden seat back as a chair.
    caption = "A seat, a dog and a toilet."
    assert [mention.object for mention in mentions(caption)] == ["dog", "toilet"]
    cut = truncate_mentions(caption, 1)
    assert len(mentions(cut)) == 1
    assert caption.startswith(cut)
    with pytest.raises(InvalidParameter, match="0 or more"):
        truncate_mentions(caption, -1)


def test_own_vocabulary_with_pairs_and_dropped_words() -> None:
    own = Vocabulary.from_lines(
        ["# pets", "", "fish, goldfish, sea lion", "bowl"],
        pairs={"sea lion": "sea lion"},
        dropped={"bowl": "fish"},
    )
    assert [m.object for m in mentions("Goldfish and a sea lion in a bowl", vocabulary=own)] == [
        "fish",
        "fish",
        "bowl",
    ]
    assert [m.object for m in mentions("a fish in a bowl", vocabulary=own)] == ["fish"]
    assert own.objects == {"fish", "bowl"}


def test_wordnet_without_its_data_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    from keepsight.eval.chair import wordnet

    wordnet._tools.cache_clear()
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(
        MissingData, match=r"python -m nltk\.downloader averaged_perceptron_tagger_eng wordnet"
    ):
        mentions("a dog", family="wordnet")
    wordnet._tools.cache_clear()
