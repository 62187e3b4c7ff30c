"""Views of a prompt, which say what an amateur sees; several methods share them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from keepsight.decoding.image_tensors import image_tensors
from keepsight.errors import InputError
from keepsight.parts import View

if TYPE_CHECKING:
    from keepsight.target import Target


@dataclass(frozen=True)
class MainPrompt(View):
    """The main prompt itself, with its picture. Preludes measure it before the generation."""

    def inputs(self, target: Target) -> dict[str, Any]:
        return dict(target.model_inputs)


@dataclass(frozen=True)
class NoImage(View):
    """The prompt as if it had been written without its picture, or without all of them where it holds several.

    Where the generation was given a ``Source``, the chat template is rendered anew without the picture. Otherwise its
    placeholders and the begin/end markers that the configuration names are dropped and positions close up. For some chat
    templates both ways give the same tokens (Qwen-VL). For others they do not: LLaVA-1.5's template writes a line break
    after the picture, which is left in the second way only.

    Args:
        also_drop: ids of further tokens to drop where there is no ``Source``.
    """

    also_drop: tuple[int, ...] = ()

    def inputs(self, target: Target) -> dict[str, Any]:
        return target.without_image(also_drop=self.also_drop)


@dataclass(frozen=True)
class TransformedImage(View):
    """The same prompt with every picture changed, after the processor's resizing and normalising.

    Pictures are found in the layout of their family, and put together where they come in patches (``image_tensors``). Where
    the inputs do not say how to do that, ``UnsupportedModel`` is raised.

    Args:
        transform: a function of one picture, or one tile of a picture, ``(channels, height, width)`` as the processor
            normalised it, to another of the same shape. Two views are the same only if it is the same function.
    """

    transform: Callable[[Tensor], Tensor]

    def inputs(self, target: Target) -> dict[str, Any]:
        changed = transform_pixels(target.model_inputs, target.model.config, self.transform)
        # Inputs without any pixels must not pass for a changed picture.
        _ = target.pixels
        return {**target.model_inputs, **changed}


def transform_pixels(
    inputs: Mapping[str, Any], config: Any, transform: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Returns every input that holds pixels with ``transform`` applied to each picture or tile, in its own layout.

    A picture that comes as a list of patches is put together, transformed, and taken apart again. Padding and all-zero
    tiles stay as they are. A tensor that shows the pictures a second time, larger or in crops, is transformed as well.

    Args:
        inputs: the model inputs, as its processor returned them.
        config: the model's configuration, which says in which order a family lists its patches.
        transform: a function of one picture or tile ``(channels, height, width)`` to another of the same shape.

    Raises:
        UnsupportedModel: the pictures cannot be found, or their patches not be put together.
        InputError: the transform changes the shape of a picture.
    """
    changed = {}
    for key, pieces in image_tensors(inputs, config).items():
        pixels: Tensor = inputs[key]
        changed[key] = pixels.clone()
        for piece in pieces:
            arrangement, values = piece.arrange(), pixels[piece.where]
            # A still picture is repeated over the frames of a patch, and a transform knows single pictures only.
            whole = torch.stack(
                [_transformed(picture, transform) for picture in arrangement.assemble(values)]
            )
            changed[key][piece.where] = arrangement.take_apart(whole, tuple(values.shape))
    return changed


def _transformed(picture: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns one picture after ``transform``, or raises ``InputError`` where its shape has changed."""
    changed = transform(picture)
    if changed.shape != picture.shape:
        raise InputError(
            f"a transform must keep the shape of a picture: it made {tuple(changed.shape)} of {tuple(picture.shape)}"
        )
    return changed
