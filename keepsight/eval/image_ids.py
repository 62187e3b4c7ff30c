"""The one spelling of an image's id that all files of the scorers are brought to."""

from __future__ import annotations

import re

from keepsight.errors import InputError

ImageId = int | str

# COCO's files have twelve digits in their names, with the split in front until 2014 and without it since 2017.
_COCO_NAME = re.compile(
    r"(?:.*[/\\])?(?:COCO_(?:train|val|test)[0-9]{4}_([0-9]{12})(?:\.\w+)?|([0-9]{12})\.(?i:jpe?g|png|webp))",
    re.DOTALL,
)


def image_id(value: object) -> ImageId:
    """Return the id of an image in its one spelling: whole numbers as int, other names as they are.

    `42`, `42.0`, `"42"`, `"000000000042"`, `"000000000042.jpg"` and `"COCO_val2014_000000000042.jpg"` (with or without
    folders) are all 42; "kitchen-3" and "42.jpg" stay what they are. White space around a text is removed.

    Raises:
        InputError: the value is neither a whole number nor a text that is not blank.
    """
    # A bool is an int to Python, but `true` in a JSON file is no id.
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and (whole := whole_number(value)) is not None:
        return whole
    if isinstance(value, str) and value.strip():
        name = value.strip()
        # `isdigit` also accepts digits such as "²", which `int` refuses, so that only ASCII digits count as a number.
        # A text of 20 digits or more, longer than any 64-bit number, stays a name: `int` raises on thousands of digits.
        if name.isascii() and name.isdigit() and len(name) < 20:
            return int(name)
        coco = _COCO_NAME.fullmatch(name)
        return int(coco.group(1) or coco.group(2)) if coco else name
    raise InputError(f"an image id is a whole number or a text, not {value!r}")


def whole_number(value: float) -> int | None:
    """Return a float that is a whole number as int, as tables write ids (337443.0); None for any other float.

    Floats above 2^53 are None as well, since they cannot tell neighbouring numbers apart.
    """
    return int(value) if abs(value) <= 2**53 and value == int(value) else None
