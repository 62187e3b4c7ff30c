"""A pen that draws flat shapes in picture units onto a supersampled canvas."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

Point = tuple[float, float]
CLEAR = "#00000000"


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
    """Catmull-Rom curve through the points, as a dense list of points."""
    count = len(points)
    curve: list[Point] = []
    for i in range(count if closed else count - 1):
        if closed:
            p0, p1, p2, p3 = (points[(i + j - 1) % count] for j in range(4))
        else:
            p0, p1, p2, p3 = (points[min(max(i + j - 1, 0), count - 1)] for j in range(4))
        for step in range(steps):
            t = step / steps
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
    """Draws on a canvas `width` x `height` units large, `scale` canvas pixels to the unit."""

    def __init__(
        self, width: float, height: float, scale: float, pad: float = 0.0, fill: str = CLEAR
    ) -> None:
        self.width, self.height, self.scale, self.pad = width, height, scale, pad
        size = (round((width + 2 * pad) * scale), round((height + 2 * pad) * scale))
        self.image = Image.new("RGBA", size, fill)
        self._draw = ImageDraw.Draw(self.image)

    def _at(self, points: Sequence[Point]) -> list[Point]:
        return [((x + self.pad) * self.scale, (y + self.pad) * self.scale) for x, y in points]

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: str, r: float = 0.0) -> None:
        (a, b), (c, d) = self._at([(x0, y0), (x1, y1)])
        self._draw.rounded_rectangle((a, b, max(a, c - 1), max(b, d - 1)), r * self.scale, fill)

    def oval(self, x0: float, y0: float, x1: float, y1: float, fill: str) -> None:
        (a, b), (c, d) = self._at([(x0, y0), (x1, y1)])
        self._draw.ellipse((a, b, max(a, c - 1), max(b, d - 1)), fill)

    def dot(self, x: float, y: float, r: float, fill: str) -> None:
        self.oval(x - r, y - r, x + r, y + r, fill)

    def ring(self, x: float, y: float, r: float, fill: str, width: float) -> None:
        (a, b), (c, d) = self._at([(x - r, y - r), (x + r, y + r)])
        self._draw.ellipse((a, b, c - 1, d - 1), None, fill, round(width * self.scale))

    def poly(self, points: Sequence[Point], fill: str) -> None:
        self._draw.polygon(self._at(points), fill)

    def blob(self, points: Sequence[Point], fill: str) -> None:
        self.poly(smooth(points), fill)

    def pie(self, x0: float, y0: float, x1: float, y1: float, start: float, end: float, fill: str) -> None:
        (a, b), (c, d) = self._at([(x0, y0), (x1, y1)])
        self._draw.pieslice((a, b, c - 1, d - 1), start, end, fill)

    def line(self, points: Sequence[Point], fill: str, width: float) -> None:
        at = self._at(points)
        self._draw.line(at, fill, max(1, round(width * self.scale)), "curve")
        r = width * self.scale / 2 - 0.5
        for x, y in (at[0], at[-1]):
            self._draw.ellipse((x - r, y - r, x + r, y + r), fill)

    def stroke(self, points: Sequence[Point], fill: str, width: float) -> None:
        self.line(smooth(points, closed=False), fill, width)
