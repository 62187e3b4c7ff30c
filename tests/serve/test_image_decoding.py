"""Pictures in every state in which they are sent."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from serving import data_uri, painted

from keepsight.serve.errors import InvalidImage
from keepsight.serve.image_decoding import decode_image, read_data_uri
from keepsight.serve.limits import Limits

LIMITS = Limits()


def opened(uri: str, limits: Limits = LIMITS) -> Image.Image:
    return decode_image(read_data_uri(uri, limits), limits)


def uri_of(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_kinds(kind: str) -> None:
    found = opened(data_uri(painted(1), kind))
    assert (found.mode, found.size) == ("RGB", (40, 30))


def test_the_picture_is_the_one_that_was_sent() -> None:
    assert opened(data_uri(painted(1))).tobytes() == painted(1).tobytes()


def test_cmyk_and_single_pixels() -> None:
    assert opened(data_uri(painted(1).convert("CMYK"), "JPEG")).mode == "RGB"
    assert opened(data_uri(painted(1, (1, 1)))).size == (1, 1)


def test_grey_of_16_bits_is_scaled() -> None:
    steep = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    exif = Image.Exif()
    exif[0x0112] = 3
    for turned in (False, True):
        found = opened(data_uri(Image.fromarray(steep), **({"exif": exif} if turned else {})))
        wanted = (np.rot90(steep, 2) if turned else steep) // 256
        assert found.mode == "RGB"
        assert all((np.asarray(found)[..., band] == wanted).all() for band in range(3))


def test_a_cameras_preview_is_no_animation() -> None:
    shown = Image.new("RGB", (40, 30), (200, 30, 30))
    found = opened(data_uri(shown, "MPO", save_all=True, append_images=[painted(1, (8, 6))]))
    assert found.size == (40, 30)
    assert np.asarray(found).mean((0, 1)) == pytest.approx((200, 30, 30), abs=3)


def progressive(size: tuple[int, int], more: int) -> bytes:
    """A progressive JPEG with its last scan written ``more`` times again."""
    buffer = io.BytesIO()
    painted(1, size).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * more + content[-2:]


def test_scans_of_a_jpeg_are_bounded() -> None:
    few = progressive((40, 30), 0)
    scans = few.count(b"\xff\xda")
    assert 5 < scans < 20
    assert decode_image(few, LIMITS).size == (40, 30)
    assert decode_image(progressive((40, 30), 64 - scans), LIMITS).size == (40, 30)
    with pytest.raises(InvalidImage, match="has 65 scans of 1,200 pixels"):
        decode_image(progressive((40, 30), 65 - scans), LIMITS)
    limits = Limits(image_pixels=1200)
    assert decode_image(progressive((40, 30), 20 - scans), limits).size == (40, 30)
    with pytest.raises(InvalidImage, match="has 21 scans"):
        decode_image(progressive((40, 30), 21 - scans), limits)


def test_turned_pictures_are_put_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert opened(data_uri(painted(1), "JPEG", exif=exif)).size == (30, 40)


def test_percent_escapes_and_line_breaks() -> None:
    uri = data_uri(painted(1))
    head, body = uri.split(",")
    assert opened(head + "," + body.replace("+", "%2B").replace("/", "%2F")).size == (40, 30)
    assert opened(head + "," + "\n".join(body[i : i + 60] for i in range(0, len(body), 60))).size == (40, 30)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def animated(kind: str) -> str:
    return data_uri(painted(1), kind, save_all=True, append_images=[painted(2)])


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
whole = io.BytesIO()
painted(1).save(whole, "PNG")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("data:image/png;base64,@@@", "base64 is broken"),
        ("data:image/png;base64,iVBORw0KGgo", "base64 is broken"),
        ("data:image/png;base64,", "none of the formats"),
        ("data:image/png,abc", "not a data URI"),
        ("file:///etc/passwd", "not a data URI"),
        ("/etc/passwd", "not a data URI"),
        ("data:image/png;base64,é", "base64 is broken"),
        (uri_of(whole.getvalue()[:-500]), "damaged or incomplete"),
        (uri_of(whole.getvalue()[:20]), "none of the formats|damaged"),
        (uri_of(SVG), "none of the formats"),
        (uri_of(bomb(10_000, 10_000)), "10000x10000 pixels, and the limit is 50,000,000"),
        (uri_of(bomb(2**31 - 1, 2**31 - 1)), "pixels|too large|damaged"),
        (uri_of(bomb(101, 1)), "one side may be 100 times"),
        (animated("GIF"), "the GIF is animated"),
        (animated("PNG"), "the PNG is animated"),
        (animated("WEBP"), "the WEBP is animated"),
    ],
)
def test_what_is_refused(uri: str, says: str) -> None:
    with pytest.raises(InvalidImage, match=says):
        opened(uri)


def test_bytes_are_bounded() -> None:
    uri = data_uri(painted(1))
    size = len(read_data_uri(uri, LIMITS))
    assert opened(uri, Limits(image_bytes=size)).size == (40, 30)
    for most in (size - 1, 10):
        with pytest.raises(InvalidImage, match=f"more than {most:,} bytes"):
            opened(uri, Limits(image_bytes=most))


def test_pixels_are_bounded_alone_and_together() -> None:
    uri = data_uri(painted(1))
    content = read_data_uri(uri, LIMITS)
    limits = Limits(image_pixels=1200)
    assert decode_image(content, limits, before=1200).size == (40, 30)
    with pytest.raises(InvalidImage, match="more than 2,400 pixels together"):
        decode_image(content, limits, before=1201)
    with pytest.raises(InvalidImage, match="40x30 pixels, and the limit is 1,199"):
        opened(uri, Limits(image_pixels=1199))
