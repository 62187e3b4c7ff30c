"""A pen that draws flat shapes in picture units onto a supersampled canvas.

Pillow draws without antialiasing. Drawings are therefore made several times too large and then scaled down.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

Point = tuple[float, float]
"""x to the right and y downwards, from the upper left corner, in picture units."""
CLEAR = "#00000000"
"""A fill that is fully transparent."""


def mix(first: str, second: str, share: float) -> str:
    """Blend two "#rrggbb" colours; share 0 gives the first, 1 the second."""
    a = [int(first[i : i + 2], 16) for i in (1, 3, 5)]
    b = [int(second[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in zip(a, b, strict=True))


def darken(colour: str, share: float = 0.2) -> str:
    """Blend a "#rrggbb" colour towards deep plum, which keeps shades warmer than black would; share is in [0, 1]."""
    return mix(colour, "#241a38", share)


def lighten(colour: str, share: float = 0.3) -> str:
    """Blend a "#rrggbb" colour towards white; share is in [0, 1]."""
    return mix(colour, "#ffffff", share)


def smooth(points: Sequence[Point], closed: bool = True, steps: int = 8) -> list[Point]:
    """A Catmull-Rom curve through the points, as a dense list of points.

    Args:
        points: the points, at least two.
        closed: whether the curve returns from the last point to the first; default True.
        steps: how many points of the result there are for each given one; default 8.
    """
    count = len(points)
    curve: list[Point] = []
    for i in range(count if closed else count - 1):
        # Each stretch of the curve, from p1 to p2, also depends on the points before and behind it. An open curve has none
        # beyond its ends, where the end itself stands in
        if closed:
            p0, p1, p2, p3 = (points[(i + j - 1) % count] for j in range(4))
        else:
            p0, p1, p2, p3 = (points[min(max(i + j - 1, 0), count - 1)] for j in range(4))
        for step in range(steps):
            t = step / steps
            # The cubic that passes through p1 and p2, with a slope at each that is half the way between its neighbours
            weights = (
                -0.5 * t + t * t - 0.5 * t**3,
                1 - 2.5 * t * t + 1.5 * t**3,
                0.5 * t + 2 * t * t - 1.5 * t**3,
                -0.5 * t * t + 0.5 * t**3,
            )
            near = (p0, p1, p2, p3)
            curve.append(
                (
                    sum(w * p[0] for w, p in zip(weights, near, strict=True)),
                    sum(w * p[1] for w, p in zip(weights, near, strict=True)),
                )
            )
    if not closed:
        curve.append(points[-1])
    return curve


class Pen:
    """Draws on a canvas that is ``width`` x ``height`` units large.

    All coordinates, radii and widths are in units, and ``fill`` is a colour as Pillow reads it, such as ``#rrggbb``.

    Args:
        width, height: the size of the canvas in units.
        scale: canvas pixels for each unit.
        pad: units around the canvas that can be drawn on as well; default 0. The canvas is larger by twice as much, and its
            origin is where it would be without.
        fill: the colour of the empty canvas; by default transparent.
    """

    def __init__(
        self, width: float, height: float, scale: float, pad: float = 0.0, fill: str = CLEAR
    ) -> None:
        self.width, self.height, self.scale, self.pad = width, height, scale, pad
        size = (round((width + 2 * pad) * scale), round((height + 2 * pad) * scale))
        self.image = Image.new("RGBA", size, fill)
        self._draw = ImageDraw.Draw(self.image)

    def _at(self, points: Sequence[Point]) -> list[Point]:
        """The same points in canvas pixels."""
        return [((x + self.pad) * self.scale, (y + self.pad) * self.scale) for x, y in points]

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: str, r: float = 0.0) -> None:
        """Draw a rectangle between two opposite corners, rounded with radius ``r``."""
        (a, b), (c, d) = self._at([(x0, y0), (x1, y1)])
        # Pillow counts the pixels of the lower right corner in, and raises ValueError for a box that is turned inside out
        self._draw.rounded_rectangle((a, b, max(a, c - 1), max(b, d - 1)), r * self.scale, fill)

    def oval(self, x0: float, y0: float, x1: float, y1: float, fill: str) -> None:
        """Draw an ellipse inside the rectangle of two opposite corners."""
        (a, b), (c, d) = self._at([(x0, y0), (x1, y1)])
        self._draw.ellipse((a, b, max(a, c - 1), max(b, d - 1)), fill)

    def dot(self, x: float, y: float, r: float, fill: str) -> None:
        """Draw a disc around a centre."""
        self.oval(x - r, y - r, x + r, y + r, fill)

    def ring(self, x: float, y: float, r: float, fill: str, width: float) -> None:
        """Draw a circle line around a centre; ``r`` is its outer radius."""
        (a, b), (c, d) = self._at([(x - r, y - r), (x + r, y + r)])
        self._draw.ellipse((a, b, c - 1, d - 1), None, fill, round(width * self.scale))

    def poly(self, points: Sequence[Point], fill: str) -> None:
        """Draw a polygon."""
        self._draw.polygon(self._at(points), fill)

    def blob(self, points: Sequence[Point], fill: str) -> None:
        """Draw a shape whose outline is a smooth curve through the points."""
        self.poly(smooth(points), fill)

    def pie(self, x0: float, y0: float, x1: float, y1: float, start: float, end: float, fill: str) -> None:
        """Draw a sector of an ellipse, clockwise between two angles in degrees; 0 is to the right."""
        (a, b), (c, d) = self._at([(x0, y0), (x1, y1)])
        self._draw.pieslice((a, b, c - 1, d - 1), start, end, fill)

    def line(self, points: Sequence[Point], fill: str, width: float) -> None:
        """Draw straight lines from point to point, with round joints and ends."""
        at = self._at(points)
        self._draw.line(at, fill, max(1, round(width * self.scale)), "curve")
        # Pillow rounds the joints ("curve") and cuts the ends off straight
        r = width * self.scale / 2 - 0.5
        for x, y in (at[0], at[-1]):
            self._draw.ellipse((x - r, y - r, x + r, y + r), fill)

    def stroke(self, points: Sequence[Point], fill: str, width: float) -> None:
        """Draw a smooth line through the points."""
        self.line(smooth(points, closed=False), fill, width)
