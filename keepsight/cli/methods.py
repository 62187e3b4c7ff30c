"""``keepsight methods``: lists the methods, as their own classes describe them."""

from __future__ import annotations

import math
from dataclasses import Field
from typing import TYPE_CHECKING, Any

from keepsight.cli._options import JsonFile, MarkdownFile

if TYPE_CHECKING:
    from keepsight.method import Method


GRAMMAR = (
    "A method is written as NAME:parameter=value,… for example [bold]m3id:decay=0.05,gate=0.9[/bold]. The numbers of a"
    " tuple are joined with /, as in [bold]vhr:layers=3/4[/bold], and none stands for no value.",
    "Methods that act together are joined with +, as in [bold]m3id:decay=0.05+vhr[/bold]. Where a command compares"
    " methods, --method is repeated for each alternative.",
    "A class of your own, a concrete subclass of keepsight.Method, is written as package.module:Class, for example"
    " [bold]mypackage.mymodule:MyMethod:alpha=1[/bold].",
)
"""The paragraphs under the list, which say how methods are written."""


def methods(
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """List every method with its paper, what it does, its parameters and defaults, and what it costs."""
    from keepsight.cli._files import check_outputs, silent, write
    from keepsight.files import as_json
    from keepsight.registry import methods as known

    check_outputs([json_file, markdown_file])
    described = [describe(method) for method in known().values()]
    if json_file is not None:
        write(json_file, as_json(described))
    if markdown_file is not None:
        write(markdown_file, markdown(described))
    if not silent(json_file, markdown_file):
        _print(described)


def describe(method: type[Method]) -> dict[str, Any]:
    """One method as plain data: name, class, paper, year, title, gist, cost, parameters."""
    made = method()
    return {
        "name": method.name(),
        "class": method.__name__,
        "paper": method.paper,
        "year": method.year,
        "title": method.title,
        "gist": method.gist,
        "cost": method.cost,
        "parameters": [
            {
                "name": item.name,
                "type": str(item.type),
                "default": getattr(made, item.name),
                "range": _range(item),
                "text": item.metadata["text"],
            }
            for item in method.parameters()
        ],
    }


def markdown(described: list[dict[str, Any]]) -> str:
    """A table of the methods as Markdown, and a table of each method's parameters."""
    lines = ["| Method | Paper | What it does | Cost |", "|---|---|---|---|"]
    for one in described:
        paper = f"[{one['paper']}](https://arxiv.org/abs/{one['paper']}), {one['year']}"
        lines.append(f"| `{one['name']}` ({one['class']}) | {paper} | {one['gist']} | {one['cost']} |")
    for one in described:
        lines += ["", f"**`{one['name']}`**: {one['title']}", ""]
        lines += ["| Parameter | Default | Range | Meaning |", "|---|---|---|---|"]
        for item in one["parameters"]:
            lines.append(
                f"| `{item['name']}` | {_written(item['default'])} | {item['range']} | {item['text']} |"
            )
    return "\n".join(lines) + "\n"


def _print(described: list[dict[str, Any]]) -> None:
    """Print the methods, and how they are written."""
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    console = Console(highlight=False)
    for one in described:
        console.print(f"[bold]{one['name']}[/bold]  [dim]{one['year']}, arXiv {one['paper']}[/dim]")
        for line in (one["title"], one["gist"], f"cost: {one['cost']}"):
            console.print(Padding(escape(line), (0, 0, 0, 2)))
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column()
        for item in one["parameters"]:
            limits = f" ({item['range']})" if item["range"] else ""
            table.add_row(item["name"], _written(item["default"]), escape(item["text"] + limits))
        console.print(Padding(table, (0, 0, 0, 2)))
        console.print()
    for line in GRAMMAR:
        console.print(line)


def _range(item: Field[Any]) -> str:
    """What a parameter may be, in words; empty where any number or text will do."""
    if choices := item.metadata["choices"]:
        return "one of " + ", ".join(choices)
    if str(item.type).startswith("tuple"):
        return "whole numbers joined with /"
    if str(item.type).startswith("bool"):
        return "true or false"
    low, high = item.metadata["low"], item.metadata["high"]
    if math.isinf(low) and math.isinf(high):
        return ""
    return f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"


def _written(value: Any) -> str:
    """A default as a spec string has it."""
    if isinstance(value, tuple):
        # In a spec string + joins methods, so the numbers of a tuple are joined with /.
        return "/".join(map(str, value)) or "empty"
    return "none" if value is None else str(value)
