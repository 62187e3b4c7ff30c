"""``--method`` in every command: repeated for alternatives, joined with ``+`` for methods that act together."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from keepsight import InputError, parse, parse_all
from keepsight.cli._methods import joined, label, only_one, read_alternatives
from keepsight.cli.main import app, help_text
from keepsight.demo.world import scene
from keepsight.errors import ConflictingMethods, InvalidParameter, UnknownMethod

Run = Callable[..., Result]
Refused = Callable[..., str]
STRONG = "vcd:alpha=3.0,beta=0.0,noise_step=999"
GATE = "m3id:decay=1.0,cutoff=0.0"
BOTH = f"{STRONG}+{GATE}"
SHORT = ("--max-new-tokens", 8)
PICTURE = "test-shifted:3"

# One call of every command that takes a method, without the method
COMMANDS: dict[str, tuple[str, ...]] = {
    "caption": ("caption", "demo", PICTURE),
    "ground": ("ground", "demo", PICTURE),
    "attention": ("attention", "demo", PICTURE),
    "dominance": ("dominance", "demo"),
    "chat": ("chat", "demo"),
    "serve": ("serve", "demo"),
    "bench": ("bench", "demo"),
    "demo": ("demo",),
    "run": ("run", "demo", "--bench", "chair", "--out", "run"),
    "tune": ("tune", "demo", "--grid", "decay=0.1", "--out", "tuned"),
}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("m3id vhr", "methods that act together are joined with +: write 'm3id+vhr'"),
        ("m3id,vhr", "methods that act together are joined with +: write 'm3id+vhr'"),
        ("m3id:decay=0.05, vhr", "write 'm3id:decay=0.05+vhr'"),
        ("m3id & vcd:alpha=1 vhr", "write 'm3id+vcd:alpha=1+vhr'"),
        ("var:dims=0+1", "the numbers of a tuple are joined with /: 0/1"),
        ("m3id:cap=1e+2", "write the exponent without it: 1e2"),
        ("m3id+", "+ joins two methods, such as m3id+vhr"),
        ("m3id+m3id:decay=1", "m3id is given twice: its strength is a parameter, give it once"),
        ("m3di", "did you mean 'm3id'?"),
    ],
)
def test_a_wrong_joiner_is_answered_with_the_right_form(
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    spec: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(*COMMANDS[command], "--method", spec)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["chat", "tune"])
def test_a_second_method_where_one_is_wanted(refused: Refused, command: str) -> None:
    message = refused(*COMMANDS[command], "--method", "m3id:decay=0.05", "--method", "vhr")
    assert f"keepsight {command} takes --method once" in message
    assert "joined with +, --method m3id:decay=0.05+vhr" in message


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    "command", ["caption", "ground", "attention", "dominance", "serve", "bench", "run", "demo"]
)
def test_an_alternative_given_twice(refused: Refused, command: str) -> None:
    message = refused(*COMMANDS[command], "--method", "m3id+vhr", "--method", "m3id+vhr")
    assert "m3id+vhr is given twice" in message or "m3id+vhr is listed twice" in message


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["attention", "dominance", "serve", "bench"])
def test_the_plain_model_where_it_is_there_anyway(refused: Refused, command: str) -> None:
    assert "the plain model is always" in refused(*COMMANDS[command], "--method", "none")


@pytest.mark.parametrize(
    "command", [("chair", "a.json"), ("pope", "score", "a.json"), ("beaf", "score", "a.json", "-q", "q.json")]
)
def test_scorers_take_one_recorded_method(refused: Refused, tmp_path: Path, command: tuple[str, ...]) -> None:
    for name in ("a.json", "q.json"):
        (tmp_path / name).write_text("[]")
    message = refused(
        *(tmp_path / part if part.endswith(".json") else part for part in command),
        "--method", "vcd", "--method", "m3id",
    )  # fmt: skip
    assert "scores one recorded method at a time: give --method once, such as --method vcd" in message


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["caption", "ground", "attention"])
def test_a_picture_in_the_place_of_the_model(refused: Refused, tmp_path: Path, command: str) -> None:
    path = tmp_path / "photo.png"
    scene("val", 0).image().save(path)
    assert f"name the model first, keepsight {command} demo {path}" in refused(command, path, path)


def test_alternatives() -> None:
    assert read_alternatives(None) == [()]
    assert read_alternatives(None, plain_first=True) == [()]
    assert read_alternatives(["m3id+vhr", "none", "vcd"]) == [parse_all("m3id+vhr"), (), (parse("vcd"),)]
    assert read_alternatives(["vcd"], plain_first=True) == [(), (parse("vcd"),)]
    assert joined(parse_all("m3id : decay=0.05 + vhr")) == "m3id:decay=0.05+vhr"
    assert (joined(()), label(())) == ("", "plain")
    assert read_alternatives(["keepsight.decoding.vcd:VCD:alpha=2.0"]) == [(parse("vcd:alpha=2.0"),)]
    with pytest.raises(ConflictingMethods):
        read_alternatives(["vcd+vcd"])
    with pytest.raises(UnknownMethod, match="No module named 'nowhere'"):
        read_alternatives(["nowhere.at_all:Method"])
    with pytest.raises(InvalidParameter, match="methods that act together are joined with"):
        only_one(["a", "b"], "chat")
    assert only_one([], "chat") is None
    assert issubclass(InvalidParameter, InputError)


def by_line(text: str) -> dict[str, str]:
    return dict(line.strip().split(": ", 1) for line in text.splitlines() if ": " in line)


@pytest.mark.usefixtures("demo_model")
class TestAlternativesOnTheDemoModel:
    def test_caption(self, run: Run, tmp_path: Path) -> None:
        options = ("--method", "none", "--method", STRONG, "--method", BOTH, *SHORT)
        out = tmp_path / "captions.jsonl"
        ran = run("caption", "demo", PICTURE, *options, "--json", out)
        assert (ran.exit_code, ran.stderr) == (0, "")
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        specs = [None, parse(STRONG).spec, joined(parse_all(BOTH))]
        assert [line["method"] for line in lines] == specs
        assert {(line["image_id"], line["image"]) for line in lines} == {(PICTURE, PICTURE)}
        assert by_line(ran.stdout) == {line["method"] or "plain": line["caption"] for line in lines}
        for spec, line in zip((None, STRONG, BOTH), lines, strict=True):
            alone = run("caption", "demo", PICTURE, *SHORT, *(() if spec is None else ("--method", spec)))
            assert alone.stdout == line["caption"] + "\n"
        assert len({line["caption"] for line in lines}) == 3
        streamed = run("caption", "demo", PICTURE, *options, "--json", "-")
        assert streamed.stdout == out.read_text(encoding="utf-8")
        two = run("caption", "demo", PICTURE, "val:0", *options).stdout.splitlines()
        assert [line for line in two if not line.startswith("  ")] == [PICTURE, "val:0"]
        assert two[1:4] == ["  " + line for line in ran.stdout.splitlines()]

    def test_ground(self, run: Run, tmp_path: Path) -> None:
        out = tmp_path / "found.jsonl"
        options = ("--method", "none", "--method", STRONG, *SHORT, "--json", out)
        ran = run("ground", "demo", PICTURE, *options)
        assert (ran.exit_code, ran.stderr) == (0, ""), ran.output
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        assert [line["method"] for line in lines] == [None, parse(STRONG).spec]
        assert f"{PICTURE}, plain\n" in ran.stdout
        assert f"{PICTURE}, vcd:" in ran.stdout
        [alone] = run("ground", "demo", PICTURE, *options[2:6], "--json", "-").stdout.splitlines()
        assert json.loads(alone) == lines[1]

    def test_attention(self, run: Run, tmp_path: Path) -> None:
        out = tmp_path / "figure.png"
        strong, other = "pai:alpha=3.0,gamma=1.0,first_layer=0", "vhr:layers=1/2"
        options = ("--method", strong, "--method", f"{strong}+{other}", *SHORT, "--out", out, "--json", "-")
        ran = run("attention", "demo", PICTURE, *options)
        assert (ran.exit_code, ran.stderr) == (0, ""), ran.output
        maps = json.loads(ran.stdout)["maps"]
        assert [one["method"] for one in maps] == [
            None, parse(strong).spec, joined(parse_all(f"{strong}+{other}")),
        ]  # fmt: skip
        assert out.read_bytes().startswith(b"\x89PNG")

    def test_dominance(self, run: Run, tmp_path: Path) -> None:
        plot = tmp_path / "share.png"
        strong = "pai:alpha=3.0,gamma=1.0,first_layer=0"
        options = ("--method", strong, "--method", f"{strong}+vhr", "--limit", 1, "--max-new-tokens", 3)
        ran = run("dominance", "demo", *options, "--plot", plot, "--json", "-")
        assert (ran.exit_code, ran.stderr) == (0, ""), ran.output
        rows = json.loads(ran.stdout)["rows"]
        assert [row["method"] for row in rows] == [None, parse(strong).spec, f"{parse(strong).spec}+vhr"]
        assert all(("difference" in row) == (row["method"] is not None) for row in rows)
        assert plot.read_bytes().startswith(b"\x89PNG")
        shown = run("dominance", "demo", *options).stdout
        assert "pai+vhr" in shown
        assert shown.count("change to plain") == 2

    def test_bench(self, run: Run) -> None:
        quick = ("--threads", 1, "--repeats", 1, "--new-tokens", 8, "--clock", "cpu", "--no-memory")
        ran = run("bench", "demo", *quick, "--peer", "naive", "--method", "m3id+vhr", "--method", "vcd+m3id",
                  "--fused", "off", "--json", "-")  # fmt: skip
        assert ran.exit_code == 0, ran.output
        found = json.loads(ran.stdout)
        ways = [(row["method"], row["way"]) for row in found["rows"]]
        assert ways == [("m3id+vhr", "naive"), ("m3id+vhr", "separate"), ("vcd+m3id", "separate")]
        assert any(note.startswith("vcd+m3id: no naive row") for note in found["notes"])

    def test_run(self, run: Run, tmp_path: Path) -> None:
        from keepsight.experiments.store import open_run

        out = tmp_path / "run"
        ran = run("run", "demo", "--bench", "chair", "--out", out, "--limit", 2, "--split", "val", *SHORT,
                  "--method", "sample:temperature=0.7+vcd", "--method", "beam+m3id+vhr")  # fmt: skip
        assert ran.exit_code == 0, ran.output
        methods = ("greedy", "sample:temperature=0.7+vcd", "beam+m3id+vhr")
        assert open_run(out).methods == methods
        compared = run("compare", out, "--json", "-", "--resamples", 20)
        assert compared.exit_code == 0, compared.output
        assert [row["method"] for row in json.loads(compared.stdout)["methods"]] == list(methods)
        page = tmp_path / "page.html"
        shown = run("compare", out, "--html", page, "--resamples", 20)
        assert "+vcd" in shown.stdout
        assert "beam + m3id + vhr" in page.read_text(encoding="utf-8")


def test_a_class_of_ones_own(
    run: Run, demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from keepsight import VCD\n\n\nclass Mine(VCD):\n    pass\n"
    (tmp_path / "grammar_package").mkdir()
    (tmp_path / "grammar_package" / "methods.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    mine = "grammar_package.methods:Mine"
    ran = run("caption", "demo", PICTURE, *SHORT, "--method", f"{mine}:alpha=2.0+m3id", "--json", "-")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["method"] == f"{mine}:alpha=2.0+m3id"
    for name in ("grammar_package.methods", "grammar_package"):
        sys.modules.pop(name, None)


def every_option() -> dict[str, dict[str, Any]]:
    import typer.main

    group: Any = typer.main.get_command(app)
    found: dict[str, dict[str, Any]] = {}
    for name, command in group.commands.items():
        for inner, one in getattr(command, "commands", {"": command}).items():
            found[f"{name} {inner}".strip()] = {item.name: item for item in one.params}
    return found


OPTIONS = every_option()


def test_old_forms_are_gone() -> None:
    for name, items in OPTIONS.items():
        flags = {flag for item in items.values() for flag in item.opts}
        assert not flags & {"--model", "--device-map", "--n", "--methods"}, name
        if (given := items.get("json_file")) is not None:
            assert given.opts == ["--json"]
            assert not given.is_flag
        if "dtype" in items:
            assert {"model", "device", "dtype"} <= items.keys(), name
            assert items["model"].param_type_name == "argument"
    assert {name for name, items in OPTIONS.items() if "dtype" in items} == {
        "caption", "ground", "attention", "dominance", "chat", "ui", "serve", "inspect", "verify", "calibrate", "bench",
        "run", "tune",
    }  # fmt: skip


OWN_RULES = {("parser", f"{bench} score") for bench in ("mme", "beaf", "amber")}


def test_a_shared_option_has_one_help_text() -> None:
    for option in ("device", "dtype", "json_file", "markdown_file", "html_file", "parser", "raw_prompt"):
        texts = {
            items[option].help
            for name, items in OPTIONS.items()
            # The rules of these differ: AMBER and BEAF have one called official, and MME's is the default
            if option in items and (option, name) not in OWN_RULES
        }
        assert len(texts) == 1, option


def test_help_shows_prose_without_breaks_and_examples_last() -> None:
    text = help_text("Do it.\n\n        keepsight it\n\n    It is done\n    at once.\n    ")
    assert text == "Do it.\n\nIt is done at once.\n\n    keepsight it"
