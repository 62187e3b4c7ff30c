from __future__ import annotations

import json
import math
from collections.abc import Callable

from typer.testing import Result

from keepsight import M3ID, VCD, methods
from keepsight.cli.methods import describe

Run = Callable[..., Result]
Refused = Callable[..., str]


def test_text_names_every_method_and_parameter(run: Run) -> None:
    text = run("methods").stdout
    for name, method in methods().items():
        assert name in text
        assert method.paper in text
        for item in method.parameters():
            assert item.name in text


def test_json_is_what_the_classes_say(run: Run) -> None:
    described = {one["name"]: one for one in json.loads(run("methods", "--json", "-").stdout)}
    assert sorted(described) == sorted(methods())
    vcd = described["vcd"]
    assert (vcd["class"], vcd["paper"], vcd["year"]) == ("VCD", "2311.16922", 2023)
    alpha, beta, *_ = vcd["parameters"]
    assert (alpha["name"], alpha["default"], alpha["range"]) == ("alpha", VCD().alpha, "0 or more")
    assert (beta["name"], beta["default"], beta["range"]) == ("beta", 0.1, "0 to 1")


def test_the_default_is_the_one_in_force() -> None:
    (cutoff,) = [item for item in describe(M3ID)["parameters"] if item["name"] == "cutoff"]
    assert cutoff["default"] == M3ID().cutoff == 0.1


def test_markdown_has_a_row_for_each_parameter(run: Run) -> None:
    lines = run("methods", "--markdown", "-").stdout.splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert len(rows) == sum(1 + len(method.parameters()) for method in methods().values())
    assert any("| `decay` | 0.02 | 0 or more |" in row for row in rows)
    assert not any(str(math.inf) in row for row in rows)


def test_one_output_alone_goes_to_standard_output(refused: Refused) -> None:
    assert "written twice" in refused("methods", "--json", "-", "--markdown", "-")
