"""Models to measure on, which are checkpoints or random weights of a real shape, with prompts for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keepsight.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import torch

SHAPES: dict[str, dict[str, Any]] = {
    "130m": {
        "text": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
                 "num_key_value_heads": 12, "vocab_size": 32064},
        "vision": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4},
    },
    "1b": {
        "text": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
                 "num_key_value_heads": 4, "vocab_size": 32064},
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    },
    "7b": {
        "text": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "num_key_value_heads": 32, "vocab_size": 32064},
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    },
}  # fmt: skip
"""Shapes of LLaVAs with random weights: ``7b`` is LLaVA-1.5-7B, ``1b`` is TinyLlama with CLIP ViT-L, ``130m`` suits CPUs."""

DTYPES = ("float32", "bfloat16", "float16")
PATCH = 14
"""Pixels along a side of a patch, as in CLIP ViT-L/14, the vision tower of LLaVA-1.5."""
TILE = 24
"""Patches along a side of the largest picture, which has 336 pixels; more visual tokens are spread over several."""
TEXT_BEFORE, TEXT_AFTER = 5, 35
"""Text tokens of a random prompt, before and after the picture."""
IMAGE = 32000
"""The id of the image token, that of LLaVA-1.5."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What ``build`` makes a model from. It can be written as JSON, so that another process builds the same model.

    Args:
        model: a folder, a Hugging Face id or ``demo``; None for random weights.
        shape: the sizes of random weights, an entry of ``SHAPES``; None for a checkpoint.
        device: ``cpu``, ``cuda``, ``cuda:1``, …
        dtype: the precision by torch's name. ``auto`` is the checkpoint's own, and float32 for random weights.
        image_tokens: the visual tokens of each random prompt; None for a checkpoint, whose processor decides.
        prompt: the question put to a checkpoint.
        raw: whether ``prompt`` is used as it is, without the chat template; it must then hold the picture's placeholder.
    """

    model: str | None = None
    shape: Mapping[str, Any] | None = None
    device: str = "cpu"
    dtype: str = "auto"
    image_tokens: int | None = None
    prompt: str = "Describe this image."
    raw: bool = False


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, and what makes prompts for it.

    Args:
        model: the model, in evaluation mode on its device.
        processor: the processor of a checkpoint; None for random weights, whose prompts are random as well.
        source: what the model was made from.
    """

    model: Any = field(repr=False)
    processor: Any = field(repr=False)
    source: Source

    def inputs(self, batch: int) -> dict[str, Any]:
        """Model inputs for ``batch`` prompts with a picture each: drawn scenes for a checkpoint, random values
        otherwise."""
        if self.processor is not None:
            return _drawn(self, batch)
        return _random(self, batch)


def find_shape(name: str) -> dict[str, Any]:
    """An entry of ``SHAPES``. Raises ``InputError`` for another name; the message suggests the nearest."""
    if name not in SHAPES:
        raise InputError(f"--shape {name}: no such shape; {did_you_mean(name, [*SHAPES, 'demo'])}")
    return SHAPES[name]


def tiles(image_tokens: int) -> tuple[int, int]:
    """How many pictures, and how many patches along the side of each, make a number of visual tokens.

    One square picture of up to 24 × 24 patches is taken, or several of one size: 576 tokens are one picture of 336
    pixels, 2,880 are five, as LLaVA-NeXT cuts a picture up.

    Raises:
        InputError: no square of 4 × 4 to 24 × 24 patches divides the number.
    """
    side = next((side for side in range(TILE, 3, -1) if image_tokens > 0 and image_tokens % side**2 == 0), 0)
    if not side:
        nearest = max(math.isqrt(max(image_tokens, 0)), 4) ** 2
        raise InputError(
            f"{image_tokens} visual tokens cannot be cut into square pictures of 4x4 to {TILE}x{TILE} patches:"
            f" try {nearest}"
        )
    return image_tokens // side**2, side


