"""Renders the HTML pages from the Jinja2 templates in ``keepsight/reports/templates``."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, **values: Any) -> str:
    """The text of ``templates/TEMPLATE.html.jinja``, filled with values.

    Every value is escaped unless it is already ``Markup``.

    Args:
        template: the name of the template, without its folder and endings.
        values: the values by the names that the template uses.

    Raises:
        jinja2.UndefinedError: the template uses a name that is not among ``values``.
    """
    return _environment().get_template(f"{template}.html.jinja").render(**values)


def printable(text: str) -> str:
    """``text`` with its control characters shown as the symbols that Unicode has for them, such as ``␀``.

    HTML forbids most control characters even as character references. Tabs and line feeds are allowed, and stay.
    """
    return "".join(
        chr(0x2400 + ord(c)) if c < " " and c not in "\t\n" else "␡" if c == "\x7f" else c for c in text
    )


@cache
def _environment() -> Environment:
    """The environment of all templates, made when the first page is rendered."""
    return Environment(
        loader=PackageLoader("keepsight.reports"),
        # Jinja's escaping by file name goes by the last ending, which is .jinja here, and would leave escaping off.
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _finalize(value: Any) -> Any:
    """Called by Jinja for every value before it is escaped."""
    # Markup came from a template and has passed here already.
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
