"""The rules of the house: who may import whom, what may change a model, and where things stand."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import keepsight

ROOT = Path(keepsight.__file__).parent
TESTS = Path(__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

ORDER: tuple[tuple[str, ...], ...] = (
    ("errors",), ("files",), ("eval",), ("target",), ("source",), ("calibration",), ("parts",), ("method",), ("decoding",),
    ("attention_mods",), ("steering",), ("registry",), ("engines",), ("api", "vllm"), ("inference",), ("grounding",),
    ("analysis", "experiments", "verification"), ("reports", "serve"), ("cli",),
)  # fmt: skip
"""A folder or module imports only what stands before it; those that stand together do not import each other."""
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
DEMO_IMPORTS, DEMO_USERS = (
    {"errors", "files", "eval"},
    {"inference", "experiments", "reports", "serve", "cli"},
)
"""``demo`` stands beside ``eval``; it is a data set and a model, and the library proper does not know it."""
DECLARED = {("method", "keepsight.engines")}
"""``Method.attach`` and ``Method.processor`` need an engine, which stands above them: the only exception."""


def modules(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """What a file imports of this package, inside functions too, and whether only for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = {modules(source) for source in SOURCES}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # `from package import module` imports the module
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name in names else str(node.module) for name in inner]
        else:
            continue
        for name in found:
            if name == "keepsight" or name.startswith("keepsight."):
                yield name, id(node) in typing


def top(name: str) -> str:
    """The folder or module of the package that a dotted name lies in."""
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    here = top(modules(path))
    if here in ("", "__main__"):
        return
    for name, _ in imported(path):
        there = top(name)
        if there in ("", here) or (here, name) in DECLARED:
            continue
        if there == "demo":
            assert here in DEMO_USERS, f"{path}: {name}"
        elif here == "demo":
            assert there in DEMO_IMPORTS, f"{path}: {name}"
        else:
            assert LEVEL[there] < LEVEL[here], f"{path} imports {name}, which stands above it or beside it"


def test_every_module_has_a_place_in_the_order() -> None:
    found = {top(modules(path)) for path in SOURCES} - {"", "__main__"}
    assert found == set(LEVEL) | {"demo"}


def test_no_imports_in_a_circle() -> None:
    """Over all files and all imports, those inside functions included; type checkers' imports do not run."""
    graph = {modules(path): {name for name, typing in imported(path) if not typing} for path in SOURCES}
    graph["keepsight"] = set()  # resolves public names when they are asked for
    graph["keepsight.method"] -= {"keepsight.engines"}  # the declared exception
    done: set[str] = set()

    def visit(name: str, above: list[str]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name in done:
            return
        for other in graph.get(name, ()):
            if other != name:
                visit(other, [*above, name])
        done.add(name)

    for name in graph:
        visit(name, [])


def test_few_modules_stand_at_the_top() -> None:
    assert len([path for path in ROOT.glob("*.py") if not path.name.startswith("__")]) <= 8


def test_the_tests_mirror_the_package() -> None:
    folders = {path.parent.relative_to(ROOT) for path in SOURCES if path.name != "__init__.py"}
    # Kernels of drawings and single-file helpers have their tests beside those of the folder above
    missing = [
        str(folder)
        for folder in folders
        if str(folder) != "." and not any((TESTS / folder).glob("test_*.py"))
    ]
    assert not missing


@pytest.mark.parametrize("folder", ["decoding", "attention_mods", "steering"])
def test_methods_know_neither_engine_nor_transformers(folder: str) -> None:
    for path in (ROOT / folder).glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            assert not [name for name in names if name.split(".")[0] == "transformers"], path
            assert not [name for name in names if name.startswith("keepsight.engines")], path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_file_changes_a_model(path: Path) -> None:
    if path.name == "patching.py":
        return
    # What proves the engine right must not share its hooks; they are taken away when a pass ends
    if path.relative_to(ROOT).as_posix() in ("verification/restated.py", "verification/witness.py"):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            assert not called.startswith("register_forward"), path
            assert called not in {"setattr", "delattr", "set_attn_implementation", "__setattr__"} or (
                # A frozen dataclass that fills in its own field has no other way
                ast.unparse(node).startswith("object.__setattr__(self,")
            ), f"{path}:{node.lineno}"
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Attribute):
                assert target.attr not in {"forward", "generate"}, path
            # `vars(model)["forward"] = …` is the same by another way
            if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Call):
                assert ast.unparse(target.value.func) != "vars", f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", sorted((ROOT / "eval").rglob("*.py")), ids=lambda path: path.name)
def test_scorers_need_no_torch(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        assert not {name.split(".")[0] for name in names} & {"torch", "transformers"}, path


@pytest.mark.parametrize("path", sorted((ROOT / "cli").glob("*.py")), ids=lambda path: path.name)
def test_commands_import_heavy_libraries_late(path: Path) -> None:
    heavy = {"torch", "transformers", "numpy", "nltk", "PIL", "pycocotools", "jinja2", "matplotlib"}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        assert not {name.split(".")[0] for name in names} & heavy, path


@pytest.mark.parametrize("folder", ["decoding", "attention_mods", "steering"])
def test_methods_own_no_loop_and_read_no_files(folder: str) -> None:
    for path in (ROOT / folder).glob("*.py"):
        called = {
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        }
        assert not called & {"open", "read_text", "write_text"}, path
