"""How an image is named in every file the scorers read."""

from __future__ import annotations

import re

from keepsight.errors import InputError

ImageId = int | str

_COCO_NAME = re.compile(r"(?:.*[/\\])?COCO_(?:train|val|test)\d{4}_(\d{12})(?:\.\w+)?")


def image_id(value: object) -> ImageId:
    """One spelling for an image: whole numbers as int, other names as they are.

    `42`, `"42"`, `"000000000042"` and `"COCO_val2014_000000000042.jpg"` (with or without folders) are all 42;
    "kitchen-3" stays "kitchen-3". Anything but a whole number or a non-empty text raises `InputError`.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip():
        name = value.strip()
        if name.isascii() and name.isdigit() and len(name) < 20:
            return int(name)
        coco = _COCO_NAME.fullmatch(name)
        return int(coco.group(1)) if coco else name
    raise InputError(f"an image id is a whole number or a text, not {value!r}")
