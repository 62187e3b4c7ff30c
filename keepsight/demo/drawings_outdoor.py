"""Draws the objects of street and park. The functions are like those of ``drawings_indoor``."""

from __future__ import annotations

import math

from keepsight.demo.pen import Pen, Point, darken, lighten

Way = tuple[str, ...]


def draw_car(p: Pen, way: Way) -> None:
    paint, glass = way
    p.blob([(10, 12), (15, 3.5), (22, 0.5), (33, 0.5), (40, 4), (46, 11), (46, 15), (10, 15)], paint)
    p.poly([(14, 11.6), (17.6, 4.6), (21.6, 3), (27, 3), (27, 11.6)], glass)
    p.poly([(29.6, 11.6), (29.6, 3), (34, 3.2), (38.4, 5.6), (42.4, 11.6)], glass)
    p.poly([(17.8, 4.6), (20.2, 3.4), (17.4, 11.6), (14.2, 11.6)], lighten(glass, 0.5))
    p.blob(
        [
            (1, 15),
            (5, 12.4),
            (16, 11.4),
            (44, 11.4),
            (54, 13.4),
            (58.6, 17),
            (59, 24),
            (55, 26),
            (4, 26),
            (0.6, 22),
        ],
        paint,
    )
    p.poly([(1, 20.5), (58.8, 20.5), (58.4, 25), (55, 26), (4, 26), (0.8, 23)], darken(paint, 0.2))
    p.line([(28.3, 12), (28.3, 23)], darken(paint, 0.35), 0.9)
    p.rect(30.5, 14.2, 35, 15.8, darken(paint, 0.4), 0.6)
    p.oval(54.6, 14.6, 59, 19.4, "#ffe9a0")
    p.rect(0.6, 15, 3.4, 19, "#e2434b", 0.8)
    for x in (13.5, 46):
        p.pie(x - 8, 17, x + 8, 33, 180, 360, darken(paint, 0.6))
        p.dot(x, 25.2, 6.4, "#2a2533")
        p.dot(x, 25.2, 3.4, "#cfd2da")
        p.dot(x, 25.2, 1.3, "#6b6878")


def draw_traffic_light(p: Pen, way: Way) -> None:
    case, plate = way
    p.rect(7.6, 38, 12.4, 60, "#6a6878", 0.8)
    p.rect(10.4, 38, 12.4, 60, "#4e4b5c", 0.8)
    p.rect(4.6, 56.4, 15.4, 60, "#4e4b5c", 1)
    p.rect(0, 0, 20, 42, plate, 3.4)
    p.rect(2.2, 2.2, 17.8, 39.8, case, 2.6)
    for y, bright in ((8.8, "#ff4238"), (21, "#ffc42e"), (33.2, "#35d86c")):
        p.dot(10, y, 5.2, darken(bright, 0.28))
        p.dot(10, y + 0.2, 4.5, bright)
        p.dot(8.4, y - 1.4, 1.4, lighten(bright, 0.65))


def draw_bicycle(p: Pen, way: Way) -> None:
    frame, tyre = way
    rear, front, crank = (11.0, 24.0), (44.0, 24.0), (25.5, 24.5)
    for x, y in (rear, front):
        p.ring(x, y, 11, tyre, 2.4)
        p.ring(x, y, 8.7, "#c9ccd6", 0.8)
        p.dot(x, y, 1.8, tyre)
    seat, head = (20.5, 8.0), (39.0, 9.0)
    for path in ([rear, crank, head, seat, rear], [seat, crank], [(38, 4), front]):
        p.line(path, frame, 2.5)
    p.line([(20.5, 8), (19.4, 4)], frame, 2)
    p.rect(14, 1.8, 24, 5, "#3b2c2a", 1.6)
    p.stroke([(38, 4.6), (37.4, 1.6), (41.5, 1), (44.5, 2.6), (43.5, 5.6)], "#3b2c2a", 2.2)
    p.dot(*crank, 3.2, "#cfd2da")
    p.line([crank, (28.5, 30.5)], "#57536a", 1.6)
    p.line([(26.4, 30.8), (31, 30.4)], "#3b2c2a", 1.8)


