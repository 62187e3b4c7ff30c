"""Pictures are opened upright, RGB and 8 bits deep, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from keepsight.source.images import BadImage, open_picture


def test_pictures_are_turned_upright_and_made_rgb(tmp_path: Path) -> None:
    picture = Image.new("L", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    picture.save(tmp_path / "turned.jpg", exif=exif)
    opened = open_picture(tmp_path / "turned.jpg")
    assert (opened.mode, opened.size) == ("RGB", (2, 4))


def test_grey_of_16_bits_is_scaled_and_numbers_without_a_scale_are_refused(tmp_path: Path) -> None:
    grey = Image.new("I;16", (4, 2), 0x8000)
    grey.save(tmp_path / "deep.png")
    assert open_picture(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)
    Image.new("F", (4, 2), 0.5).save(tmp_path / "depth.tiff")
    with pytest.raises(BadImage, match="have no scale: save it with 8 bits"):
        open_picture(tmp_path / "depth.tiff")


def test_a_picture_that_cannot_be_read_has_a_name(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="no such picture"):
        open_picture(tmp_path / "missing.png")
