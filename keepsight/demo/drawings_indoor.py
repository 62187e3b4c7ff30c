"""Draws the objects of kitchen, office and living room.

Each function takes a pen and a colourway. Coordinates are in pixels of the scene, from the upper left corner of the object's
own box, whose size ``glyphs.BANK`` states. A colourway holds colours as ``#rrggbb``, in the order of the first line of the
function; it must not change the shape. Parts are drawn from back to front.
"""

from __future__ import annotations

from keepsight.demo.pen import Pen, darken, lighten, mix

Way = tuple[str, ...]


def draw_oven(p: Pen, way: Way) -> None:
    body, door, glow = way
    p.rect(3, 38, 9, 42, darken(body, 0.6), 1)
    p.rect(31, 38, 37, 42, darken(body, 0.6), 1)
    p.rect(0, 4, 40, 40, body, 2.5)
    p.rect(34, 12, 40, 40, darken(body, 0.12), 2.5)
    p.rect(-0.5, 3, 40.5, 6.5, darken(body, 0.55), 1)
    for x in (4.0, 23.0):
        p.rect(x, 0.8, x + 13, 3, "#2b2735", 1)
    p.rect(0, 6.5, 40, 13, darken(body, 0.18))
    for x in (5.5, 12.5, 27.5, 34.5):
        p.dot(x, 9.8, 2.4, "#2b2735")
        p.line([(x, 9.8), (x, 8)], "#ffffff", 0.8)
    p.rect(16.5, 8, 23.5, 11.6, "#22303a", 0.6)
    p.rect(18, 9.2, 22, 10.4, "#7fffd0")
    p.rect(6, 15, 34, 17.6, lighten(body, 0.75), 1.2)
    p.rect(4, 19.5, 36, 34, door, 2.5)
    p.rect(7, 22, 33, 31.8, glow, 1.5)
    p.poly([(7, 29), (33, 29), (33, 31.8), (7, 31.8)], mix(glow, "#ff7a2a", 0.45))
    for y in (25, 28.5):
        p.line([(8, y), (32, y)], darken(glow, 0.45), 0.7)
    p.poly([(11, 22), (15, 22), (10, 31.8), (7, 31.8), (7, 30)], lighten(glow, 0.4))
    p.rect(2, 36, 38, 38, darken(body, 0.25), 0.5)


def draw_refrigerator(p: Pen, way: Way) -> None:
    body, trim, note = way
    p.rect(3, 54, 8, 58, "#3a3444")
    p.rect(22, 54, 27, 58, "#3a3444")
    p.rect(0, 0, 30, 56, body, 4)
    p.rect(25, 2, 30, 55, darken(body, 0.13), 3)
    p.rect(0, 18, 30, 19.6, darken(body, 0.5))
    p.rect(3.5, 6, 6, 15.5, trim, 1.2)
    p.rect(3.5, 23, 6, 39, trim, 1.2)
    p.rect(0, 51.5, 30, 52.5, darken(body, 0.25))
    p.poly([(13, 24), (21, 23.4), (21.5, 32), (13.5, 32.6)], note)
    p.dot(17, 24, 1.3, "#e2434b")
    p.line([(15, 27.6), (19.6, 27.2)], darken(note, 0.4), 0.7)
    p.line([(15, 29.6), (18.6, 29.3)], darken(note, 0.4), 0.7)
    p.dot(14, 9.5, 1.7, "#f5b83d")
    p.dot(19, 12, 1.5, "#4aa3df")
    p.line([(9.5, 3), (20, 3)], lighten(body, 0.6), 1)


def draw_bowl(p: Pen, way: Way) -> None:
    body, band, inside = way
    p.rect(12, 19, 26, 23, darken(body, 0.3), 1)
    p.pie(0, -14, 38, 22, 0, 180, body)
    p.poly([(26, 4), (38, 4), (36.4, 11), (32, 17), (25, 21.2), (21, 22)], darken(body, 0.14))
    p.line([(3.2, 10.5), (10, 12.6), (19, 13.3), (28, 12.6), (34.8, 10.5)], band, 2.4)
    p.oval(0, 0, 38, 9, lighten(body, 0.55))
    p.oval(2, 1.2, 36, 7.8, inside)
    p.oval(8, 3.4, 34, 7.8, lighten(inside, 0.16))
    p.line([(4.6, 14), (8.6, 18)], lighten(body, 0.6), 1.3)


