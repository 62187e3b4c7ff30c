"""A request picks what the operator serves, or registered methods with plain values: it runs no code and opens no file."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from asking import page_request
from serving import client_of, data_uri, handler_of, painted, question, request, running

from keepsight import M3ID, VAR
from keepsight.errors import (
    ConflictingMethods,
    InvalidParameter,
    KeepsightError,
    OperatorOnly,
    UnknownMethod,
    UnknownParameter,
)
from keepsight.registry import methods
from keepsight.serve.errors import RequestRefused, UnknownModelName, code_of
from keepsight.serve.limits import Limits
from keepsight.serve.model_registry import ModelRegistry
from keepsight.serve.page.request_schema import parse_page_request
from keepsight.serve.request_handler import RequestHandler

OWN = "operators_package.operators_module:Own"
SECRET = "/etc/passwd"
Attempt = tuple[str, type[KeepsightError]]

CODE: dict[str, Attempt] = {
    "a class": (OWN, OperatorOnly),
    "a function": ("os.path:join", OperatorOnly),
    "a function of a module without a dot": ("os:system", UnknownMethod),
    "a class of a module without a dot": ("collections:Counter", OperatorOnly),
    "a class of the registered method's name": ("m3id:Own", OperatorOnly),
    "a built-in": ("builtins:eval", UnknownMethod),
    "a module": ("operators_package.operators_module", OperatorOnly),
    "an abstract class of ours": ("keepsight.method:Method", OperatorOnly),
    "a module of ours that is no method": ("keepsight.cli.main:app", OperatorOnly),
    "with a parameter": (f"{OWN}:decay=0.5", OperatorOnly),
    "percent escapes": ("operators_package%2Eoperators_module%3AOwn", UnknownMethod),
    "a percent escape for the colon": ("operators_package.operators_module%3AOwn", OperatorOnly),
    "a percent escape for the dot": ("operators_package%2Eoperators_module:Own", OperatorOnly),
    "a percent escape within a name": ("operators_package.operators%5Fmodule:Own", OperatorOnly),
    "upper case": (OWN.upper(), OperatorOnly),
    "spaces around": (f"  {OWN}  ", OperatorOnly),
    "spaces within": (" operators_package.operators_module : Own ", OperatorOnly),
    "a line feed": (f"{OWN}\n", OperatorOnly),
    "a line feed within": ("operators_package.\noperators_module:Own", OperatorOnly),
    "a line feed before a name": ("m3id\n" + OWN, OperatorOnly),
    "NUL at the end": (f"{OWN}\0", OperatorOnly),
    "NUL within": ("operators_package.operators_module\0:Own", OperatorOnly),
    "NUL after a name": (f"m3id\0{OWN}", OperatorOnly),
    "full-width letters": ("ｏperators_package.operators_module:Own", OperatorOnly),
    "a full-width colon": ("operators_package.operators_module：Own", OperatorOnly),
    "joined, behind": (f"m3id+{OWN}", OperatorOnly),
    "joined, before": (f"{OWN}+m3id", OperatorOnly),
    "joined, with spaces": (f"m3id + {OWN}", OperatorOnly),
    "joined, a percent escape for the plus": (f"m3id%2B{OWN}", OperatorOnly),
    "as a value": (f"m3id:decay={OWN}", InvalidParameter),
    "behind a comma": (f"m3id:decay=0.5,{OWN}", InvalidParameter),
    "a relative module": (".operators_module:Own", OperatorOnly),
    "a parent's module": ("..operators_package.operators_module:Own", OperatorOnly),
    "a path": ("../../operators_package/operators_module:Own", OperatorOnly),
    "a path to a file": (f"../../../../..{SECRET}", OperatorOnly),
    "an absolute path": (SECRET, UnknownMethod),
    "a URL": ("file:///operators_package/operators_module.py:Own", UnknownMethod),
    "a dunder": ("operators_package.operators_module:__import__", OperatorOnly),
    "a nested attribute": ("operators_package.operators_module:Own.attach", OperatorOnly),
    "an expression": ("__import__('os').system('id')", OperatorOnly),
    "nothing": ("", UnknownMethod),
    "a plus alone": ("+", InvalidParameter),
}
FILES: dict[str, Attempt] = {
    "a calibration": (f"var:calibration={SECRET}", OperatorOnly),
    "in upper case": (f"VAR:calibration={SECRET}", OperatorOnly),
    "the parameter in upper case": (f"var:CALIBRATION={SECRET}", UnknownParameter),
    "by the registered class": (f"keepsight.attention_mods.var:VAR:calibration={SECRET}", OperatorOnly),
    "a path traversal": (f"var:calibration=../../../../..{SECRET}", OperatorOnly),
    "a path in percent escapes": ("var:calibration=%2Fetc%2Fpasswd", OperatorOnly),
    "the parameter in percent escapes": (f"var:c%61libration={SECRET}", UnknownParameter),
    "the equals sign in percent escapes": (f"var:calibration%3D{SECRET}", InvalidParameter),
    "spaces within": (f" var : calibration = {SECRET} ", OperatorOnly),
    "a line feed within": (f"var:\ncalibration\n=\n{SECRET}\n", OperatorOnly),
    "NUL behind the parameter": (f"var:calibration\0={SECRET}", UnknownParameter),
    "NUL behind the method": (f"var\0:calibration={SECRET}", UnknownMethod),
    "NUL in the path": (f"var:calibration={SECRET}\0.json", OperatorOnly),
    "behind another parameter": (f"var:fraction=0.5,calibration={SECRET}", OperatorOnly),
    "given twice": (f"var:calibration={SECRET},calibration=none", OperatorOnly),
    "set to none": ("var:calibration=none", OperatorOnly),
    "joined, behind": (f"m3id+var:calibration={SECRET}", OperatorOnly),
    "joined, before": (f"var:calibration={SECRET}+m3id", OperatorOnly),
    "of the operator's class": (f"{OWN}:calibration={SECRET}", OperatorOnly),
    "a URL": ("var:calibration=http://127.0.0.1/calibration.json", OperatorOnly),
}
LONG: dict[str, Attempt] = {
    "a long class": (f"{OWN}{'n' * 900}", OperatorOnly),
    "a long module": (f"{'operators_package.' * 50}operators_module:Own", OperatorOnly),
    "a long name": ("m" * 950, UnknownMethod),
    "a long value": ("m3id:decay=0." + "0" * 900 + "x", InvalidParameter),
    "a long path": ("var:calibration=" + "/etc" * 200, OperatorOnly),
    "many methods": ("+".join(["m3id"] * 190), ConflictingMethods),
    "many parameters": ("m3id:" + ",".join(["decay=0.5"] * 90), InvalidParameter),
}
ATTEMPTS = [
    pytest.param(*attempt, id=f"{kind}: {name}")
    for kind, attempts in (("code", CODE), ("file", FILES), ("long", LONG))
    for name, attempt in attempts.items()
]


class _Watch:
    """Notes what this thread imports and opens. An audit hook cannot be removed, so there is one that is mostly idle."""

    def __init__(self) -> None:
        self.thread: int | None = None
        self.seen: list[tuple[str, Any]] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.thread == threading.get_ident() and event in ("import", "open", "os.listdir", "os.scandir"):
            self.seen.append((event, arguments[0]))


_watch = _Watch()


@contextmanager
def nothing_imported_or_opened() -> Iterator[None]:
    before = dict(sys.modules)
    _watch.seen.clear()
    _watch.thread = threading.get_ident()
    try:
        yield
    finally:
        _watch.thread = None
    assert _watch.seen == []
    assert dict(sys.modules) == before


@pytest.fixture(autouse=True)
def operators_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A method that the operator has written, and that can be imported. Every test begins before anybody has done so."""
    package = tmp_path / "operators_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "operators_module.py").write_text(
        "from keepsight import M3ID\n\n\nclass Own(M3ID):\n    '''M3ID under another name.'''\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("operators_package")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def handler() -> RequestHandler:
    """A server that offers m3id. No engine is needed to refuse a request."""
    engine: Any = None
    handler = RequestHandler(engine=engine, models=ModelRegistry.from_specs("toy", ["m3id"]))
    assert "var" in methods(), "the registry is filled before imports are watched"
    with pytest.raises(UnknownModelName):  # and so are the caches of whatever reads a request
        prepare(handler, model="nope")
    return handler


