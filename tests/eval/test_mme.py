from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import fuzz

from keepsight.errors import InputError
from keepsight.eval.errors import DuplicateQuestion, EmptyFile, MalformedFile
from keepsight.eval.mme import read_task, score_task
from keepsight.eval.pope.score import Reply

GOOD = "a.jpg\tA dog?\tYes\tyes, a dog\nb.jpg\tA cat?\tYes\tNo\na.jpg\tA cat?\tNo\tNo.\nb.jpg\tA dog?\tNo\tHm\tno\n"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "existence.txt"
    path.write_text(GOOD, encoding="utf-8")
    return path


def test_worked_example(task: Path) -> None:
    report = score_task(read_task(task), task=task.stem)
    assert (report.task, report.n, report.images, report.unparsed) == ("existence", 4, 2, 1)
    assert (report.acc, report.acc_plus, report.score) == (0.5, 0.5, 100)
    assert [reply.decision for reply in report.replies] == ["yes", "no", "no", None]
    assert report.replies[3].answer == "Hm\tno"
    assert report.ci["score"] == (0, 200)
    assert set(report.to_json()) >= {"acc", "acc_plus", "score", "ci", "answers"}
    assert score_task(read_task(task), parser="strict").unparsed == 0


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("", EmptyFile, "holds no answer"),
        ("\n \n", EmptyFile, "holds no answer"),
        ("a.jpg\tA dog?\tYes", MalformedFile, ":1: .*found 3 of the 4"),
        ("a.jpg\tA dog?\tmaybe\tyes", MalformedFile, ":1: the right answer must be yes or no, not 'maybe'"),
        ("\tA dog?\tYes\tyes", MalformedFile, ":1: names no picture"),
        ("a.jpg\tA dog?\tYes\tyes", MalformedFile, ":1: .*1 lines are about 'a.jpg'"),
        ("".join(f"a.jpg\tA {name}?\tYes\tyes\n" for name in "bcd"), MalformedFile, "3 lines are about"),
        (
            "a.jpg\tA dog?\tYes\tyes\na.jpg\tA dog?\tNo\tyes",
            DuplicateQuestion,
            ":2: the same question as in line 1",
        ),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, error: type[InputError], words: str) -> None:
    path = tmp_path / "count.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=words) as caught:
        read_task(path)
    assert str(path) in str(caught.value)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_laws(right: list[tuple[bool, bool]]) -> None:
    replies = [
        Reply(question_id=2 * image + at, image=image, label="yes", answer="Yes" if good else "No")
        for image, pair in enumerate(right)
        for at, good in enumerate(pair)
    ]
    report = score_task(replies, resamples=0)
    assert 0 <= report.acc_plus <= report.acc <= 1
    assert report.acc_plus >= 2 * report.acc - 1 - 1e-12
    assert report.score == pytest.approx(100 * (report.acc + report.acc_plus))
    assert score_task(replies[::-1], resamples=0).score == report.score


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(EmptyFile):
        score_task([])


def test_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    outcome = fuzz(
        read_task, [GOOD.encode(), GOOD.replace("\n", "\r\n").encode()], tmp_path / "t.txt", times=300, seed=4
    )
    assert min(outcome) > 30
