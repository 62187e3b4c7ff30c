"""What an amateur's view of the prompt is as a request of vLLM: token ids, and pictures by their places.

This is the one place that knows how vLLM keeps prompts and pictures. The views themselves do the work: ids are dropped by
``NoImage`` as they are on transformers, and pixels are changed in the layouts of ``keepsight.decoding.image_tensors``.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from keepsight.decoding.vcd import NoisedImage, noised
from keepsight.decoding.views import MainPrompt, NoImage, TransformedImage, transform_pixels
from keepsight.errors import InputError, NoImageTokens, UnsupportedModel
from keepsight.parts import View
from keepsight.target import Target

RENAMED = {"pixel_values_flat": "pixel_values"}
"""Inputs that vLLM calls otherwise than transformers (InternVL)."""


@dataclass(frozen=True)
class Prompt:
    """The prompt of one request.

    Args:
        ids: its token ids, placeholders of pictures included.
        features: its pictures, vLLM's ``MultiModalFeatureSpec``.
    """

    ids: list[int]
    features: list[Any]


def translate(view: View, prompt: Prompt, config: Any, text_only: Sequence[int] | None = None) -> Prompt:
    """The amateur's prompt that a view makes of the main one.

    Args:
        view: the view.
        prompt: the main prompt; it is not changed.
        config: the model's configuration.
        text_only: the prompt without its pictures as the caller wrote it, for ``NoImage``; None drops tokens.

    Raises:
        NoImageTokens: the prompt holds no picture.
        InputError: the prompt holds something else than pictures and text, or nothing but pictures.
        UnsupportedModel: the view is not known here, the pictures' pixels cannot be found, or it cannot be told which
            tokens belong to the pictures.
    """
    check_pictures(prompt)
    if isinstance(view, NoImage):
        return Prompt(_without_pictures(view, prompt, config, text_only), [])
    if isinstance(view, NoisedImage):
        mark = f"keepsight-noise-{view.step}-{view.seed}"
        change = lambda inputs: noised(inputs, view.seed, view.step, config)  # noqa: E731
        return Prompt(list(prompt.ids), [_changed(one, change, mark) for one in prompt.features])
    if isinstance(view, TransformedImage):
        # A function has no name that two requests could share, so that nothing of it may stay in a cache
        mark = f"keepsight-{uuid.uuid4().hex}"
        change = lambda inputs: transform_pixels(inputs, config, view.transform)  # noqa: E731
        return Prompt(list(prompt.ids), [_changed(one, change, mark) for one in prompt.features])
    if isinstance(view, MainPrompt):
        return Prompt(list(prompt.ids), list(prompt.features))
    raise UnsupportedModel(f"no request of vLLM can be made of the view {type(view).__name__}")


def check_pictures(prompt: Prompt) -> None:
    """The prompt must hold pictures, and nothing else beside text.

    Raises:
        NoImageTokens: there is no picture.
        InputError: there is sound or video.
    """
    if not prompt.features:
        raise NoImageTokens(
            "the prompt holds no picture: put an image into it, or generate without the method"
        )
    if other := sorted({str(one.modality) for one in prompt.features} - {"image"}):
        raise InputError(f"prompts with {', '.join(other)} are not supported: pass pictures")


class _IdsTarget(Target):
    """The ids of one prompt and the model's configuration, which is all that ``NoImage`` reads."""

    def __init__(self, ids: Sequence[int], config: Any, source: Any) -> None:
        stub: Any = SimpleNamespace(config=config, generation_config=None)
        super().__init__(model=stub, inputs={"input_ids": torch.tensor([list(ids)])}, source=source)

    def __post_init__(self) -> None:
        """The model is vLLM's, and the inputs are made here."""

    @property
    def name(self) -> str:
        return str(getattr(self.model.config, "model_type", "model"))

    def option(self, name: str) -> Any:
        return None

    @property
    def attention_mask(self) -> Tensor:
        return torch.ones_like(self.input_ids)

    @property
    def model_inputs(self) -> dict[str, Any]:
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


@dataclass(frozen=True)
class _Written:
    """The prompt without its pictures as the caller wrote it: a ``PromptSource``."""

    ids: Sequence[int]

    @property
    def prompts(self) -> Sequence[Any]:
        return [self.ids]

    def without_images(self) -> _Written:
        return self

    def inputs(self) -> Mapping[str, Any]:
        return {"input_ids": torch.tensor([list(self.ids)])}


def _without_pictures(
    view: NoImage, prompt: Prompt, config: Any, text_only: Sequence[int] | None
) -> list[int]:
    target = _IdsTarget(prompt.ids, config, None if text_only is None else _Written(text_only))
    left: list[int] = view.inputs(target)["input_ids"][0].tolist()
    if text_only is None:
        _check_dropped(prompt, target)
    return left


def _check_dropped(prompt: Prompt, target: Target) -> None:
    """Every place that vLLM fills with a picture must have been among the dropped tokens."""
    dropped = target.image_mask[0]
    for feature in prompt.features:
        at = feature.mm_position
        places = torch.arange(at.offset, at.offset + at.length)
        if at.is_embed is not None:
            places = places[at.is_embed.cpu()]
        if not bool(dropped[places].all()):
            token = prompt.ids[int(places[~dropped[places]][0])]
            raise UnsupportedModel(
                f"{target.name}: vLLM puts the picture at token {token}, and the configuration names"
                f" {target.image_token_id} as the image token"
            )


def _changed(feature: Any, change: Any, mark: str) -> Any:
    """One picture with its pixels changed, under a name of its own in every cache.

    Raises:
        UnsupportedModel: the pixels are not at hand, or in a layout that is not known.
    """
    item = feature.data
    if item is None:
        raise UnsupportedModel(
            "the picture's pixels are not in vLLM's engine: start it with --mm-processor-cache-type lru, or without"
            " that cache (--mm-processor-cache-gb 0)"
        )
    if any(isinstance(one.data, Tensor) and one.data.dtype == torch.uint8 for one in item.values()):
        raise UnsupportedModel(
            "vLLM normalises the pictures of this model inside it, where no view reaches them: start it with"
            " --no-mm-device-do-normalize"
        )
    batch = {RENAMED.get(key, key): elem.field.reduce_data([elem]) for key, elem in item.items()}
    changed = change(batch)
    if not changed:
        raise UnsupportedModel(f"no pixels among the inputs of a picture ({', '.join(item)})")
    new = copy.copy(item)
    for key, elem in item.items():
        if (pixels := changed.get(RENAMED.get(key, key))) is not None:
            new[key] = replace(elem, data=_as_element(elem.data, pixels, key))
    marked = {
        "identifier": f"{feature.identifier}-{mark}",
        "mm_hash": f"{feature.mm_hash or feature.identifier}-{mark}",
    }
    return replace(feature, data=new, **marked)


def _as_element(old: Any, pixels: Tensor, key: str) -> Tensor:
    """The changed pixels in the shape in which vLLM keeps those of one picture."""
    if not isinstance(old, Tensor) or old.numel() != pixels.numel():
        raise UnsupportedModel(f"the pixels of a picture in {key} are not kept in one tensor")
    return pixels.reshape(old.shape)
