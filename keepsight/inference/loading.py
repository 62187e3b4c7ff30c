"""Loads a checkpoint and its processor, and sets up the libraries for a command-line program."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keepsight.errors import InputError, UnsupportedModel, first_line

DEMO = "demo"
"""The model name that stands for the checkpoint inside this package."""


class ModelNotLoaded(InputError):
    """A checkpoint could not be loaded; the message carries the first line of the reason."""


def load(name: str, *, dtype: str = "auto", device_map: str | None = None) -> tuple[Any, Any]:
    """Returns a checkpoint in evaluation mode and its processor.

    Args:
        name: a folder, a Hugging Face id, or ``demo``.
        dtype: ``auto`` for the checkpoint's own data type (for ``demo``: float32), or a torch name such as ``bfloat16``.
        device_map: as transformers takes it (``auto``, ``cuda:1``); None is the CPU.

    Raises:
        ModelNotLoaded: the checkpoint cannot be loaded; the message holds the first line of what transformers said.
        UnsupportedModel: the checkpoint does not take pictures, or has no processor.
        WeightsMissing: the package has no demo checkpoint.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as CAPTIONERS

    where: str | Path = name
    if name == DEMO:
        from keepsight.demo.model import checkpoint

        # The packaged weights are stored in float16 to be small, and a CPU computes faster in float32.
        where, dtype = checkpoint(), "float32" if dtype == "auto" else dtype
    # The configuration alone tells whether the model takes pictures, before gigabytes of weights are downloaded. It is
    # also the first to fail for a misspelt name, so its message says what names there are.
    with _named(f"{name} (a folder with a checkpoint, a Hugging Face id, or {DEMO})"):
        config = AutoConfig.from_pretrained(where)
    if type(config) not in CAPTIONERS:
        raise UnsupportedModel(
            f"{name} is a {config.model_type} model and takes no pictures: use an image-text-to-text one"
        )
    with _named(name):
        processor = AutoProcessor.from_pretrained(where)
        # ``AutoProcessor`` falls back to a tokenizer where a checkpoint comes without a processor.
        if not hasattr(processor, "image_processor"):
            raise UnsupportedModel(
                f"{name} comes without a processor for pictures: save the model's processor beside it"
            )
        model = AutoModelForImageTextToText.from_pretrained(where, dtype=dtype, device_map=device_map)
    if _is_packaged(where):
        # The folder of the package differs from machine to machine; files about the model name it by this word instead.
        model.config._name_or_path = DEMO
    return model.eval(), processor


def _is_packaged(where: str | Path) -> bool:
    """Returns whether a folder is the one of the packaged checkpoint, by whatever path it was given."""
    from keepsight.demo.model import WEIGHTS

    return Path(where).resolve() == WEIGHTS.resolve()


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Open a block in which whatever a library raises becomes ``ModelNotLoaded``, in one line that names the checkpoint."""
    try:
        yield
    except UnsupportedModel:
        raise
    except Exception as error:
        raise ModelNotLoaded(f"cannot load {name}: {first_line(error)}") from error


def quiet_transformers(*, bars: bool = False) -> None:
    """Keep transformers from writing advice between the lines of a command; its errors are still raised.

    Args:
        bars: keep its progress bars, which show how far a download is, where stderr is a terminal.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not (bars and sys.stderr.isatty()):
        logging.disable_progress_bar()


def use_one_thread() -> None:
    """Let torch use one thread, since a second thread gains nothing on the tiny tensors of the demo model.

    On a busy machine a second thread costs much, since both wait for each other: beside two other busy processes on two
    cores, a greedy caption took 1.5 s with one thread and 68 s with two.
    """
    import torch

    torch.set_num_threads(1)
