"""A tiny random model for each type that transformers maps to image-text-to-text generation, and inputs with a picture.

``build("qwen3_vl")`` makes the type's default configuration small (``tiny_configs.py``), and draws weights wide enough that
pictures matter. Then it looks for inputs: it tries layouts of pictures (``picture_layouts.py``) and numbers of placeholders
until the model's own checks accept them and the picture changes the last logits. Nothing is downloaded.

What cannot be built raises ``NotBuilt`` with the reason.
"""

from __future__ import annotations

import functools
import inspect
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf
from picture_layouts import Facts, Layout, layouts
from tiny_configs import SPECIAL, VARIANTS, tiny_config
from torch import Tensor
from transformers.generation import GenerationMixin
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as MAPPED

TEXTS = ([1, 7, 5, 9, 33, 21, 64, 12], [1, 7, 40, 18, 77])
"""The prompts of the two rows; the picture stands after their second token."""
BEFORE = 2
MOST_PLACEHOLDERS = 150
SEED = 5
"""Of the weights."""

FAST = (
    "llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma3", "gemma4", "internvl", "idefics3", "mistral3",
    "mllama", "paligemma",
)  # fmt: skip
"""Types whose layouts and attention differ from each other, for tests that cannot take all."""


class NotBuilt(Exception):
    """A type of which no tiny model with working inputs can be made; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Built:
    """One tiny model, and inputs that it accepts.

    Args:
        name: a mapped type, or ``type:variant``.
        inputs: of the first of ``TEXTS`` with a picture, one row.
        pictures: which of the inputs hold pixels.
        placeholders: how many tokens stand for the picture.
    """

    name: str
    model: Any
    inputs: dict[str, Any] = field(repr=False)
    pictures: tuple[str, ...]
    placeholders: int
    layout: Layout = field(repr=False)

    @property
    def image_token(self) -> int:
        return image_token(self.model.config)

    def prompt(self, text: Sequence[int], *, seed: int = 0) -> dict[str, Any]:
        """One row of inputs: a text with a picture drawn from ``seed``."""
        return lay_out(self.model, [list(text)], [self.layout.picture(seed)], self.layout, self.placeholders)

    def second(self) -> dict[str, Any]:
        """One row of inputs: the shorter of ``TEXTS`` with another picture."""
        return self.prompt(TEXTS[1], seed=1)

    def batch(self) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """Both rows, padded on the left, and each row alone; None where ``why_no_batch`` gives a reason."""
        return None if self.why_no_batch else (self._both, [self.inputs, self.second()])

    @functools.cached_property
    def why_no_batch(self) -> str | None:
        """Why rows of a padded batch do not equal the rows alone in plain transformers; None where they do."""
        try:
            both = self._logits(self._both)
            alone = [self._logits(row)[:, 0] for row in (self.inputs, self.second())]
        except Exception as error:
            return f"the batch is not accepted: {_short(error)}"
        for row, wanted in enumerate(alone):
            far = float((both[:, row] - wanted).abs().max())
            if not far < 1e-3:
                return f"row {row} of the batch differs from the row alone by {far:.1e} in its logits"
        return None

    def _logits(self, inputs: dict[str, Any]) -> Tensor:
        """Of two generated tokens, ``(tokens, rows, vocabulary)``; positions are those that ``generate`` gives."""
        options = {
            "max_new_tokens": 2,
            "do_sample": False,
            "output_logits": True,
            "return_dict_in_generate": True,
        }
        return torch.stack(self.model.generate(**inputs, **options).logits)

    @functools.cached_property
    def _both(self) -> dict[str, Any]:
        pictures = [self.layout.picture(seed) for seed in range(2)]
        return lay_out(self.model, [list(text) for text in TEXTS], pictures, self.layout, self.placeholders)


def names() -> tuple[str, ...]:
    """Every mapped type, in transformers' order."""
    return tuple(MAPPED)


def variants() -> tuple[str, ...]:
    """Named variants of types, whose decoders do what the type's default does not."""
    return tuple(VARIANTS)


IMAGE_TOKENS = ("image_token_id", "image_token_index")
OPENING = ("vision_start_token_id", "boi_token_id", "image_start_token_id", "boi_token_index")
CLOSING = ("vision_end_token_id", "eoi_token_id", "image_end_token_id", "eoi_token_index")


def _token(config: Any, options: Sequence[str]) -> int | None:
    found = (getattr(config, name, None) for name in options)
    return next((token for token in found if isinstance(token, int)), None)


def image_token(config: Any) -> int:
    """The id of the placeholder.

    Raises:
        NotBuilt: the configuration names none.
    """
    token = _token(config, IMAGE_TOKENS)
    if token is None:
        raise NotBuilt("its configuration names no image token, so that prompts have no placeholders")
    return token


def arguments(model: Any) -> frozenset[str]:
    """Names of the arguments that the model's forward takes."""
    return frozenset(inspect.signature(model.forward).parameters)


def lay_out(
    model: Any,
    texts: Sequence[list[int]],
    pictures: Sequence[Mapping[str, Any]],
    layout: Layout,
    placeholders: int,
) -> dict[str, Any]:
    """Left-padded inputs: each text with its picture after its first tokens."""
    config, image = model.config, image_token(model.config)
    opening, closing = ([] if (t := _token(config, name)) is None else [t] for name in (OPENING, CLOSING))
    middle = [*opening, *[image] * placeholders, *closing]
    rows = [text[:BEFORE] + middle + text[BEFORE:] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, **layout.joined(pictures)}
    takes = arguments(model)
    for key in ("mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids"):
        if key in takes:  # PaliGemma's token types tell the prompt from the answer, not text from pictures
            kinds = torch.zeros_like(ids) if config.model_type == "paligemma" else (ids == image).long()
            inputs[key] = kinds
    if "cross_attention_mask" in takes:
        inputs["cross_attention_mask"] = (((ids == image).cumsum(-1) > 0).long() * mask)[:, :, None, None]
    return inputs


