"""Renders the HTML pages from the Jinja2 templates in ``keepsight/reports/templates``."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, **values: Any) -> str:
    """The text of ``templates/TEMPLATE.html.jinja``, filled in.

    Every value is escaped unless it is already ``Markup``, and a name that the template uses and the caller did not
    give raises ``jinja2.UndefinedError``.
    """
    return _environment().get_template(f"{template}.html.jinja").render(**values)


def printable(text: str) -> str:
    """``text`` with its control characters shown as the symbols that Unicode has for them, such as ``␀``.

    HTML forbids most control characters even as character references. Tabs and line feeds are allowed and stay.
    """
    return "".join(
        chr(0x2400 + ord(c)) if c < " " and c not in "\t\n" else "␡" if c == "\x7f" else c for c in text
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("keepsight.reports"),
        # The templates end in .jinja, so escaping by file name would leave it off
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _finalize(value: Any) -> Any:
    """Applied to every value before it is escaped; ``Markup`` came from a template and has passed here already."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
