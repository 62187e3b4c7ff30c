"""Whatever form a file of answers has, the commands say how they read it, or refuse it in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Run = Callable[..., Result]
Refused = Callable[..., str]

ASKED = [
    (at, f"{at}.jpg", name, "no" if at % 2 else "yes") for at, name in enumerate("abcdefghijkl", start=1)
]


def lines(path: Path, *entries: object) -> Path:
    path.write_text("\n".join(json.dumps(entry) for entry in entries), encoding="utf-8")
    return path


def text(name: str) -> str:
    return f"Is there a {name} in the image?"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return lines(
        tmp_path / "coco_pope_random.json",
        *(
            {"question_id": at, "image": image, "text": text(name), "label": label}
            for at, image, name, label in ASKED
        ),
    )


def kit(path: Path, said: str = "Yes") -> Path:
    """VLMEvalKit's JSON, whose "answer" is the label."""
    rows = [
        {"index": 50 + at, "question": text(name), "answer": label.title(), "category": "random", "prediction": said}
        for at, _, name, label in ASKED
    ]  # fmt: skip
    path.write_text(json.dumps(rows, indent=4))
    return path


def first(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout.split("\n")[0]


def written(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_vlmevalkits_labels_are_not_scored_as_answers(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = run("pope", "score", kit(tmp_path / "kit.json"), "--json", out)
    assert first(result) == (
        "Read kit.json as VLMEvalKit: answers from 'prediction', questions from 'question', labels from 'answer'."
    )
    assert "intervals over questions" in result.stdout
    assert "does not name every picture" in result.stdout
    found = written(out)
    assert (found["splits"][0]["accuracy"], found["splits"][0]["yes_ratio"]) == (0.5, 1.0)
    assert (found["read"][0]["form"], found["unit"], found["matched"]) == ("VLMEvalKit", "question", "own")
    assert found["answers_repeat_labels"] is False


def test_a_dump_of_the_data_set_is_refused_until_the_key_is_named(
    run: Run, refused: Refused, questions: Path, tmp_path: Path
) -> None:
    for key in ("response", "output", "pred"):
        dump = lines(
            tmp_path / "dump.jsonl",
            *(
                {"question_id": at, "question": text(name), "answer": label, key: "Yes"}
                for at, _, name, label in ASKED
            ),
        )
        error = refused("pope", "score", dump, "-q", questions)
        assert f"'answer' and '{key}' could each hold what the model said" in error
        assert "--answer-key" in error
        result = run(
            "pope", "score", dump, "-q", questions, "--answer-key", key, "--json", tmp_path / "o.json"
        )
        assert first(result).startswith(f"Read dump.jsonl as the key that was named: answers from '{key}'")
        assert written(tmp_path / "o.json")["splits"][0]["accuracy"] == 0.5
    error = refused("pope", "score", dump, "-q", questions, "--answer-key", "respnse")
    assert (
        'no entry has the key \'respnse\' (--answer-key); keys: "question_id", "question", "answer", "pred"'
        in error
    )
    error = refused("pope", "score", dump, "-q", questions, "--answer-key", "pred", "--image-key", "img")
    assert "no entry has the key 'img' (--image-key)" in error


def test_labels_alone_are_warned_of(run: Run, questions: Path, tmp_path: Path) -> None:
    dump = lines(
        tmp_path / "dump.jsonl", *({"question_id": at, "answer": label.title()} for at, _, _, label in ASKED)
    )
    result = run("pope", "score", dump, "-q", questions, "--json", tmp_path / "o.json")
    assert "Every answer is its label, word for word." in result.stdout
    assert "--answer-key" in result.stdout
    assert written(tmp_path / "o.json")["answers_repeat_labels"] is True
    few = lines(
        tmp_path / "few.jsonl", *({"question_id": at, "answer": label} for at, _, _, label in ASKED[:9])
    )
    assert "word for word" not in run("pope", "score", few, "-q", questions, "--partial").stdout


def test_ids_alone_are_said(run: Run, questions: Path, tmp_path: Path) -> None:
    said = [{"question_id": at, "answer": "Yes"} for at, *_ in ASKED]
    bare = lines(tmp_path / "bare.jsonl", *said)
    result = run("pope", "score", bare, "-q", questions, "--json", tmp_path / "o.json")
    assert "by their ids alone, since no line repeats its question" in first(result)
    assert written(tmp_path / "o.json")["checked"] == 0
    named = lines(tmp_path / "named.jsonl", *said[:-1], said[-1] | {"prompt": text("l")})
    result = run("pope", "score", named, "-q", questions, "--json", tmp_path / "o.json")
    assert "alone" not in first(result)
    assert (written(tmp_path / "o.json")["checked"], written(tmp_path / "o.json")["matched"]) == (1, "id")


def test_an_image_key_is_held_to_the_questions(
    run: Run, refused: Refused, questions: Path, tmp_path: Path
) -> None:
    said = [{"question_id": at, "answer": "Yes", "img": image} for at, image, _, _ in ASKED]
    good = lines(tmp_path / "good.jsonl", *said)
    assert run("pope", "score", good, "-q", questions, "--image-key", "img").exit_code == 0
    bad = lines(tmp_path / "bad.jsonl", *said[:-1], said[-1] | {"img": "other.jpg"})
    assert run("pope", "score", bad, "-q", questions).exit_code == 0
    assert "answers about image 'other.jpg'" in refused(
        "pope", "score", bad, "-q", questions, "--image-key", "img"
    )


def test_both_sets_of_labels_stand_in_one_table(
    run: Run, refused: Refused, questions: Path, tmp_path: Path
) -> None:
    said = lines(tmp_path / "a.jsonl", *({"question_id": at, "text": "Yes"} for at, *_ in ASKED))
    # The first two questions are left out, and the next two have other labels.
    corrected = [
        {"question_id": at, "image": image, "text": text(name), "label": label}
        for at, image, name, label in ASKED[2:]
    ]
    corrected[0]["label"], corrected[1]["label"] = "yes", "no"
    labels, out = lines(tmp_path / "coco_repope_random.json", *corrected), tmp_path / "out.json"
    result = run("pope", "score", said, "-q", questions, "--repope", labels, "--json", out, "--resamples", 0)
    table = [line.split() for line in result.stdout.split("\n")]
    # POPE: 6 of 12 are yes. RePOPE: of 10 left, 4 stay yes, one becomes yes, one no.
    assert ["random", "50.0", "50.0", "100.0", "66.7", "100.0", "12", "0"] in table
    assert ["RePOPE", "50.0", "50.0", "100.0", "66.7", "100.0", "10", "0"] in table
    assert (
        "RePOPE labels 10 of 12 questions of random: 1 changed from yes to no, 1 from no to yes, 2 left out."
        in result.stdout
    )
    (split,) = written(out)["repope"]["splits"]
    assert (split["split"], split["n"], split["tp"], split["fp"]) == ("random", 10, 5, 5)
    assert (split["questions"], split["left_out"], split["yes_to_no"], split["no_to_yes"]) == (10, 2, 1, 1)
    assert written(out)["repope"]["mean"]["accuracy"] == 0.5
    assert written(out)["splits"][0]["n"] == 12
    other = lines(
        tmp_path / "other.json", {"question_id": 1, "image": "9.jpg", "text": text("z"), "label": "no"}
    )
    error = refused("pope", "score", said, "-q", questions, "--repope", other, "--json", tmp_path / "no.json")
    assert "is no question of the split 'random'" in error
    assert not (tmp_path / "no.json").exists()


def test_the_baseline_says_its_form_too(run: Run, questions: Path, tmp_path: Path) -> None:
    said = lines(tmp_path / "a.jsonl", *({"question_id": at, "text": "Yes"} for at, *_ in ASKED))
    base = lines(tmp_path / "b.jsonl", *({"question_id": at, "response": "No"} for at, *_ in ASKED))
    out = tmp_path / "out.json"
    result = run("pope", "score", said, "-q", questions, "--baseline", base, "--json", out)
    assert "Read the baseline b.jsonl as no known form" in result.stdout
    assert written(out)["baseline_read"][0]["answer"] == "response"


TRUTH = {"image_id": 337443, "objects": ["dog"]}


def test_chair_says_how_it_read_captions(run: Run, refused: Refused, tmp_path: Path) -> None:
    truth, said, out = lines(tmp_path / "t.jsonl", TRUTH), tmp_path / "said.json", tmp_path / "out.json"
    score = ("chair", said, "--ground-truth", truth, "--json", out)
    for image in (337443, 337443.0, "337443", "000000337443.jpg", "COCO_val2014_000000337443.jpg"):
        lines(said, {"question_id": 0, "image_id": image, "prompt": "p", "text": "A dog."})
        assert first(run(*score)) == (
            "Read said.json as POPE's caption_data: captions from 'text', images from 'image_id'."
        )
        assert (written(out)["chair_s"], written(out)["recall"]) == (0, 1)
    said.write_text(
        json.dumps(
            {"sentences": [{"image_id": 337443, "caption": "A cat."}], "overall": {"CHAIRs": 0}}, indent=2
        )
    )
    assert first(run(*score)).startswith("Read said.json as official CHAIR output (sentences)")
    assert written(out)["read"] == [
        {
            "file": "said.json",
            "form": "official CHAIR output (sentences)",
            "caption": "caption",
            "image": "image_id",
        }
    ]
    assert written(out)["chair_s"] == 1
    lines(said, {"img": 337443, "caption": "A reference of a dog.", "prediction": "A cat."})
    assert "'caption' and 'prediction' could each" in refused(*score)
    assert "'image_id' is missing" in refused(*score, "--caption-key", "prediction")
    named = run(*score, "--caption-key", "prediction", "--image-key", "img")
    assert first(named).endswith("captions from 'prediction', images from 'img'.")
    assert written(out)["chair_s"] == 1
    error = refused(*score, "--caption-key", "pred", "--image-key", "img")
    assert 'no entry has the key \'pred\' (--caption-key); keys: "img", "caption", "prediction"' in error


@pytest.fixture
def amber(tmp_path: Path) -> list[object]:
    annotations = [{"id": at, "type": "discriminative-relation", "truth": "no"} for at in range(1, 13)]
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    (tmp_path / "relation.json").write_text('{"person": ["man"]}')
    (tmp_path / "safe.txt").write_text("")
    files = (
        ("--annotations", "annotations.json"),
        ("--relations", "relation.json"),
        ("--safe-words", "safe.txt"),
    )
    return ["amber", "score", tmp_path / "said.json", *(word for a, b in files for word in (a, tmp_path / b))]


def test_amber_says_how_it_read_responses(
    run: Run, refused: Refused, amber: list[object], tmp_path: Path
) -> None:
    said, out = tmp_path / "said.json", tmp_path / "out.json"
    lines(said, *({"id": at, "answer": "no", "response": "Yes"} for at in range(1, 13)))
    assert "'answer' and 'response' could each" in refused(*amber)
    result = run(*amber, "--answer-key", "response", "--json", out)
    assert first(result) == "Read said.json as AMBER: answers from 'response', ids from 'id'."
    assert written(out)["discriminative"]["types"]["all"]["accuracy"] == 0
    assert (written(out)["read"][0]["answer"], written(out)["answers_repeat_labels"]) == ("response", False)
    labels = run(*amber, "--answer-key", "answer", "--json", out)
    assert "Every answer is its label, word for word." in labels.stdout
    assert written(out)["answers_repeat_labels"] is True
    lines(said, {"id": 0, "pure_input": "Is it sunny?", "image_path": "AMBER_1.jpg", "output": ["No"]})
    assert "several questions are about it" in refused(*amber)
    lines(said, {"id": 1, "output": "Yes", "picture": "AMBER_1.jpg"})
    assert "no entry has the key 'image' (--image-key)" in refused(*amber, "--image-key", "image")
    assert run(*amber, "--partial").exit_code == 2  # AMBER has no such option
    assert first(run(*amber, "--image-key", "picture")).startswith("Read said.json as no known form")


def test_beaf_does_not_score_labels_either(refused: Refused, tmp_path: Path) -> None:
    asked = {"image": "a.jpg", "question": text("dog"), "orig_img": True, "removed_q": False, "gt": "yes"}
    questions = tmp_path / "qna.json"
    questions.write_text(json.dumps([{"id": 1, **asked}]))
    said = lines(tmp_path / "said.jsonl", {"id": 1, "answer": "yes", "response": "No"})
    assert "'answer' and 'response' could each" in refused("beaf", "score", said, "-q", questions)


def test_mme_warns_where_labels_and_answers_may_be_exchanged(
    run: Run, refused: Refused, tmp_path: Path
) -> None:
    path, out = tmp_path / "existence.txt", tmp_path / "out.json"
    pictures = [f"{at}.jpg" for at in range(6)]
    path.write_text("".join(f"{name}\tA?\tYes\tYes\n{name}\tB?\tNo\tNo\n" for name in pictures))
    same = run("mme", "score", path, "--json", out)
    assert "Every answer is its label, word for word." in same.stdout
    assert (written(out)["answers_repeat_labels"], written(out)["unbalanced_pictures"]) == (True, 0)
    path.write_text("".join(f"{name}\tA?\tYes\tYes\n{name}\tB?\tYes\tNo\n" for name in pictures))
    exchanged = run("mme", "score", path, "--json", out)
    assert "The labels of 6 of 6 pictures are not one yes and one no" in exchanged.stdout
    assert (written(out)["answers_repeat_labels"], written(out)["unbalanced_pictures"]) == (False, 6)
    path.write_text(json.dumps([{"question": "A?", "answer": "Yes"}]))
    assert "this looks like JSON" in refused("mme", "score", path)


def test_object_lists_of_the_other_family_build_no_questions(
    run: Run, refused: Refused, tmp_path: Path
) -> None:
    objects, out = tmp_path / "truth.json", tmp_path / "out"
    content = {"categories": ["cat", "dog", "bus"], "objects": {"1": [0], "2": [1], "3": [2]}}
    build = ("pope", "build", "--objects", objects, "--out", out, "--limit", 2, "--per-image", 1)
    objects.write_text(json.dumps({"family": "wordnet", **content}))
    assert "was made with family \"wordnet\", not 'pattern'; build with that --family" in refused(*build)
    assert not out.exists()
    assert run(*build, "--family", "wordnet").exit_code == 0
    objects.write_text(json.dumps({"family": "pattern", **content}))
    assert run(*build).exit_code == 0
    assert "not 'wordnet'" in refused(*build, "--family", "wordnet")
    objects.write_text(json.dumps(content))  # a list that records no family offers nothing to compare
    assert run(*build, "--family", "wordnet").exit_code == 0
    assert "no family 'wordnt'" in refused(*build, "--family", "wordnt").replace("CHAIR has ", "")
    references = tmp_path / "captions.json"
    references.write_text(
        json.dumps(
            {"images": [{"id": 1, "file_name": "1"}], "annotations": [{"image_id": 1, "caption": "A dog."}]}
        )
    )
    objects.write_text(
        json.dumps({"family": "pattern", "vocabulary": {"name": "zoo", "sha256": "0"}, **content})
    )
    assert 'vocabulary "zoo"' in refused(*build, "--references", references)
