"""The scatter plot: where its dots stand, what its axes name, and that its texts are escaped."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from keepsight.reports.svg_scatter import Point, Span, draw


def point(x: float, y: float, number: int = 0, **options: object) -> Point:
    return Point(
        number=number, style=f"series-{number}", tip="a tip", x=Span(x, x, x), y=Span(y, y, y), **options
    )  # type: ignore[arg-type]


def found(svg: str, tag: str, style: str) -> list[ElementTree.Element]:
    return [one for one in ElementTree.fromstring(svg).iter(tag) if one.get("class") == style]


def test_dots_stand_to_scale() -> None:
    """The axis across runs from 10 to 50 in steps of 10: 20 stands a quarter of the way, 40 three quarters."""
    spans = [
        Point(number=number, style="", tip="", x=Span(value, low, high), y=Span(value, low, high))
        for number, (value, low, high) in enumerate([(20, 10, 30), (40, 30, 50)])
    ]
    svg = draw("a rate", spans, x="across", y="up")
    ticks = found(svg, "text", "tick")
    assert [tick.text for tick in ticks] == ["10", "20", "30", "40", "50"]
    left, right = (float(ticks[at].get("x", "")) for at in (0, -1))
    upward = found(svg, "text", "tick side")
    low, high = (float(upward[at].get("y", "")) - 4 for at in (0, -1))
    discs = sorted(found(svg, "circle", "disc"), key=lambda one: float(one.get("cx", "")))
    for disc, share in zip(discs, (0.25, 0.75), strict=True):
        assert float(disc.get("cx", "")) == pytest.approx(left + share * (right - left), abs=0.1)
        assert float(disc.get("cy", "")) == pytest.approx(low + share * (high - low), abs=0.1)
    assert low > high


def test_one_value_has_axes() -> None:
    svg = draw("a rate", [point(1.0, 1.0, control=(Span(1, 1, 1), Span(1, 1, 1)))], x="across", y="up")
    assert len(found(svg, "text", "tick")) >= 2
    assert len(found(svg, "circle", "ring")) == 1
    assert not re.search("nan|inf", svg)


def test_a_control_widens_the_axes() -> None:
    far = draw("a", [point(1.0, 1.0, control=(Span(9, 9, 9), Span(0, 0, 0)))], x="across", y="up")
    assert found(far, "text", "tick")[-1].text == "10"
    (ring,) = found(far, "circle", "ring")
    (disc,) = found(far, "circle", "disc")
    assert float(ring.get("cx", "")) > float(disc.get("cx", ""))
    assert float(ring.get("cy", "")) > float(disc.get("cy", ""))


def test_the_first_dot_lies_on_top() -> None:
    svg = draw("a", [point(1.0, 1.0, 0), point(1.0, 1.0, 1)], x="across", y="up")
    assert [one.text for one in found(svg, "text", "count")] == ["1", "0"]


def test_texts_are_escaped() -> None:
    nasty = Point(number=0, style="", tip="<t> & \x00", x=Span(1, 0, 2), y=Span(1, 0, 2))
    svg = draw('a "rate" <b>', [nasty], x="<x>", y="<y>")
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'a "rate" <b>'
    assert [one.text for one in found(svg, "text", "axis")] == ["<x>", "<y>"]
    assert [one.text for one in root.iter("title")] == ["<t> & ␀"]
