"""The template of a method in docs/adding-a-method is a method, and its test passes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES

from keepsight import attached, mitigate, parse

FOLDER = Path(__file__).parents[2] / "docs" / "adding-a-method"


def test_the_template_runs_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    recipe = parse("evenhanded:Evenhanded:share=5")
    assert recipe.spec == "evenhanded:Evenhanded:share=5.0"
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs([[1, 10, 11, 12], [1, 20]])
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    plain = model.generate(**inputs, **options)
    with mitigate(model, recipe):
        changed = model.generate(**inputs, **options)
    assert not torch.equal(plain, changed)
    with attached(model, inputs, recipe.off()) as processors:
        assert processors == []


def test_the_template_s_test_passes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, "-p", "no:cacheprovider", "--rootdir", FOLDER,
         "--doctest-modules", FOLDER],
        cwd=FOLDER, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout
