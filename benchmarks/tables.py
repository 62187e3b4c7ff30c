"""Write the tables of README and docs from ``benchmarks/results`` and the code; ``--check`` fails where they drifted.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. What stands there by hand is overwritten.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import amateur_skipping
import cost_tables
import decision_tables
import dominance_tables
import family_tables
import honest_tables
import method_tables
import serve_tables
import support

from keepsight import methods

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"<!-- table: (?P<name>[\w-]+) -->\n(?P<body>.*?)<!-- end -->", re.DOTALL)


def load(name: str) -> Any:
    """Returns the content of a file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def rate(row: dict[str, Any], key: str) -> str:
    """Returns a rate and its interval, in per cent."""
    low, high = row["ci"][key]
    return f"{100 * row[key]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def difference(row: dict[str, Any], key: str, against: str = "difference") -> str:
    """Returns a difference and its interval, in points; empty in a row that has none, such as the baseline's."""
    if against not in row:
        return ""
    low, high = row[against][key]["ci"]
    return f"{100 * row[against][key]['value']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def facts(result: dict[str, Any]) -> str:
    """Returns a sentence that says how a table was measured."""
    versions = result["versions"]
    return (
        f"Measured on the demo model (not on any other), split `{result['split']}`, n = {result['n']} pictures,"
        f" seed {result['seed']}, greedy search; {result['metric']}; brackets are 95 % bootstrap intervals over pictures;"
        f" {result['hardware']['cores']} cores of {result['hardware']['cpu']}, torch {versions['torch']},"
        f" transformers {versions['transformers']}, Keepsight {versions['keepsight']}."
    )


def short() -> str:
    """Returns the table of the front page."""
    from keepsight.demo.splits import DEFAULT_METHODS

    return honest_tables.short(load("honest-chair-test-shifted"), DEFAULT_METHODS)


def chosen() -> str:
    """Returns the table of all settings that were tried, with those that were chosen."""
    result = load("choose")
    search = result["val-shifted"]
    lines = ["| setting | CHAIR_i % | recall % | Δ CHAIR_i | Δ recall | |", "|---|---|---|---|---|---|"]
    for row in search["rows"]:
        mark = "chosen" if row["method"] in result["chosen"] else ""
        lines.append(
            f"| `{row['method']}` | {rate(row, 'chair_i')} | {rate(row, 'recall')}"
            f" | {difference(row, 'chair_i')} | {difference(row, 'recall')} | {mark} |"
        )
    return "\n".join([*lines, "", facts(search)]) + "\n"


def pope_choice() -> list[str]:
    """Returns the specs that were chosen for POPE."""
    return [spec for spec in load("honest-pope-chosen")["chosen"].values() if spec]


def heads() -> str:
    """Returns the table of captions with silenced heads."""
    result = load("heads")
    named = {"greedy": "none", "silenced": "the half with the highest VHD"}
    lines = ["| silenced heads | CHAIR_i % | recall % | Δ recall |", "|---|---|---|---|"]
    for row in result["comparison"]["rows"]:
        which = row["method"].partition("which=")[2]
        name = {"lowest": "the half with the lowest VHD", "random": "half of them, at random"}.get(which)
        lines.append(
            f"| {name or named[row['method']]} | {rate(row, 'chair_i')} | {rate(row, 'recall')}"
            f" | {difference(row, 'recall')} |"
        )
    massive = max(result["massive"].values())
    first = max(share[0] for share in result["share_first_token_and_picture"].values())
    lines += [
        "",
        f"Layers {', '.join(map(str, result['layers']))}. Largest |x| / rms of any state: {massive:.1f} of at most"
        f" {result['width'] ** 0.5:.1f}; largest mean attention of the prompt's last token to the first token in a layer:"
        f" {100 * first:.1f} %.",
        "",
        facts(result["comparison"]),
    ]
    return "\n".join(lines) + "\n"


def method_list() -> str:
    """Returns the table of methods, from their classes."""
    lines = ["| Method | Paper | What it does | Cost |", "|---|---|---|---|"]
    for name, cls in methods().items():
        paper = f"[{cls.paper}](https://arxiv.org/abs/{cls.paper}), {cls.year}"
        lines.append(f"| `{name}` (`{cls.__name__}`) | {paper} | {cls.gist} | {cls.cost} |")
    return "\n".join(lines) + "\n"


def measured() -> method_tables.Measured:
    splits = ("test-shifted", "test")
    chair, pope = (tuple(load(f"honest-{bench}-{split}") for split in splits) for bench in ("chair", "pope"))
    cost = tuple(load(f"cost-130m-{which}-cpu") for which in ("contrast", "others"))
    return method_tables.Measured(chair, pope, cost)


def parameters() -> str:
    """Returns the tables of parameters, as ``keepsight methods`` prints them."""
    from keepsight.cli.methods import describe, markdown

    return markdown([describe(cls) for cls in methods().values()])


TABLES: dict[str, Callable[[], str]] = {
    "demo-short": short,
    "methods": method_list,
    "parameters": parameters,
    "honest-chair-test": lambda: honest_tables.chair(load("honest-chair-test")),
    "honest-chair-test-shifted": lambda: honest_tables.chair(load("honest-chair-test-shifted")),
    "honest-pope-test": lambda: honest_tables.pope(load("honest-pope-test")),
    "honest-pope-test-shifted": lambda: honest_tables.pope(load("honest-pope-test-shifted")),
    "honest-pope-chosen": lambda: honest_tables.pope_choice(load("honest-pope-chosen")),
    "dominance": lambda: dominance_tables.measured(load("dominance")),
    "dominance-readings": lambda: dominance_tables.readings(load("dominance")),
    "serve": lambda: serve_tables.throughput(load("serve")),
    "soak": lambda: serve_tables.soak(load("serve")),
    "families-known": lambda: family_tables.known(load("families")),
    "families-others": lambda: family_tables.others(load("families")),
    "families-refusals": lambda: family_tables.refusals(load("families")),
    "families-left-out": lambda: family_tables.left_out(load("families")),
    "families-not-built": lambda: family_tables.not_built(load("families")),
    "families-not-mapped": lambda: family_tables.not_mapped(),
    "chosen": chosen,
    "heads": heads,
    "cost": cost_tables.cost,
    "cost-lengths": cost_tables.lengths,
    "decisions": lambda: decision_tables.decisions(load("decisions")),
    "decisions-variants": lambda: decision_tables.variants(load("decisions")),
    "support": lambda: support.table(load("quantised")),
    "skipping": lambda: amateur_skipping.table(load("skipping-demo-cpu")),
    "methods-short": lambda: method_tables.short(methods()),
    "which-method": lambda: method_tables.which(measured()),
    **{
        f"effect-{name}": functools.partial(lambda name: method_tables.effects(measured(), name), name)
        for name in methods()
    },
}
"""What writes each table, by the name that pages use."""


def render(text: str) -> str:
    """Returns ``text`` with every table as the results and the code have it now."""

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise SystemExit(f"no table {name!r}; known: {', '.join(TABLES)}")
        return f"<!-- table: {name} -->\n{TABLES[name]()}<!-- end -->"

    return BLOCK.sub(table, text)


def stale() -> list[str]:
    """Returns what is not as the code and the results say: pages, and results measured on other weights than the shipped
    ones or with other settings than the chosen ones."""
    from demo_methods import weights_digest

    from keepsight.demo.splits import DEFAULT_METHODS

    # Weights, settings and defaults are compared as well, since a table
    # can agree with results that are out of date themselves.
    found = [str(page.relative_to(ROOT)) for page in PAGES if render(page.read_text()) != page.read_text()]
    weights = weights_digest()
    choice = load("choose")
    for name, result in {
        "choose": choice["val-shifted"],
        "heads": load("heads"),
        "dominance": load("dominance"),
        "decisions": load("decisions"),
    }.items():
        if result["weights_sha256"] != weights:
            found.append(f"benchmarks/results/{name}.json (other weights)")
    for path in sorted(RESULTS.glob("honest-*-test*.json")):
        result = json.loads(path.read_text())
        if result["weights"]["sha256"] != weights:
            found.append(f"benchmarks/results/{path.name} (other weights)")
        # Settings may have been chosen anew since the final table was measured.
        plain = {"greedy", "sample"}
        tuned = choice["chosen"] if "chair" in path.name else pope_choice()
        if [row["method"] for row in result["methods"] if row["method"] not in plain] != tuned:
            found.append(f"benchmarks/results/{path.name} (other settings than chosen)")
    if not set(DEFAULT_METHODS) <= set(choice["chosen"]):
        found.append("keepsight/demo/splits.py (other defaults than benchmarks/choose.py chose)")
    return found


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        if found := stale():
            raise SystemExit("stale, run `make tables` (or `make results`): " + ", ".join(found))
        return
    if sys.argv[1:]:
        raise SystemExit(f"usage: {sys.argv[0]} [--check]")
    for page in PAGES:
        page.write_text(render(page.read_text()))


if __name__ == "__main__":
    main()