def prepare(handler: RequestHandler, **fields: Any) -> None:
    body = {"model": "toy", "messages": [{"role": "user", "content": "a cat"}]} | fields
    handler.prepare(handler.parse(json.dumps(body).encode()), {})


def read_page(**changes: Any) -> Any:
    body = json.dumps(page_request(**changes)).encode()
    return parse_page_request(body, Limits(), vocabulary=100, answered="answer" in changes)


@pytest.mark.parametrize(("spec", "error"), ATTEMPTS)
@pytest.mark.parametrize("form", ["toy:{}", "{}", "toy:m3id+{}", "toy:m3id:{}"])
def test_as_a_model_name(handler: RequestHandler, form: str, spec: str, error: type[KeepsightError]) -> None:
    with nothing_imported_or_opened(), pytest.raises(UnknownModelName) as refused:
        prepare(handler, model=form.format(spec))
    assert (refused.value.status, refused.value.param) == (404, "model")


@pytest.mark.parametrize(("spec", "error"), ATTEMPTS)
def test_in_the_list_of_methods(handler: RequestHandler, spec: str, error: type[KeepsightError]) -> None:
    for specs in ([spec], ["vhr", spec]):
        with nothing_imported_or_opened(), pytest.raises(error):
            handler.models.parse_untrusted(specs)
        with nothing_imported_or_opened(), pytest.raises(RequestRefused) as refused:
            prepare(handler, keepsight={"methods": specs})
        told = refused.value
        assert (told.status, told.param, told.code) == (400, "keepsight.methods", code_of(error("")))


