"""Draws attention maps: for each object word of a caption a heat map over the picture, before and after methods act."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from keepsight.reports.attention_share_figure import HEIGHT, Curve, Mark, strip
from keepsight.reports.pillow_text import (
    ABSENT,
    AFTERS,
    BEFORE,
    CARD,
    INK,
    LINE,
    PAPER,
    SMOOTH,
    SOFT,
    Piece,
    notes_on_fonts,
    plain_pieces,
    shorten,
    text_width,
    wrap,
    write,
    write_pieces,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from keepsight.analysis.attention_maps import AttentionMap, Sink, WordMap

Key = tuple[str, int]
"""An object, and the number of the mention in the caption, from 0. Words with the same key share a column."""

HEAT = ("#150b37", "#5b1a78", "#b8325f", "#f07c3a", "#fde98c")
"""Colours of a map from zero to its largest value. Lightness rises all the way, so that the order survives in grey."""
MARGIN, GAP, PANEL = 56, 24, 216
FEWEST, PER_BAND = 4, 6
"""The bounds of how many panels stand side by side: as many as there are words, within these. Fewer panels are larger."""
WIDTH = 2 * MARGIN + PER_BAND * PANEL + (PER_BAND - 1) * GAP
OVER, UNDER = 34, 96
"""Pixels above a row of panels for its name, and below it for words, bars and shares."""


def draw(
    picture: Image.Image,
    maps: Sequence[AttentionMap],
    *,
    model: str,
    prompt: str,
    averaged: str,
    present: Collection[str] | None = None,
    remarks: Sequence[str] = (),
) -> Image.Image:
    """The whole figure, an RGB image `WIDTH` pixels wide.

    Args:
        picture: the part of the picture that the model saw, and nothing more, because the maps are laid over all of it.
        maps: the map of the plain model, and then one for each alternative.
        model, prompt: what stands under the title.
        averaged: the layers that the maps are the mean of, in words.
        present: the objects known to be in the picture; words for other objects are struck. None: it is not known.
        remarks: further notes for the foot of the figure.
    """
    picture = picture.convert("RGB")
    # The height of the canvas depends on all texts after they are broken into lines, so everything is measured first and
    # drawn afterwards.
    columns = columns_of(maps)
    bands = [columns[at : at + PER_BAND] for at in range(0, len(columns), PER_BAND)]
    across = min(max(len(columns), FEWEST), PER_BAND)
    # A caption with few words would leave most of the figure empty, so its panels are made larger.
    wide = (WIDTH - 2 * MARGIN - (across - 1) * GAP) // across
    tall, small = height_of(picture, wide), height_of(picture, PANEL)
    left = MARGIN + PANEL + 2 * GAP
    captions = [
        list(
            wrap(
                [Piece(f"{row_name(maps, i)}:", tint(i)), *caption_pieces(one, present)],
                WIDTH - MARGIN - left,
                22,
            )
        )
        for i, one in enumerate(maps)
    ]
    fonts = notes_on_fonts([model, prompt, *(one.caption for one in maps)])
    told = [*explain(maps, averaged, present), *remarks, *fonts]
    notes = [line for note in told for line in wrap(plain_pieces(note), WIDTH - 2 * MARGIN, 17)]
    header = max(small, 122 + sum(30 * len(lines) + 14 for lines in captions))
    found = [keyed(one) for one in maps]
    # A row in which no caption holds any of a band's words would consist of placeholders alone, so it is left out.
    shown = [[row for row, words in enumerate(found) if words.keys() & set(keys)] for keys in bands]
    body = sum(len(rows) * (OVER + tall + UNDER) + 20 for rows in shown)
    curves = curves_of(maps, present)
    plot = HEIGHT + 28 if curves else 0
    canvas = Image.new("RGB", (WIDTH, 2 * MARGIN + header + 36 + body + plot + 24 * len(notes)), PAPER)
    pen = ImageDraw.Draw(canvas)

    # The header: the picture, the captions beside it, and the legend.
    paste_rounded(canvas, picture.resize((PANEL, small), Image.Resampling.LANCZOS), (MARGIN, MARGIN))
    write(pen, (left, MARGIN - 8), "Where the model looks", 40)
    write(pen, (left, MARGIN + 50), shorten(f"{model}   ·   {prompt}", WIDTH - MARGIN - left, 19), 19, SOFT)
    y = MARGIN + 100
    for lines in captions:
        for line in lines:
            write_pieces(pen, (left, y), line, 22)
            y += 30
        y += 14
    legend(canvas, (WIDTH - MARGIN - 300, MARGIN - 2), rings=any(one.sinks for one in maps))

    # The bands of panels, one row for each alternative in each band.
    y = MARGIN + header + 36
    for keys, rows in zip(bands, shown, strict=True):
        pen.line([(MARGIN, y - 10), (WIDTH - MARGIN, y - 10)], fill=LINE)
        for row in rows:
            write(pen, (MARGIN, y + 4), row_name(maps, row), 17, tint(row))
            top = y + OVER
            for place, key in enumerate(keys):
                at = (MARGIN + place * (wide + GAP), top)
                if key not in found[row]:
                    blank(canvas, at, (wide, tall))
                    continue
                word = found[row][key]
                paste_rounded(canvas, heat(picture, word, (wide, tall), maps[row].sinks), at)
                rings(canvas, maps[row], at, (wide, tall))
                absent = present is not None and key[0] not in present
                # A change can only be given where the plain model's caption has the word as well.
                before = found[0][key].share if row and key in found[0] else None
                under(pen, (at[0], at[1] + tall), wide, word, before, absent=absent, colour=tint(row))
            y += OVER + tall + UNDER
        y += 20
    if curves:
        strip(canvas, (MARGIN, y), WIDTH - 2 * MARGIN, curves)
        y += plot
    for line in notes:
        write_pieces(pen, (MARGIN, y), line, 17)
        y += 24
    return canvas


def curves_of(maps: Sequence[AttentionMap], present: Collection[str] | None) -> list[Curve]:
    """The picture's share of attention at every generated token, with a dot for each object word; empty where shares are
    not known."""
    return [
        Curve(
            row_name(maps, row),
            tint(row),
            one.shares,
            [
                Mark(
                    word.tokens[0],
                    word.word,
                    ABSENT if present is not None and word.object not in present else INK,
                )
                for word in one.words
                if word.tokens
            ],
        )
        for row, one in enumerate(maps)
        if one.shares
    ]


def height_of(picture: Image.Image, wide: int) -> int:
    """The height in pixels of a picture drawn ``wide`` pixels wide, kept between a third and three times the width."""
    return min(max(round(wide * picture.height / picture.width), wide // 3), 3 * wide)


def columns_of(maps: Sequence[AttentionMap]) -> list[Key]:
    """The keys of all maps, each once: those of the first map in its order, then those that only later maps have."""
    return list(dict.fromkeys(key for one in maps for key in keyed(one)))


def keyed(one: AttentionMap) -> dict[Key, WordMap]:
    """The words of a map by their keys, in the order of the caption."""
    met: Counter[str] = Counter()
    found = {}
    for word in one.words:
        found[word.object, met[word.object]] = word
        met[word.object] += 1
    return found


def heat(
    picture: Image.Image, word: WordMap, size: tuple[int, int], sinks: Collection[Sink] = ()
) -> Image.Image:
    """The picture in pale colours under the map of a word, which is interpolated between the centres of the tokens.

    The brightest colour stands for the largest value that is not at a sink. A sink gets so much attention that all other
    tokens would look dark beside it.

    Args:
        picture: the part of the picture that the model saw, RGB.
        word: the word with its attention, (rows, columns).
        size: width and height of the result in pixels.
        sinks: the sinks among the tokens.
    """
    values = np.asarray(word.attention, dtype=np.float32)
    clear = np.ones(values.shape, dtype=bool)
    for sink in sinks:
        clear[sink.row, sink.column] = False
    # Where every token is a sink, there is no other value to be the largest.
    largest = float(values[clear].max()) if clear.any() else float(values.max())
    # The bound keeps a map without any attention from dividing by zero, and the cut is for the sinks, which lie above the
    # largest value.
    values = (values / max(largest, 1e-30)).clip(0, 1)
    strength = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))[..., None]
    shown = picture.resize(size, Image.Resampling.LANCZOS)
    # A picture with little colour leaves the colours of the map legible, and a map that is never opaque leaves the
    # picture visible under it.
    base = np.asarray(Image.blend(shown, shown.convert("L").convert("RGB"), 0.75), dtype=np.float32)
    opacity = 0.34 + 0.46 * strength
    mixed = base * (1 - opacity) + colours(strength[..., 0]) * opacity
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def colours(strength: NDArray[np.float32]) -> NDArray[np.float32]:
    """The colours of the heat map, (..., 3) in [0, 255], for values in [0, 1] of any shape."""
    stops = np.array([[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in HEAT], dtype=np.float32)
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(strength, at, stops[:, i]) for i in range(3)], axis=-1).astype(np.float32)


def rings(canvas: Image.Image, one: AttentionMap, at: tuple[int, int], size: tuple[int, int]) -> None:
    """Draw a small ring at the centre of every sink."""
    rows, columns = one.grid
    radius = max(4.0, min(size[0] / columns, size[1] / rows) * 0.32)
    for sink in one.sinks:
        x = at[0] + (sink.column + 0.5) * size[0] / columns
        y = at[1] + (sink.row + 0.5) * size[1] / rows
        ring(canvas, (x, y), radius)


def ring(canvas: Image.Image, centre: tuple[float, float], radius: float) -> None:
    """Draw a white ring with a dark edge, so that it shows on bright and on dark ground."""
    side = int(2 * radius) + 8
    # Pillow draws curves with hard edges, so the ring is drawn larger as a mask and shrunk.
    mask = Image.new("L", (side * SMOOTH, side * SMOOTH), 0)
    shade = mask.copy()
    middle, outer = side * SMOOTH / 2, radius * SMOOTH
    for image, width in ((shade, 4), (mask, 2)):
        box = [middle - outer - width, middle - outer - width, middle + outer + width, middle + outer + width]
        ImageDraw.Draw(image).ellipse(box, outline=255, width=width * SMOOTH)
    corner = (round(centre[0] - side / 2), round(centre[1] - side / 2))
    for image, colour in ((shade, INK), (mask, "#ffffff")):
        canvas.paste(
            Image.new("RGB", (side, side), colour),
            corner,
            image.resize((side, side), Image.Resampling.LANCZOS),
        )


def under(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    wide: int,
    word: WordMap,
    before: float | None,
    *,
    absent: bool,
    colour: str,
) -> None:
    """Draw what stands below a panel: the word, its share of attention as a bar and in per cent, and the change of the
    share.

    Args:
        pen: draws on the canvas.
        at: the lower left corner of the panel.
        wide: the width of the panel in pixels.
        word: the word.
        before: the word's share under the plain model; None where there is no change to give.
        absent: whether the word is known to name something that is not in the picture, and is struck.
        colour: the colour of the row.
    """
    x, y = at
    name = shorten(word.word, wide, 22)
    write_pieces(pen, (x, y + 8), [Piece(name, ABSENT if absent else INK, absent)], 22)
    pen.rectangle([x, y + 42, x + wide - 1, y + 47], fill=LINE)
    pen.rectangle([x, y + 42, x + max(1, round((wide - 1) * min(word.share, 1))), y + 47], fill=colour)
    write(pen, (x, y + 54), f"{100 * word.share:.1f} % on the picture", 16, SOFT)
    if before is not None:
        change = f"{100 * (word.share - before):+.1f}"
        write(pen, (x + wide - text_width(change, 16), y + 54), change, 16, colour)


def blank(canvas: Image.Image, at: tuple[int, int], size: tuple[int, int]) -> None:
    """Draw the placeholder of a word that this caption does not hold."""
    paste_rounded(canvas, Image.new("RGB", size, CARD), at)
    text = "not said"
    x = at[0] + (size[0] - text_width(text, 18)) / 2
    write(ImageDraw.Draw(canvas), (x, at[1] + size[1] / 2 - 12), text, 18, SOFT)


def legend(canvas: Image.Image, at: tuple[int, int], *, rings: bool) -> None:
    """Draw the colour bar and, if ``rings`` is set, what a ring means."""
    pen = ImageDraw.Draw(canvas)
    x, y = at
    scale = np.tile(np.linspace(0, 1, 300, dtype=np.float32), (14, 1))
    paste_rounded(canvas, Image.fromarray(colours(scale).round().astype(np.uint8)), (x, y), radius=7)
    write(pen, (x, y + 20), "no attention", 16, SOFT)
    most = "most in this map"
    write(pen, (x + 300 - text_width(most, 16), y + 20), most, 16, SOFT)
    if rings:
        pen.rounded_rectangle([x, y + 48, x + 23, y + 71], 5, fill=HEAT[1])
        ring(canvas, (x + 12, y + 60), 6)
        write(pen, (x + 34, y + 51), "a sink among the tokens", 16, SOFT)


def explain(maps: Sequence[AttentionMap], averaged: str, present: Collection[str] | None) -> list[str]:
    """The notes at the foot of the figure, a paragraph each.

    Args:
        maps: all maps of the figure.
        averaged: the layers that the maps are the mean of, in words.
        present: the objects known to be in the picture; None: it is not known.
    """
    rows, columns = maps[0].grid
    counts = [len(one.sinks) for one in maps]
    largest = "its largest value" + (" off the sinks" if any(counts) else "")
    notes = [
        f"A map shows the attention of the position that predicts the word to the picture's {rows} x {columns} tokens, mean"
        f" over all heads and {averaged}, relative to {largest}. The bar below it is the share of all"
        " attention that goes to the picture"
        + ("; beside it, its change in points." if len(maps) > 1 else ".")
    ]
    rule = maps[-1].rule
    needed = f"a score of {rule.tau:.1f} or more" + ("" if rule.dims else " and a massive activation")
    if any(counts):
        told = [str(counts[0])] if len(maps) == 1 else [f"{counts[0]} before", f"{counts[1]} after"]
        notes.append(f"Sinks among the picture's tokens, which have {needed}: {', '.join(told)}.")
    else:
        notes.append(f"No sink among the picture's tokens: none has {needed}.")
    if any(one.shares for one in maps):
        notes[0] += " The curve gives that share for every generated token, the end mark included."
    if present is not None:
        notes[-1] += " Struck words name what is not in the picture."
    return notes


def row_name(maps: Sequence[AttentionMap], row: int) -> str:
    """The name of a caption and of its row of panels."""
    method = maps[row].method
    if len(maps) == 1:
        return method or "Caption"
    return f"Before ({method or 'no method'})" if row == 0 else f"After {method}"


def tint(index: int) -> str:
    """The colour of an alternative by its number, 0 for the plain model. Colours repeat when there are many."""
    return BEFORE if index == 0 else AFTERS[(index - 1) % len(AFTERS)]


def caption_pieces(one: AttentionMap, present: Collection[str] | None) -> list[Piece]:
    """The words of a map's caption, those for absent objects struck."""
    caption = one.caption
    wrong = [word.span for word in one.words if present is not None and word.object not in present]
    pieces: list[Piece] = []
    at = 0
    for start, end in [*wrong, (len(caption), len(caption))]:
        pieces += _words(caption, at, start, Piece("", INK))
        pieces += _words(caption, start, end, Piece("", ABSENT, True))
        at = end
    return pieces


def _words(caption: str, start: int, end: int, style: Piece) -> Iterator[Piece]:
    """The words of a stretch of the caption, in the style of a piece."""
    # An object word may end in the middle of a word, as before a comma or in a script without spaces. What follows is then
    # written without a space before it.
    glued = 0 < start < end and not caption[start - 1].isspace() and not caption[start].isspace()
    for number, text in enumerate(caption[start:end].split()):
        yield style._replace(text=text, glued=glued and number == 0)


def paste_rounded(canvas: Image.Image, image: Image.Image, at: tuple[int, int], radius: int = 10) -> None:
    """Paste an image with rounded corners; ``at`` is its upper left corner, ``radius`` is in pixels."""
    large = Image.new("L", (image.width * SMOOTH, image.height * SMOOTH), 0)
    box = [0, 0, large.width - 1, large.height - 1]
    ImageDraw.Draw(large).rounded_rectangle(box, radius * SMOOTH, fill=255)
    canvas.paste(image, at, large.resize(image.size, Image.Resampling.LANCZOS))