def draw_cup(p: Pen, way: Way) -> None:
    body, mark, drink = way
    p.ring(21.5, 14.5, 7.2, darken(body, 0.16), 3)
    p.poly([(0, 4), (21, 4), (19.6, 24), (17, 27), (4, 27), (1.4, 24)], body)
    p.poly([(15, 4), (21, 4), (19.6, 24), (17, 27), (14, 27)], darken(body, 0.14))
    p.oval(0, 0.5, 21, 7.5, lighten(body, 0.5))
    p.oval(1.8, 1.6, 19.2, 6.6, drink)
    p.pie(5.6, 12, 11, 17.4, 180, 360, mark)
    p.pie(9.8, 12, 15.2, 17.4, 180, 360, mark)
    p.poly([(5.7, 14.6), (15.1, 14.6), (10.4, 21)], mark)
    p.line([(3, 10), (3.8, 20)], lighten(body, 0.65), 1.2)


def draw_bottle(p: Pen, way: Way) -> None:
    glass, label, cap = way
    shape = [(5.2, 5), (10.8, 5), (10.8, 12), (12, 15.5), (15, 19), (16, 22), (16, 40), (14.5, 43)]
    p.poly([*shape, (1.5, 43), (0, 40), (0, 22), (1, 19), (4, 15.5), (5.2, 12)], glass)
    p.poly(
        [(10.8, 8), (10.8, 12), (12, 15.5), (15, 19), (16, 22), (16, 40), (14.5, 43), (12, 43), (12, 21)],
        darken(glass, 0.2),
    )
    p.rect(4.4, 0, 11.6, 5.5, cap, 1)
    p.rect(4.4, 6.5, 11.6, 8.3, lighten(glass, 0.35), 0.5)
    p.rect(0, 24, 16, 36, label)
    p.rect(0, 24, 16, 25.6, cap)
    p.rect(0, 34.4, 16, 36, cap)
    p.dot(8, 30, 2.8, mix(cap, label, 0.25))
    p.line([(3, 20.8), (3, 22.4)], lighten(glass, 0.7), 1.4)
    p.line([(3, 37.6), (3, 40)], lighten(glass, 0.6), 1.4)


def draw_banana(p: Pen, way: Way) -> None:
    peel, shade, tip = way
    back = [
        (30, 3),
        (33, 4),
        (32.5, 11),
        (28, 20),
        (19, 26.5),
        (8, 28),
        (1, 25.5),
        (2, 22.5),
        (10, 21.5),
        (19, 17.5),
        (25.5, 11),
    ]
    p.blob(
        [
            (29, 2),
            (31.5, 3),
            (28, 11),
            (22, 17),
            (13, 19.5),
            (3, 17.5),
            (0, 13.5),
            (2, 12),
            (10, 13.6),
            (18, 11.8),
            (25, 7),
        ],
        darken(peel, 0.1),
    )
    p.blob(back, peel)
    p.blob(
        [(32.4, 9), (32, 13), (27.6, 20.6), (19, 26.6), (8, 28), (2, 26), (9, 25.6), (18, 23.4), (26, 18)],
        shade,
    )
    p.stroke([(29, 8), (25, 14.5), (18, 20), (9, 23)], darken(peel, 0.2), 0.8)
    p.poly([(28.6, 0), (33, 0), (33.6, 5.4), (28.8, 4.4)], tip)
    p.dot(2, 24, 1.9, tip)
    p.dot(1.5, 13.3, 1.5, tip)


def draw_laptop(p: Pen, way: Way) -> None:
    shell, screen, accent = way
    p.rect(7, 0, 43, 25, darken(shell, 0.55), 2.2)
    p.rect(8.6, 1.6, 41.4, 23, screen, 1)
    p.poly(
        [(8.6, 23), (8.6, 17), (17, 11), (26, 18), (33, 13), (41.4, 19), (41.4, 23)],
        mix(screen, accent, 0.55),
    )
    p.dot(34, 7.5, 3, accent)
    p.poly([(7, 25), (43, 25), (50, 34), (0, 34)], shell)
    p.poly([(9.3, 26.2), (40.7, 26.2), (43.4, 30), (6.6, 30)], darken(shell, 0.6))
    for row, y in enumerate((27.2, 28.9)):
        p.line([(9 - row, y), (41 + row, y)], darken(shell, 0.25), 0.5)
    p.poly([(20.5, 31), (29.5, 31), (30.4, 33.2), (19.6, 33.2)], darken(shell, 0.22))
    p.rect(0, 34, 50, 36.4, darken(shell, 0.3), 1.1)


