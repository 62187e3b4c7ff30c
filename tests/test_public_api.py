"""Surface and layering: what the package promises to strangers, and what its folders promise each other."""

from __future__ import annotations

import ast
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


def imports(path: Path) -> set[str]:
    """Modules a file imports when it is itself imported: not those inside functions or TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def everywhere(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_patching_touches_a_model(path: Path) -> None:
    if path.name == "patching.py":
        return
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            assert not called.startswith("register_forward"), path
            assert called not in {"setattr", "delattr", "set_attn_implementation"}, path
        if isinstance(node, ast.Assign):
            targets = [t for t in node.targets if isinstance(t, ast.Attribute)]
            assert not any(t.attr in {"forward", "generate"} for t in targets), path


@pytest.mark.parametrize("path", sorted((ROOT / "eval").glob("*.py")), ids=lambda p: p.name)
def test_scorers_need_no_torch(path: Path) -> None:
    heavy = {name for name in everywhere(path) if name.split(".")[0] in {"torch", "transformers"}}
    assert not heavy


@pytest.mark.parametrize("path", sorted((ROOT / "cli").glob("*.py")), ids=lambda p: p.name)
def test_commands_import_late(path: Path) -> None:
    heavy = {"torch", "transformers", "numpy", "nltk", "PIL", "pycocotools"}
    assert not {name for name in imports(path) if name.split(".")[0] in heavy}


@pytest.mark.parametrize("path", sorted((ROOT / "decoding").glob("*.py")), ids=lambda p: p.name)
def test_decoders_own_no_loop_and_read_no_files(path: Path) -> None:
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    }
    assert not called & {"generate", "open", "read_text", "write_text"}
