"""Surface and layering: what the package promises to strangers, and what its folders promise each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import keepsight

ROOT = Path(keepsight.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_all_is_sorted_complete_and_documented() -> None:
    assert sorted(keepsight.__all__) == keepsight.__all__
    classes = {cls.__name__ for cls in keepsight.methods().values()}
    assert set(keepsight.__all__) == set(keepsight._HOME) | classes
    for name in keepsight.__all__:
        assert (getattr(keepsight, name).__doc__ or "").strip(), name
    assert set(keepsight.__all__) <= set(dir(keepsight))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = keepsight.nothing


def test_import_is_light() -> None:
    code = "import keepsight, sys; print([m for m in ('torch', 'transformers', 'numpy', 'nltk', 'PIL') if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_import_changes_nothing_in_transformers() -> None:
    code = """
from transformers import AttentionInterface, GenerationMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
before = dict(ALL_ATTENTION_FUNCTIONS), GenerationMixin.generate, dict(vars(GenerationMixin))
import keepsight
for name in keepsight.__all__: getattr(keepsight, name)
import keepsight.decoding, keepsight.target
after = dict(ALL_ATTENTION_FUNCTIONS), GenerationMixin.generate, dict(vars(GenerationMixin))
print(before == after)
"""
    assert run(code).strip() == "True"
