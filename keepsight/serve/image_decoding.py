"""Pictures out of a request, before anything is unpacked that is too large or not what it seems."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from keepsight.errors import InputError
from keepsight.serve.errors import BadPicture
from keepsight.serve.limits import SCANNED, SCANS, SIDES, TOGETHER, Limits
from keepsight.source.images import upright_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What is decoded; Pillow's other readers are never asked."""


def read_data_uri(uri: str, limits: Limits) -> bytes:
    """The bytes in ``data:image/…;base64,…``.

    Raises:
        BadPicture: another form, wrong base64, or more bytes than ``limits.image_bytes``.
    """
    head, comma, body = uri.partition(",")
    if not comma or not head.lower().startswith("data:") or not head.lower().rstrip().endswith(";base64"):
        raise BadPicture("the picture is not a data URI: write data:image/png;base64, and the file's base64")
    if (
        len(body) > 4 * (limits.image_bytes // 3 + 1) * 3
    ):  # no base64 of a file that is taken, escapes included
        raise BadPicture(_too_many_bytes(limits))
    try:
        content = unquote_to_bytes(body) if "%" in body else body.encode("ascii")
        found = base64.b64decode(b"".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadPicture(f"the picture's base64 is broken ({error}): encode the file anew") from None
    if len(found) > limits.image_bytes:
        raise BadPicture(_too_many_bytes(limits))
    return found


def _too_many_bytes(limits: Limits) -> str:
    return f"the picture has more than {limits.image_bytes:,} bytes, which is the limit: send a smaller file"


def open_bytes(content: bytes, limits: Limits, *, before: int = 0) -> Image:
    """The whole picture in ``content``, upright and RGB; transparency, as everywhere here, is dropped.

    Args:
        before: pixels of the conversation's earlier pictures, which are in memory as well.

    Raises:
        BadPicture: not one of ``FORMATS``, animated, damaged, too many pixels, or much longer than wide.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the limit
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
        with picture:
            width, height = picture.size
            if width * height > limits.image_pixels:
                raise BadPicture(
                    f"the picture has {width}x{height} pixels, and the limit is {limits.image_pixels:,}: scale it down"
                )
            if before + width * height > TOGETHER * limits.image_pixels:
                raise BadPicture(
                    f"the conversation's pictures have more than {TOGETHER * limits.image_pixels:,} pixels together:"
                    " scale them down, or leave out older ones"
                )
            if max(width, height) > SIDES * min(width, height):
                raise BadPicture(
                    f"the picture is {width}x{height}: one side may be {SIDES} times the other, not more"
                )
            if picture.format in ("JPEG", "MPO"):
                _check_scans(content.count(b"\xff\xda"), width * height, limits)
            if (
                getattr(picture, "is_animated", False) and picture.format != "MPO"
            ):  # a camera's, with a preview
                raise BadPicture(f"the {picture.format} is animated: send one frame of it")
            return upright_rgb(picture)
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise BadPicture(f"the picture is in none of the formats {kinds}: convert it (SVG to PNG)") from None
    except Image.DecompressionBombError as error:
        raise BadPicture(f"the picture is too large: {error}") from None
    except InputError as error:
        raise error if isinstance(error, BadPicture) else BadPicture(str(error)) from None
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError) as error:
        raise BadPicture(f"the picture cannot be read ({error}): the file is damaged or incomplete") from None


def _check_scans(scans: int, pixels: int, limits: Limits) -> None:
    """A progressive JPEG goes over all of its pixels once for each scan, of which a few bytes are enough."""
    if scans > SCANS or scans * pixels > SCANNED * limits.image_pixels:
        raise BadPicture(f"the JPEG has {scans} scans of {pixels:,} pixels, which is too many: save it anew")