def build(source: Source) -> Subject:
    """The model of ``source``, in evaluation mode on its device.

    Raises:
        ModelNotLoaded, UnsupportedModel: as ``inference.loading.load``.
        InputError: the device cannot be used.
    """
    check_device(source.device)
    if source.model is not None:
        from keepsight.inference.loading import load

        model, processor = load(source.model, dtype=source.dtype, device_map=_map(source.device))
        return Subject(model=model, processor=processor, source=source)
    import torch
    import transformers

    assert source.shape is not None
    assert source.image_tokens is not None
    _, side = tiles(source.image_tokens)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            **source.shape["vision"], image_size=side * PATCH, patch_size=PATCH
        ),
        # Llama's default of 2,048 positions is too few for a prompt of 2,880 visual tokens.
        text_config=transformers.LlamaConfig(**source.shape["text"], max_position_embeddings=8192),
        image_token_index=IMAGE,
    )
    # A fixed seed lets the process that measures memory build the very same model.
    torch.manual_seed(0)
    # The weights are made on the device and in their precision at once: 7B parameters in float32 on the CPU first would
    # need 28 GB.
    with torch.device(source.device), _default_dtype(_dtype(source.dtype)):
        model = transformers.LlavaForConditionalGeneration(config).eval()
    return Subject(model=model, processor=None, source=source)


def check_device(device: str) -> None:
    """Refuse a device that cannot be used.

    Raises:
        InputError: torch does not know the device, it is neither a CPU nor a CUDA device, or it is not there.
    """
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(f"--device {device}: no such device; cpu, cuda or cuda:1, for example") from error
    if kind not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: time and memory are measured on cpu and cuda only")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"--device {device}: torch sees no CUDA device here; use --device cpu")
        # A plain cuda has no index, and means the first device here.
        index = torch.device(device).index or 0
        if index >= torch.cuda.device_count():
            raise InputError(f"--device {device}: torch sees {torch.cuda.device_count()} CUDA devices only")


def _map(device: str) -> str | None:
    """The ``device_map`` for a device. None leaves a checkpoint on the CPU, without a hook for every module."""
    return None if device == "cpu" else device


def _dtype(name: str) -> torch.dtype:
    """The torch precision of a name; ``auto`` is float32."""
    import torch

    found: torch.dtype = getattr(torch, "float32" if name == "auto" else name)
    return found


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside the block, new tensors of floating point have this precision."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _drawn(subject: Subject, batch: int) -> dict[str, Any]:
    """Inputs for scenes of the demo world, one for each row."""
    from keepsight.demo.world import scenes
    from keepsight.source.prompts import prepare

    pictures = [scene.image() for scene in scenes("val", batch)]
    inputs = prepare(subject.processor, pictures, subject.source.prompt, raw=subject.source.raw)
    return dict(inputs.to(subject.model.device, dtype=subject.model.dtype))


def _random(subject: Subject, batch: int) -> dict[str, Any]:
    """Inputs of random tokens and pixels, the same on every call."""
    import torch

    source = subject.source
    assert source.image_tokens is not None
    assert source.shape is not None
    count, side = tiles(source.image_tokens)
    generator = torch.Generator().manual_seed(0)
    # Only the image token itself may stand for the picture, so the text is drawn from the ids below it. The first three
    # ids are marks (unknown, start and end).
    words = min(source.shape["text"]["vocab_size"], IMAGE)
    ids = torch.randint(3, words, (batch, TEXT_BEFORE + TEXT_AFTER), generator=generator)
    picture = torch.full((batch, source.image_tokens), IMAGE)
    ids = torch.cat([ids[:, :TEXT_BEFORE], picture, ids[:, TEXT_BEFORE:]], dim=1)
    pixels = torch.randn(batch * count, 3, side * PATCH, side * PATCH, generator=generator)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(_dtype(source.dtype)),
    }
    return {key: value.to(source.device) for key, value in inputs.items()}
