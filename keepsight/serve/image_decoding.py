"""Decodes the images of a request, and refuses those that are too large or of another kind before it unpacks them."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from keepsight.errors import InputError
from keepsight.serve.errors import InvalidImage
from keepsight.serve.limits import (
    CONVERSATION_PIXELS_FACTOR,
    JPEG_SCAN_PIXELS_FACTOR,
    MAX_ASPECT_RATIO,
    MAX_JPEG_SCANS,
    Limits,
)
from keepsight.source.images import upright_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""The formats that are decoded. Pillow's other readers, some of which are old and little tested, are never called."""


def read_data_uri(uri: str, limits: Limits) -> bytes:
    """The bytes of a data URI, ``data:image/…;base64,…``. The media type is ignored, because the bytes themselves decide.

    Raises:
        InvalidImage: it is no such URI, its base64 is broken, or it has more than ``limits.image_bytes`` bytes.
    """
    head, comma, body = uri.partition(",")
    if not comma or not head.lower().startswith("data:") or not head.lower().rstrip().endswith(";base64"):
        raise InvalidImage(
            "the picture is not a data URI: write data:image/png;base64, and the file's base64"
        )
    # Base64 makes 4 characters of 3 bytes, and a percent escape 3 characters of one: whatever is longer is too large
    if len(body) > 4 * (limits.image_bytes // 3 + 1) * 3:
        raise InvalidImage(_too_many_bytes(limits))
    try:
        content = unquote_to_bytes(body) if "%" in body else body.encode("ascii")
        # Some encoders break base64 into lines. Any other foreign character is refused, where Python would skip it
        found = base64.b64decode(b"".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidImage(f"the picture's base64 is broken ({error}): encode the file anew") from None
    if len(found) > limits.image_bytes:
        raise InvalidImage(_too_many_bytes(limits))
    return found


def _too_many_bytes(limits: Limits) -> str:
    """The message for a file that is too large."""
    return f"the picture has more than {limits.image_bytes:,} bytes, which is the limit: send a smaller file"


def decode_image(content: bytes, limits: Limits, *, before: int = 0) -> Image:
    """The image in ``content``, fully decoded, upright and RGB. Transparency is dropped, as in ``keepsight.source``.

    Args:
        content: the bytes of the file.
        limits: the bounds on one image; all images of the conversation together may have twice ``image_pixels``.
        before: the number of pixels of the conversation's earlier images, which are in memory as well; default 0.

    Raises:
        InvalidImage: the image is not in one of ``FORMATS``, is animated or damaged, has too many pixels, or one of its
            sides is much longer than the other.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        # open() reads the header alone: everything up to upright_rgb() is checked before a pixel is unpacked
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have a limit of our own
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        with image:
            width, height = image.size
            if width * height > limits.image_pixels:
                raise InvalidImage(
                    f"the picture has {width}x{height} pixels, and the limit is {limits.image_pixels:,}: scale it down"
                )
            together = CONVERSATION_PIXELS_FACTOR * limits.image_pixels
            if before + width * height > together:
                raise InvalidImage(
                    f"the conversation's pictures have more than {together:,} pixels together:"
                    " scale them down, or leave out older ones"
                )
            if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
                raise InvalidImage(
                    f"the picture is {width}x{height}: one side may be {MAX_ASPECT_RATIO} times the other, not more"
                )
            if image.format in ("JPEG", "MPO"):
                # These two bytes begin a scan. Compressed data cannot hold them, because encoders write a zero after each FF
                _check_scans(content.count(b"\xff\xda"), width * height, limits)
            # An MPO is a camera's JPEG with a preview as its second frame, and no animation
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise InvalidImage(f"the {image.format} is animated: send one frame of it")
            return upright_rgb(image)
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise InvalidImage(
            f"the picture is in none of the formats {kinds}: convert it (SVG to PNG)"
        ) from None
    except Image.DecompressionBombError as error:
        raise InvalidImage(f"the picture is too large: {error}") from None
    except InputError as error:  # our own refusals, and that of upright_rgb() for numbers without a scale
        raise error if isinstance(error, InvalidImage) else InvalidImage(str(error)) from None
    # Pillow has no class of its own for damaged files: each of its readers raises what it comes upon
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError) as error:
        raise InvalidImage(
            f"the picture cannot be read ({error}): the file is damaged or incomplete"
        ) from None


def _check_scans(scans: int, pixels: int, limits: Limits) -> None:
    """Refuse a JPEG with very many scans.

    A scan takes a few bytes of the file, and decoding it takes a pass over all pixels. A progressive JPEG of 200 KiB with
    300 scans held a thread for 25 seconds.
    """
    if scans > MAX_JPEG_SCANS or scans * pixels > JPEG_SCAN_PIXELS_FACTOR * limits.image_pixels:
        raise InvalidImage(
            f"the JPEG has {scans} scans of {pixels:,} pixels, which is too many: save it anew"
        )
