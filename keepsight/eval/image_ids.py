"""The one spelling of an image's id that all files of the scorers are brought to."""

from __future__ import annotations

import re

from keepsight.errors import InputError

ImageId = int | str

_COCO_NAME = re.compile(r"(?:.*[/\\])?COCO_(?:train|val|test)\d{4}_(\d{12})(?:\.\w+)?")


def image_id(value: object) -> ImageId:
    """Return the id of an image in its one spelling: whole numbers as int, other names as they are.

    `42`, `"42"`, `"000000000042"` and `"COCO_val2014_000000000042.jpg"` (with or without folders) are all 42;
    "kitchen-3" stays "kitchen-3". White space around a text is removed.

    Raises:
        InputError: the value is neither a whole number nor a text that is not blank.
    """
    # A bool is an int to Python, but `true` in a JSON file is no id.
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip():
        name = value.strip()
        # `isdigit` also accepts digits such as "²", which `int` refuses, so that only ASCII digits count as a number.
        # A text of 20 digits or more, longer than any 64-bit number, stays a name: `int` raises on thousands of digits.
        if name.isascii() and name.isdigit() and len(name) < 20:
            return int(name)
        coco = _COCO_NAME.fullmatch(name)
        return int(coco.group(1)) if coco else name
    raise InputError(f"an image id is a whole number or a text, not {value!r}")