def draw_keyboard(p: Pen, way: Way) -> None:
    case, key, accent = way
    p.rect(0, 1.5, 54, 23, darken(case, 0.4), 2.5)
    p.rect(0, 0, 54, 21, case, 2.5)
    for row in range(3):
        for column in range(11):
            fill = accent if (row, column) in ((0, 0), (2, 10), (1, 10)) else key
            x, y = 2.4 + column * 4.55, 2 + row * 4.5
            p.rect(x, y, x + 3.5, y + 3.4, fill, 0.6)
    for x0, x1, fill in (
        (2.4, 6, key),
        (7, 11.4, key),
        (12.6, 38.4, key),
        (39.6, 44, key),
        (45, 51.5, accent),
    ):
        p.rect(x0, 15.5, x1, 18.9, fill, 0.6)


def draw_mouse(p: Pen, way: Way) -> None:
    shell, wheel, cable = way
    p.stroke([(12, 14), (12, 8), (15, 4.5), (20, 5), (23, 1.5)], cable, 1.7)
    p.blob(
        [
            (12, 11),
            (19, 12.4),
            (23, 18),
            (24, 27),
            (21.5, 34),
            (12, 38),
            (2.5, 34),
            (0, 27),
            (1, 18),
            (5, 12.4),
        ],
        shell,
    )
    p.blob(
        [(17.5, 12.2), (22.5, 18), (24, 27), (21.5, 34), (12, 38), (17.5, 32), (19.5, 24), (19, 17)],
        darken(shell, 0.16),
    )
    p.line([(12, 12), (12, 23)], darken(shell, 0.55), 1.1)
    p.stroke([(1, 22), (12, 24.4), (23, 22)], darken(shell, 0.55), 1.1)
    p.rect(10.2, 14.4, 13.8, 20.6, wheel, 1.7)
    p.stroke([(4.2, 27), (5, 31), (8, 34)], lighten(shell, 0.6), 1.2)


def draw_book(p: Pen, way: Way) -> None:
    cover, page, ribbon = way
    p.poly([(0, 5), (21, 8), (23, 8), (44, 5), (44, 31), (23, 34), (21, 34), (0, 31)], cover)
    left = [(2, 2.5), (8, 0.6), (15, 1.4), (22, 5), (22, 31.5), (15, 28), (8, 27.2), (2, 29)]
    p.poly([(x, y + 1.8) for x, y in left], darken(page, 0.3))
    p.poly([(44 - x, y + 1.8) for x, y in left], darken(page, 0.3))
    p.poly(left, page)
    p.poly([(44 - x, y) for x, y in left], darken(page, 0.07))
    p.poly([(18, 2.7), (22, 5), (26, 2.7), (26, 29.6), (22, 31.5), (18, 29.6)], darken(page, 0.2))
    p.line([(22, 5), (22, 31)], darken(page, 0.55), 0.9)
    ink = mix(page, "#3d3a55", 0.62)
    for row in range(5):
        y = 6 + row * 4.2
        p.line([(4.6, y), (10, y - 0.7), (17, y + 1.1)], ink, 1.1)
        if row > 1:
            p.line([(27, y + 1.1), (34, y - 0.7), (39.4, y)], ink, 1.1)
    p.poly([(28, 4.6), (34, 3.4), (39.4, 4), (39.4, 10.4), (34, 10), (28, 11.4)], mix(cover, page, 0.35))
    p.poly([(30, 27.5), (33.6, 27.2), (33.6, 35.5), (31.8, 33.4), (30, 35.5)], ribbon)


