"""The templates: what is escaped, and what is an error."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from keepsight.reports.templating import _environment, printable, render

NAMES = ("base", "chair_page", "compare_page", "demo_page", "svg_scatter")


def test_values_are_escaped_once_and_control_characters_shown() -> None:
    template = _environment().from_string('<p title="{{ a }}">{{ b }}</p>')
    assert template.render(a='"<', b="a\x00 & \x7f\t") == '<p title="&#34;&lt;">a␀ &amp; ␡\t</p>'
    assert template.render(a="", b=Markup("<b>&amp;</b>")) == '<p title=""><b>&amp;</b></p>'
    assert printable("a\nb\r") == "a\nb␍"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "base"])
def test_a_value_that_is_not_given_is_an_error(name: str) -> None:
    with pytest.raises(UndefinedError):
        render(name)


def test_no_template_turns_escaping_off() -> None:
    loader = _environment().loader
    assert loader is not None
    found = [name for name in loader.list_templates() if name.endswith(".jinja")]
    assert sorted(found) == sorted(f"{name}.html.jinja" for name in NAMES)
    for name in found:
        source, _, _ = loader.get_source(_environment(), name)
        assert "|safe" not in source.replace(" ", "")
        assert "autoescape" not in source