def draw_person(p: Pen, way: Way) -> None:
    skin, hair, shirt, trousers = way
    p.poly([(6.4, 33), (12.4, 33), (11.4, 55), (6.8, 55)], trousers)
    p.poly([(11.6, 33), (17.6, 33), (17.2, 55), (12.6, 55)], darken(trousers, 0.18))
    p.rect(4.6, 54, 11.6, 58, "#2f2a3a", 1.6)
    p.rect(12.4, 54, 19.4, 58, "#2f2a3a", 1.6)
    p.line([(5.4, 20.5), (2.2, 33.4)], shirt, 4.6)
    p.line([(18.6, 20.5), (21.8, 33.4)], darken(shirt, 0.18), 4.6)
    p.dot(2.1, 35.4, 2.2, skin)
    p.dot(21.9, 35.4, 2.2, skin)
    p.rect(10, 13, 14, 20, darken(skin, 0.16))
    p.rect(4.6, 17, 19.4, 36, shirt, 4)
    p.rect(14.6, 19, 19.4, 36, darken(shirt, 0.14), 2)
    p.poly([(9, 17), (15, 17), (12, 21.4)], skin)
    p.oval(4.6, -0.6, 19.4, 14, hair)
    p.oval(6, 2.4, 18, 16.4, skin)
    p.pie(5, -0.4, 19, 12, 180, 360, hair)
    p.poly([(5, 5.6), (5, 10), (7, 7), (13, 5.8), (17, 7), (19, 10), (19, 5.6)], hair)
    p.dot(9.6, 9.6, 0.95, "#2a2030")
    p.dot(14.4, 9.6, 0.95, "#2a2030")
    p.stroke([(10, 12.6), (12, 13.8), (14, 12.6)], "#9c4a44", 0.9)


def _octagon(x: float, y: float, r: float) -> list[Point]:
    """The corners of a regular octagon around a point, with one side on top; ``r`` is the distance of a corner."""
    turn = math.pi / 8
    return [
        (x + r * math.cos(turn + i * math.pi / 4), y + r * math.sin(turn + i * math.pi / 4)) for i in range(8)
    ]


def draw_stop_sign(p: Pen, way: Way) -> None:
    red, pole = way
    p.rect(14.4, 28, 18.6, 60, pole, 0.8)
    p.rect(16.8, 28, 18.6, 60, darken(pole, 0.3), 0.8)
    p.poly(_octagon(16.5, 16.5, 17.6), "#ffffff")
    p.poly(_octagon(16.5, 16.5, 15.6), red)
    white = "#ffffff"  # the letters S, T, O and P follow
    p.line(
        [(8.6, 13.6), (7.6, 12.8), (5.2, 12.8), (4.6, 14.6), (8, 17.6), (8.4, 19.6), (7, 20.4), (4.6, 20)],
        white,
        1.4,
    )
    p.line([(10.4, 12.8), (15.2, 12.8)], white, 1.4)
    p.line([(12.8, 12.8), (12.8, 20.2)], white, 1.4)
    p.rect(16.2, 12, 22, 21, white, 2)
    p.rect(17.7, 13.6, 20.5, 19.4, red, 1)
    p.line([(24.4, 12.8), (24.4, 20.4)], white, 1.4)
    p.line([(24.4, 12.8), (27.6, 12.8), (28.4, 14.6), (27.6, 16.6), (24.4, 16.8)], white, 1.4)


