"""Opens pictures and brings them into the form that models are shown: upright, RGB, 8 bits for each channel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from keepsight.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


if TYPE_CHECKING:
    from PIL.Image import Image


def upright_rgb(picture: Image) -> Image:
    """Returns the first frame of an open picture, turned as its EXIF says; transparency is dropped, 16 bits become 8.

    Raises:
        InputError: the picture's numbers have no scale by which they could become 8 bits.
    """
    from PIL import ImageOps

    # Pillow opens a PNG of 16-bit grey in mode I in some versions and in I;16 in
    # others. In other formats, mode I holds 32-bit numbers of any range.
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        picture = _halved(picture)
    elif picture.mode in ("I", "F"):
        raise InputError(
            f"the picture's numbers (Pillow's mode {picture.mode}) have no scale: save it with 8 bits"
        )
    # Cameras store a picture as the sensor lies, and only note how it was held.
    return ImageOps.exif_transpose(picture).convert("RGB")


def _halved(picture: Image) -> Image:
    """Returns grey of 16 bits as grey of 8. Pillow would cut values off at 255, which makes nearly everything white."""
    import numpy as np
    from PIL import Image

    exif = picture.getexif()
    values = np.asarray(picture)
    found = Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
    # A picture that is made from an array has no EXIF data, which the caller still needs to turn it upright.
    found.getexif().update(exif)
    return found


class BadImage(InputError):
    """A picture file is missing, truncated or no picture at all."""


def open_picture(path: Path) -> Image:
    """Returns the whole picture in ``path``, upright and RGB.

    Raises:
        BadImage: there is no such file, it is not a picture, it ends too early, or its numbers have no scale.
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
    # Pillow reports damaged files by any of these, depending on the format; a broken PNG is a SyntaxError.
    except (OSError, SyntaxError, ValueError) as error:
        raise BadImage(f"{path} cannot be read ({error}): the file is damaged or incomplete") from None