@functools.cache
def build(name: str) -> Built:
    """A tiny model of a mapped type, or of ``type:variant``, with inputs that work. Made once for each process.

    Raises:
        NotBuilt: it cannot be made small, takes no placeholders, or generates by a ``generate`` of its own.
    """
    model_class = _class(name)
    if not hasattr(model_class, "generate"):
        raise NotBuilt("it generates no text")
    if model_class.generate is not GenerationMixin.generate:
        raise NotBuilt("it has a generate() of its own")
    if CONFIG_MAPPING[name.partition(":")[0]]().is_encoder_decoder:
        raise NotBuilt("it is an encoder-decoder")
    model = _with_weights(make(name))
    image_token(model.config)
    layout, placeholders = _found(model)
    inputs = lay_out(model, [list(TEXTS[0])], [layout.picture(0)], layout, placeholders)
    return Built(name, model, inputs, tuple(layout.pixels), placeholders, layout)


def make(name: str) -> Any:
    """The tiny model alone, with the weights that transformers draws; also of types that ``build`` refuses.

    Raises:
        NotBuilt: it cannot be made small.
    """
    try:
        config = tiny_config(name)
        if hasattr(getattr(config, "vision_config", None), "architecture"):
            raise NotBuilt("its vision tower is one of timm's networks, which have one size")
    except NotBuilt:
        raise
    except Exception as error:
        raise NotBuilt(f"its configuration cannot be made small: {_short(error)}") from error
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _class(name)(config).eval()
    except Exception as error:
        raise NotBuilt(f"it cannot be made small: {_short(error)}") from error
    REPAIRS.get(name, lambda _: None)(model)
    return model


def _give_image_outputs(model: Any) -> None:
    """Give the decoder's output the attribute that Llama 4's forward reads from it.

    In transformers 5.24 every forward pass of ``Llama4ForConditionalGeneration`` raises, with a picture and without, because
    the output of its decoder has no ``image_outputs``.
    """

    def give(_: Any, inputs: Any, output: Any) -> None:
        output.image_outputs = None

    model.language_model.register_forward_hook(give)


REPAIRS: dict[str, Callable[[Any], None]] = {"llama4:repaired": _give_image_outputs}
"""Variants that get round a fault of transformers, so that methods can be checked on a decoder that does not run without."""


def _class(name: str) -> Any:
    return getattr(tf, MAPPED[name.partition(":")[0]])


def _with_weights(model: Any, *, seed: int = SEED) -> Any:
    """Weights wide enough that logits differ between tokens, prompts and pictures by more than rounding."""
    head = model.get_output_embeddings() or model.language_model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    # A model with tied embeddings that sees mostly its last token repeats it for ever
    embedding, other = (0.15, 0.4) if tied else (0.5, 0.2)
    generator = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        if weight.ndim >= 2:
            scale = embedding if "embed" in key or "lm_head" in key else other
            weight.data.normal_(0, scale, generator=generator)
        elif "gate" in key and weight.numel() == 1:  # cross-attention that starts closed
            weight.data.fill_(1.0)
    head.weight.data[list(SPECIAL)] = 0  # a random model never writes placeholders and markers
    model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=None)
    return model.eval()


def _found(model: Any) -> tuple[Layout, int]:
    """The first layout, and number of placeholders, that the model accepts and whose picture it sees.

    Raises:
        NotBuilt: there is none.
    """
    errors: list[str] = []
    for layout in layouts(Facts(model.config, arguments(model))):
        candidates, named = list(range(MOST_PLACEHOLDERS, 0, -1)), False
        while candidates:
            placeholders = candidates.pop()
            try:
                seen = picture_effect(model, layout, placeholders)
            except Exception as error:
                errors.append(_short(error))
                if _raised_by_the_vision_tower(error):
                    break
                # Most models compare the numbers, and say how many features there are: that one comes next
                found = re.search(r"tokens:? *\d+.*features:? *(\d+)", str(error))
                if found and not named:
                    candidates.append(int(found[1]))
                    named = True
                continue
            if not seen > 0.01:
                errors.append("its picture does not change the logits")
                break
            if not _accepts(model, layout, placeholders + 1):
                return layout, placeholders
    # What differs in numbers alone counts once
    reasons = {re.sub(r"\d+", "#", error): error for error in errors}
    raise NotBuilt("no layout of pictures is accepted: " + " | ".join(reasons.values())[:600])


def picture_effect(model: Any, layout: Layout, placeholders: int) -> float:
    """By how much another picture changes the last logits, at most."""
    rows = [
        lay_out(model, [list(TEXTS[0])], [layout.picture(seed)], layout, placeholders) for seed in range(2)
    ]
    with torch.no_grad():
        first, second = (model(**row).logits[0, -1] for row in rows)
    far = float((first - second).abs().max())
    return far if bool(torch.isfinite(first).all()) else float("nan")


def _accepts(model: Any, layout: Layout, placeholders: int) -> bool:
    """A model that does not compare numbers takes fewer placeholders than there are features, but never more."""
    if hasattr(model.config.get_text_config(), "cross_attention_layers"):
        return False  # one placeholder, whatever the picture
    try:
        picture_effect(model, layout, placeholders)
    except Exception:
        return False
    return True


def _raised_by_the_vision_tower(error: Exception) -> bool:
    return any(
        frame.name in ("get_image_features", "joined") for frame in traceback.extract_tb(error.__traceback__)
    )


def _short(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())[:160]
    return f"{type(error).__name__}: {message} ({where.filename.rpartition('/')[2]}:{where.lineno})"