def draw_chair(p: Pen, way: Way) -> None:
    wood, seat = way
    dark = darken(wood, 0.3)
    for x in (9.5, 26.5):
        p.rect(x, 30, x + 3, 45, dark)
    p.rect(3, 0, 7, 50, wood, 1.6)
    p.rect(27, 0, 31, 30, wood, 1.6)
    p.rect(3, 2, 31, 7.6, wood, 2)
    p.rect(6, 11, 28, 14.6, lighten(wood, 0.16), 1)
    p.rect(6, 18, 28, 21.6, lighten(wood, 0.16), 1)
    p.rect(27, 30, 31, 50, wood, 1.6)
    p.poly([(4, 25.5), (30, 25.5), (34, 31), (0, 31)], seat)
    p.rect(0, 31, 34, 34.2, darken(seat, 0.28), 1)
    p.line([(7, 41), (27, 41)], wood, 1.8)


def draw_clock(p: Pen, way: Way) -> None:
    rim, face, hand = way
    for side in (-1, 1):
        p.line([(18 + side * 9, 33), (18 + side * 12, 37.4)], darken(rim, 0.35), 3)
        p.pie(
            18 + side * 9.5 - 7,
            0.5,
            18 + side * 9.5 + 7,
            14.5,
            180 + 14 * side,
            360 + 14 * side,
            lighten(rim, 0.2),
        )
    p.rect(16.5, 0, 19.5, 6, darken(rim, 0.35), 1)
    p.dot(18, 20.5, 16, rim)
    p.dot(18, 20.5, 12.8, face)
    for x, y in ((18, 10), (28.5, 20.5), (18, 31), (7.5, 20.5)):
        p.dot(x, y, 1.4, hand)
    p.line([(18, 20.5), (18, 13)], hand, 1.9)
    p.line([(18, 20.5), (24.4, 24.4)], hand, 1.9)
    p.dot(18, 20.5, 2, mix(rim, "#e2434b", 0.5))


def draw_couch(p: Pen, way: Way) -> None:
    cloth, pillow = way
    dark = darken(cloth, 0.2)
    for x in (6, 51):
        p.rect(x, 30, x + 4, 36, "#4a3328", 1)
    p.rect(6, 0, 55, 26, cloth, 6)
    p.line([(30.5, 2), (30.5, 18)], dark, 1)
    p.rect(7, 16, 54, 26, lighten(cloth, 0.14), 3)
    p.line([(30.5, 17), (30.5, 25)], dark, 1)
    p.rect(3, 24.5, 58, 33, dark, 2)
    p.rect(0, 10, 10.5, 33, cloth, 4.5)
    p.rect(50.5, 10, 61, 33, cloth, 4.5)
    p.rect(1.6, 11.2, 9, 16, lighten(cloth, 0.16), 2.4)
    p.rect(52, 11.2, 59.4, 16, lighten(cloth, 0.16), 2.4)
    p.poly([(12, 8.5), (21.5, 7), (23, 16.5), (13.5, 18)], pillow)
    p.line([(13, 13.4), (22.4, 12)], darken(pillow, 0.25), 1)
    p.poly([(39, 9), (47, 7.5), (49, 16), (41, 17.5)], lighten(pillow, 0.35))


def draw_tv(p: Pen, way: Way) -> None:
    case, screen, show = way
    p.line([(24, 11), (13, 0.8)], "#57536a", 1.6)
    p.line([(24, 11), (37, 0.8)], "#57536a", 1.6)
    p.dot(13, 1.4, 1.5, "#c9c6d4")
    p.dot(37, 1.4, 1.5, "#c9c6d4")
    p.line([(10, 40), (7, 45.6)], darken(case, 0.55), 2.4)
    p.line([(40, 40), (43, 45.6)], darken(case, 0.55), 2.4)
    p.rect(0, 9, 50, 42, case, 5)
    p.rect(0, 36, 50, 42, darken(case, 0.16), 4.5)
    p.rect(3, 12, 38, 39, "#262235", 4)
    p.rect(4.6, 13.4, 36.4, 37.6, screen, 3.6)
    p.blob([(5, 33), (11, 28), (18, 31), (26, 25), (36, 31), (36, 37), (5, 37)], show)
    p.poly([(9, 13.6), (16, 13.6), (7, 31), (4.8, 31), (4.8, 22)], lighten(screen, 0.42))
    p.dot(44, 17, 3, "#2b2735")
    p.dot(44, 25, 3, "#2b2735")
    p.line([(44, 17), (45.4, 15.4)], "#ffffff", 0.9)
    p.line([(44, 25), (42.6, 23.4)], "#ffffff", 0.9)
    for y in (30.6, 33, 35.4):
        p.line([(41.6, y), (46.4, y)], darken(case, 0.5), 0.9)


