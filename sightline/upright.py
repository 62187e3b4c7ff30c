"""Pictures as models are shown them: upright, RGB, 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sightline.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


def upright_rgb(picture: Image) -> Image:
    """The first frame of an open picture, turned as its EXIF says; transparency is dropped, 16 bits become 8.

    Raises:
        InputError: its numbers have no scale by which they could become 8 bits.
    """
    from PIL import ImageOps

    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        picture = _halved(picture)
    elif picture.mode in ("I", "F"):
        raise InputError(
            f"the picture's numbers (Pillow's mode {picture.mode}) have no scale: save it with 8 bits"
        )
    return ImageOps.exif_transpose(picture).convert("RGB")


def _halved(picture: Image) -> Image:
    """Grey of 16 bits as grey of 8: Pillow would cut off at 255, which makes nearly everything white."""
    import numpy as np
    from PIL import Image

    exif = picture.getexif()
    values = np.asarray(picture)
    found = Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
    found.getexif().update(exif)
    return found