def draw_bench(p: Pen, way: Way) -> None:
    wood, iron = way
    for x in (9.0, 46.0):
        p.line([(x, 25), (x, 33)], darken(iron, 0.3), 2.2)
    for x, out in ((3.5, -1.0), (53.5, 1.0)):
        p.line([(x, 2), (x, 35.5)], iron, 3)
        p.line([(x - 2.5, 36), (x + 2.5, 36)], iron, 2)
        p.stroke([(x, 15), (x + out * 3.4, 15.6), (x + out * 3, 21)], iron, 2)
    for y, share in ((1, 0.14), (6.8, 0.05), (12.6, 0.0)):
        p.rect(0.5, y, 56.5, y + 4.4, lighten(wood, share), 1.2)
    p.rect(1, 19.6, 56, 22.6, lighten(wood, 0.2), 1)
    p.rect(-0.5, 23, 57.5, 27, wood, 1.2)
    p.rect(-0.5, 25.6, 57.5, 27.4, darken(wood, 0.3), 0.8)


def draw_dog(p: Pen, way: Way) -> None:
    fur, ear, collar = way
    shade = darken(fur, 0.2)
    p.stroke([(6, 18), (1.6, 13), (2.2, 6), (5, 3)], fur, 3.6)
    p.rect(11, 26, 15.2, 38, shade, 1.6)
    p.rect(24.4, 26, 28.6, 38, shade, 1.6)
    p.blob([(5, 17), (14, 14.6), (26, 15), (33, 14), (34, 22), (30, 29), (18, 28.6), (8, 29), (4, 24)], fur)
    p.rect(5.4, 24, 10.4, 39, fur, 2)
    p.rect(28.8, 22, 33.8, 39, fur, 2)
    p.rect(5.4, 36.4, 12, 39, fur, 1.2)
    p.rect(28.8, 36.4, 35.4, 39, fur, 1.2)
    p.blob([(12, 17), (20, 16), (23, 20), (18, 24), (11, 22)], ear)
    p.poly([(26, 13), (36, 14), (34.6, 20), (27.6, 20)], fur)
    p.line([(27.4, 18.2), (35, 17.2)], collar, 2.4)
    p.dot(33.4, 19.6, 1.5, "#ffd34d")
    p.blob(
        [(26, 6), (31, 1.6), (37, 3.2), (40, 7.4), (46.6, 8.6), (47.6, 12), (44, 15.4), (35, 16.4), (28, 14)],
        fur,
    )
    p.blob([(40, 10), (46.8, 9.4), (47.4, 12.2), (44, 15), (38, 15.4)], lighten(fur, 0.5))
    p.oval(44, 7, 48.4, 10.8, "#211b2a")
    p.poly([(40, 15), (43.4, 14.4), (43.4, 18.4), (41.4, 19)], "#ee7b88")
    p.dot(37.4, 7.6, 1.4, "#211b2a")
    p.blob([(27.4, 4), (31.6, 2.6), (32.6, 8), (31.4, 15), (27.4, 17.4), (24.4, 12.6)], ear)


def draw_frisbee(p: Pen, way: Way) -> None:
    disc, ring = way
    left = 10.0  # room for the streaks that draw_flight draws behind the disc
    p.oval(left, 3.4, left + 38, 22, darken(disc, 0.35))
    p.oval(left, 0, left + 38, 18.6, disc)
    p.oval(left + 3.6, 1.6, left + 34.4, 15.6, lighten(disc, 0.3))
    p.oval(left + 5, 2.4, left + 33, 14.8, disc)
    # A star of five points, squeezed like the disc that it lies on
    star = []
    for i in range(10):
        reach, angle = (1.0 if i % 2 == 0 else 0.45), -math.pi / 2 + i * math.pi / 5
        star.append((left + 19 + 10.4 * reach * math.cos(angle), 8.8 + 5.6 * reach * math.sin(angle)))
    p.poly(star, ring)
    p.stroke([(left + 2.6, 13.8), (left + 9, 17.2), (left + 19, 18.2)], lighten(disc, 0.55), 1.1)


def draw_flight(p: Pen) -> None:
    """Draw streaks of air behind a thrown disc. They have no outline, unlike the disc itself."""
    for y, x in ((4.4, 3.5), (10.4, 0.0), (16.6, 2.0)):
        p.stroke([(x, y + 1.2), (x + 4, y + 0.4), (x + 8, y)], "#ffffff", 1.5)


