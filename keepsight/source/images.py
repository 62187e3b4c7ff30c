"""Pictures as models are shown them: upright, RGB, 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from keepsight.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


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


class BadImage(InputError):
    """A picture file is missing, truncated or no picture at all."""


def open_picture(path: Path) -> Image:
    """The whole picture in ``path``, upright and RGB.

    Raises:
        BadImage: no such file, not a picture, the file ends too early, or its numbers have no scale.
    """
    from PIL import Image, UnidentifiedImageError

    if not path.exists():
        raise BadImage(f"no such picture: {path}")
    if not path.is_file():
        raise BadImage(f"{path} is not a file: name the pictures one by one, or write {path}/*.jpg")
    try:
        with Image.open(path) as picture:
            return upright_rgb(picture)
    except InputError as error:
        raise BadImage(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise BadImage(f"{path} is not a picture that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"{path} is too large: {error}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadImage(f"{path} cannot be read ({error}): the file is damaged or incomplete") from None
