"""Reads pictures as the command line names them: files, folders, and drawn scenes of the demo world."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from keepsight.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


def read_picture(name: str) -> tuple[Image, frozenset[str] | None]:
    """The picture of a name, and the objects in it; None where these are not known.

    They are known in a drawn scene, which is named ``SPLIT:INDEX``.

    Raises:
        BadImage: there is no such picture, or it cannot be read.
        WorldError: there is no such split or scene.
    """
    from keepsight.source.images import open_picture

    drawn = _drawn(name)
    if drawn is None:
        return open_picture(Path(name)), None
    from keepsight.demo.world import scene

    shown = scene(drawn[1], int(drawn[2]))
    return shown.image(), frozenset(shown.names)


def picture_id(name: str) -> int | str:
    """The image id that scorers know: the number in a COCO file name, else the file's name without its ending, or a
    scene's name."""
    from keepsight.eval.image_ids import image_id

    return image_id(Path(name).stem) if _drawn(name) is None else name


def _drawn(name: str) -> re.Match[str] | None:
    """The split and the index of a drawn scene; None if the name is not that of one."""
    # A file wins over a scene of the same name, since users see their files and may not know of scenes.
    return None if Path(name).exists() else re.fullmatch(r"([a-z-]+):(\d+)", name)


def find_pictures(folder: Path) -> list[Path]:
    """The pictures that lie in a folder itself and not in folders below it, sorted by name.

    Raises:
        InputError: there is no such folder, or no picture in it.
    """
    from PIL import Image

    if not folder.is_dir():
        raise InputError(f"--images {folder} is no folder: name the folder that holds the pictures")
    known = Image.registered_extensions()
    found = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in known)
    if not found:
        raise InputError(f"no pictures in {folder}: it needs files such as .jpg or .png")
    return found