def draw_bird(p: Pen, way: Way) -> None:
    body, wing, belly = way
    p.poly([(0, 15), (10, 18), (9, 25), (1.4, 22), (4.2, 19)], wing)
    p.blob([(21, 17), (17, 8), (17.4, 0), (23, 4), (28, 12)], darken(wing, 0.25))
    p.blob([(6, 20), (14, 15), (26, 12), (33, 10.4), (37, 14.4), (34, 21), (26, 27), (15, 26.4)], body)
    p.blob([(14, 25.4), (24, 23), (34, 18), (33, 22.4), (26, 27), (16, 27)], belly)
    p.dot(33, 13.4, 5, body)
    p.poly([(37.4, 11.4), (44, 14), (37.2, 16.4)], "#f59a23")
    p.dot(34.4, 12.2, 1.9, "#ffffff")
    p.dot(34.8, 12.2, 1.2, "#211b2a")
    p.blob([(15, 21), (9, 10), (4, 1), (14, 3), (24, 11), (27, 19), (22, 22.4)], wing)
    p.stroke([(18, 20), (13, 11), (7, 3.4)], lighten(wing, 0.35), 1.1)
    p.stroke([(22, 18.4), (18, 11), (12, 5)], lighten(wing, 0.35), 1.1)


def draw_kite(p: Pen, way: Way) -> None:
    first, second, third, tail = way
    p.stroke([(20, 29), (22.5, 36), (18.5, 43), (20.5, 52)], darken(tail, 0.25), 1.6)
    for x, y in ((22, 37), (19, 47)):
        p.poly([(x, y), (x - 6.4, y - 3.4), (x - 6, y + 3.6)], tail)
        p.poly([(x, y), (x + 6.4, y - 3), (x + 6, y + 4)], lighten(tail, 0.3))
    top, left, right, low, mid = (20.0, 0.0), (4.0, 12.0), (36.0, 12.0), (20.0, 32.0), (20.0, 12.0)
    p.poly([top, left, mid], first)
    p.poly([top, right, mid], second)
    p.poly([left, low, mid], third)
    p.poly([right, low, mid], first)
    p.line([top, low], "#fff7e8", 1.1)
    p.line([left, right], "#fff7e8", 1.1)


def draw_umbrella(p: Pen, way: Way) -> None:
    first, second, stick = way
    p.line([(22, 6), (22, 38)], stick, 2.2)
    p.stroke([(22, 37), (22.4, 42), (25.6, 43.4), (28.4, 41), (28.6, 38)], stick, 2.6)
    p.line([(22, 4), (22, 0.6)], stick, 2)
    # The canopy: five panels between ribs, each with its lower edge drawn in
    edges = (0.0, 8.8, 17.6, 26.4, 35.2, 44.0)
    crown = (22.0, 3.0)
    for i, fill in enumerate((first, second, first, second, first)):
        x0, x1 = edges[i], edges[i + 1]
        bow = [(x0 + (x1 - x0) * t / 8, 22 - 3.6 * math.sin(math.pi * t / 8)) for t in range(9)]
        left = [_canopy(x0, t / 10, crown) for t in range(11)]
        right = [_canopy(x1, t / 10, crown) for t in range(11)]
        p.poly([*left, *bow, *reversed(right)], fill if i < 3 else darken(fill, 0.14))
    p.stroke([(6.4, 16), (9.6, 10.6), (14.5, 7)], lighten(first, 0.5), 1.2)


def _canopy(edge: float, t: float, crown: Point) -> Point:
    """A point of a rib of the canopy: a quarter ellipse from the crown, for ``t`` = 0, down to (edge, 22), for ``t`` = 1."""
    angle = t * math.pi / 2
    return crown[0] + (edge - crown[0]) * math.sin(angle), 22 - (22 - crown[1]) * math.cos(angle)
