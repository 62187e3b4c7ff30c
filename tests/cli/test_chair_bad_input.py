"""Whatever is wrong with what `keepsight chair` is given: one line, exit code 2, no file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

GOOD = '{"image_id": 1, "caption": "a dog"}\n'
TRUTH = '{"image_id": 1, "objects": ["dog"]}\n'
LARGE = json.dumps(
    {"image_id": 1, "caption": "a dog, a cat and " + "extraordinarily uninhabited surroundings, " * 250_000}
)


@pytest.mark.parametrize(
    ("said", "truth", "message"),
    [
        (None, TRUTH, "said.jsonl: cannot be read (No such file"),
        (GOOD, None, "truth.jsonl: cannot be read (No such file"),
        ("", TRUTH, "said.jsonl: holds no caption"),
        ("\n\n", TRUTH, "said.jsonl: holds no caption"),
        (GOOD, "", "truth.jsonl: is empty"),
        ("{]", TRUTH, "said.jsonl:1: is not JSON"),
        (GOOD + '{"image_id": 2, "caption"', TRUTH, "said.jsonl:2: is not JSON"),
        ('{"image_id": NaN, "caption": "a dog"}', TRUTH, "said.jsonl:1: an image id is a whole number or a text, not nan"),
        ('{"image_id": 1, "caption": NaN}', TRUTH, "said.jsonl:1: 'caption' must be a text, not NaN"),
        (GOOD, '{"image_id": 1, "objects": [NaN]}', "truth.jsonl:1: an object is named by a text, not nan"),
        ('{"image_id": 7, "caption": "a dog"}', TRUTH, "image 7 (", ),
        (GOOD + GOOD, TRUTH, "said.jsonl:2: image 1 was captioned before"),
        (GOOD, '{"image_id": 1, "objects": ["dgo"]}', "truth.jsonl:1: 'dgo' is not an object"),
        (GOOD, '{"family": "wordnet", "categories": ["dog"], "objects": {"1": [0]}}', "was made with family 'wordnet'"),
        (GOOD, '{"categories": ["dog"], "objects": {"1": [-1]}}', "must be numbers of categories, from 0 to 0"),
    ],
)  # fmt: skip
def test_one_line_and_no_file(
    refused: Callable[..., str], tmp_path: Path, said: str | None, truth: str | None, message: str
) -> None:
    for name, content in (("said.jsonl", said), ("truth.jsonl", truth)):
        if content is not None:
            (tmp_path / name).write_text(content)
    outputs = [tmp_path / "out.json", tmp_path / "out.html"]
    before = sorted(tmp_path.iterdir())
    error = refused(
        "chair",
        tmp_path / "said.jsonl",
        "--ground-truth",
        tmp_path / "truth.jsonl",
        "--json",
        outputs[0],
        "--html",
        outputs[1],
    )
    assert message in error
    assert sorted(tmp_path.iterdir()) == before


def test_outputs_may_not_be_inputs_or_one_another(refused: Callable[..., str], tmp_path: Path) -> None:
    said, truth, out = tmp_path / "said.jsonl", tmp_path / "truth.jsonl", tmp_path / "out"
    said.write_text(GOOD)
    truth.write_text(TRUTH)
    score = ("chair", said, "--ground-truth", truth)
    assert "it is one of the files to read" in refused(*score, "--html", said)
    assert "it is one of the files to read" in refused(*score, "--json", truth)
    assert "it is to be written twice" in refused(*score, "--json", out, "--html", out)
    assert (said.read_text(), truth.read_text()) == (GOOD, TRUTH)


def test_a_caption_of_10_mb_and_control_characters_are_scored(run: Callable, tmp_path: Path) -> None:
    said, truth, html, out = (
        tmp_path / name for name in ("said.jsonl", "truth.jsonl", "out.html", "out.json")
    )
    truth.write_text('{"image_id": 1, "objects": ["dog"]}\n{"image_id": 2, "objects": []}\n')
    odd = json.dumps({"image_id": 2, "caption": "\x00 a \x1b[31mdog\u2028 <b>cat</b>\r\n"})
    said.write_text(LARGE + "\n" + odd + "\n")
    result = run("chair", said, "--ground-truth", truth, "--html", html, "--json", out, "--resamples", 10)
    assert result.exit_code == 0, result.output[-500:]
    report = json.loads(out.read_text(encoding="utf-8"))
    assert (report["n"], report["chair_s"], len(report["captions"][0]["hallucinated"])) == (2, 1.0, 1)
    assert html.stat().st_size < 1_000_000
    assert "\x1b[31mdog" not in result.output