def draw_remote(p: Pen, way: Way) -> None:
    case, key, accent = way
    p.rect(0, 0, 16, 46, case, 4.5)
    p.rect(12, 2, 16, 44, darken(case, 0.3), 2)
    p.rect(1.4, 1.4, 3, 44, lighten(case, 0.25), 0.8)
    p.dot(8, 5.6, 2.5, accent)
    p.dot(8, 15, 5.4, key)
    p.dot(8, 15, 2.3, case)
    for row in range(4):
        for column in range(3):
            fill = accent if row == 3 and column == 1 else key
            p.dot(4 + column * 4, 25.5 + row * 5, 1.5, fill)


def draw_plant(p: Pen, way: Way) -> None:
    leaf, pot, rim = way
    deep, light = darken(leaf, 0.3), lighten(leaf, 0.2)
    p.line([(16, 33), (16, 18)], deep, 2)
    for tip, side, fill in (
        ((-0.5, 11), (9, 12), deep),
        ((32.5, 11), (23, 12), deep),
        ((1, 24), (10, 21), leaf),
        ((31, 24), (22, 21), leaf),
    ):
        away = (16 + tip[0]) / 2, (31 + tip[1]) / 2
        low = (away[0] * 2 - side[0], away[1] * 2 - side[1] + 1)
        p.blob([(16, 32), (side[0], side[1] + 4), tip, (low[0], low[1] - 2)], fill)
    p.blob([(16, 31), (9.6, 15), (12, 5), (16, -1), (20, 5), (22.4, 15)], leaf)
    p.blob([(16, 31), (16, 0), (19.6, 5.4), (22, 15)], light)
    p.line([(16, 30), (16, 3)], deep, 0.9)
    p.line([(15, 31), (5, 17)], light, 0.9)
    p.line([(17, 31), (27, 17)], light, 0.9)
    p.poly([(6, 33), (26, 33), (23.4, 47), (8.6, 47)], pot)
    p.poly([(19, 33), (26, 33), (23.4, 47), (18, 47)], darken(pot, 0.16))
    p.rect(4.4, 30, 27.6, 35.2, rim, 1.4)


def draw_cat(p: Pen, way: Way) -> None:
    fur, belly, stripe = way
    p.stroke([(23, 38), (31, 38), (34.5, 32), (32, 25), (34, 20)], fur, 4.4)
    p.stroke([(32.2, 27), (32, 25), (34, 20)], stripe, 4.4)
    p.blob([(15, 17), (22.5, 22), (27, 32), (25.5, 40), (15, 41.4), (4.5, 40), (3, 32), (7.5, 22)], fur)
    p.blob([(15, 22), (19.6, 28), (19, 37), (15, 39), (11, 37), (10.4, 28)], belly)
    p.poly([(3, 12), (2.4, 0), (12, 5.4)], fur)
    p.poly([(27, 12), (27.6, 0), (18, 5.4)], fur)
    p.poly([(4.8, 8), (4.4, 3.4), (9, 6)], "#f2a0a4")
    p.poly([(25.2, 8), (25.6, 3.4), (21, 6)], "#f2a0a4")
    p.oval(1.6, 3.6, 28.4, 22.6, fur)
    for x in (12, 15, 18):
        p.line([(x, 4.4), (x, 8)], stripe, 1.5)
    p.oval(9, 13.6, 21, 21.8, belly)
    for x in (9, 21):
        p.oval(x - 2.2, 9.4, x + 2.2, 14.6, "#e9f08a")
        p.oval(x - 0.9, 9.6, x + 0.9, 14.4, "#1d1826")
    p.poly([(13.2, 15), (16.8, 15), (15, 17.2)], "#e0707c")
    p.stroke([(12, 18.6), (13.6, 19.4), (15, 17.6), (16.4, 19.4), (18, 18.6)], "#4a3540", 0.8)
    for side in (-1, 1):
        for y, drop in ((15.6, -1), (17.6, 1.2)):
            p.line([(15 + side * 6.5, y), (15 + side * 14.5, y + drop)], "#f8f4ee", 0.7)
    p.oval(8, 37, 14.4, 42, lighten(fur, 0.12))
    p.oval(15.6, 37, 22, 42, lighten(fur, 0.12))