@pytest.mark.parametrize(("spec", "error"), ATTEMPTS)
@pytest.mark.parametrize("changes", [{}, {"tokens": None, "answer": [1]}], ids=["answer", "attention"])
def test_in_a_request_of_the_page(changes: dict[str, Any], spec: str, error: type[KeepsightError]) -> None:
    assert read_page(method="m3id+var", **changes).methods == (M3ID(), VAR())
    if not spec:  # the plain model
        assert read_page(method=spec, **changes).methods == ()
        return
    wanted = RequestRefused if spec.count("+") >= 8 else error
    with nothing_imported_or_opened(), pytest.raises(wanted):
        read_page(method=spec, **changes)


def test_specs_are_refused_for_their_length_before_they_are_parsed(handler: RequestHandler) -> None:
    for spec in (f"{OWN}{'n' * 100_000}", "var:calibration=" + "/etc" * 100_000, "m3id+" * 100_000):
        for fields, param in (
            ({"model": f"toy:{spec}"}, "model"),
            ({"keepsight": {"methods": [spec]}}, "keepsight.methods.0"),
        ):
            with nothing_imported_or_opened(), pytest.raises(RequestRefused, match="at most 1000") as refused:
                prepare(handler, **fields)
            assert refused.value.param == param
        with nothing_imported_or_opened(), pytest.raises(RequestRefused, match="at most 2000"):
            read_page(method=spec)


def test_the_operator_serves_a_class_and_a_file_and_requests_reach_no_other() -> None:
    file = "calibration of the operator.json"
    assert "operators_package.operators_module" not in sys.modules
    models = ModelRegistry.from_specs("toy", [OWN, f"vhr+{OWN}:decay=0.5", f"var:calibration={file}"])
    own = sys.modules["operators_package.operators_module"].Own
    served = {"": own(), "one": own(decay=0.5)}
    known = f"var:calibration={''.join(file.split())}"
    with nothing_imported_or_opened():
        assert models.methods(f"toy:{OWN}") == (served[""],)
        assert models.methods(f"toy:vhr+{OWN}:decay=0.5")[1:] == (served["one"],)
        assert models.parse_untrusted([OWN]) == (served[""],)
        assert models.parse_untrusted(["m3id", f"vhr+{OWN}:decay=0.5"])[2:] == (served["one"],)
        assert models.parse_untrusted([known]) == (VAR(calibration=file),) == models.methods(f"toy:{known}")
    for spec in (
        f"{OWN}:decay=0.5",
        f" {OWN}",
        f"m3id+{OWN}",
        OWN.replace("Own", "own"),
        known.replace("var", "VAR"),
        known + "/../other",
        f"m3id+{known}",
    ):
        with nothing_imported_or_opened(), pytest.raises(OperatorOnly):
            models.parse_untrusted([spec])
        with nothing_imported_or_opened(), pytest.raises(UnknownModelName):
            models.methods(f"toy:{spec}")


def test_over_http(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = {"model": "toy", "messages": question(data_uri(painted(0)), "a cat"), "max_tokens": 4}
    imported: list[Any] = []
    with running(handler_of(loaded, OWN, "m3id")) as address:
        client = client_of(address)
        assert [model.id for model in client.models.list()] == ["toy", f"toy:{OWN}", "toy:m3id"]
        wanted = client.chat.completions.create(**ask | {"model": "toy:m3id"}).choices[0].message.content
        own = client.chat.completions.create(**ask | {"model": f"toy:{OWN}"}).choices[0].message.content
        listed = client.chat.completions.create(**ask, extra_body={"keepsight": {"methods": [OWN]}})
        assert own == listed.choices[0].message.content == wanted

        def refuse(name: str) -> Callable[..., Any]:
            imported.append(name)
            raise AssertionError(f"{name} was imported")

        monkeypatch.setattr("keepsight.registry.import_module", refuse)
        for spec, code in (
            ("os.path:join", "operator_only"),
            (f"m3id+{OWN}", "operator_only"),
            (f"var:calibration={SECRET}", "operator_only"),
            ("m3di", "unknown_method"),
        ):
            wish = {"keepsight": {"methods": [spec]}}
            told = request("POST", f"{address}/chat/completions", json=ask | wish)
            assert (told.status_code, told.json()["error"]["code"]) == (400, code)
            told = request("POST", f"{address}/chat/completions", json=ask | {"model": f"toy:{spec}"})
            assert (told.status_code, told.json()["error"]["code"]) == (404, "model_not_found")
            told = request("GET", f"{address}/models/toy:{spec}")
            assert (told.status_code, told.json()["error"]["code"]) == (404, "model_not_found")
        for path in ("toy:os%2Epath%3Ajoin", "..%2F..%2Fetc%2Fpasswd", "toy:%2e%2e/%2e%2e/os.path:join"):
            assert request("GET", f"{address}/models/{path}").status_code == 404
    assert imported == []
