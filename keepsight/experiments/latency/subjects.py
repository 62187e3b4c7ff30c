"""Models to measure on, either a checkpoint or random weights of a real shape, with prompts for them."""

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
"""Shapes of LLaVAs with random weights: ``7b`` is LLaVA-1.5-7B, ``1b`` TinyLlama with CLIP ViT-L, ``130m`` for CPUs."""

DTYPES = ("float32", "bfloat16", "float16")
PATCH = 14
TILE = 24
"""Patches along a side of the largest picture, which has 336 pixels; more visual tokens are spread over several pictures."""
TEXT_BEFORE, TEXT_AFTER = 5, 35
"""Text tokens of a random prompt, before and after the picture."""
IMAGE = 32000


@dataclass(frozen=True, kw_only=True)
class Source:
    """What ``build`` makes a model from. It can be written as JSON, so that another process builds the same model.

    Args:
        model: a folder, a Hugging Face id or ``demo``; None for random weights.
        shape: the sizes of random weights, an entry of ``SHAPES``; None for a checkpoint.
        device: ``cpu``, ``cuda``, ``cuda:1``, …
        dtype: a torch name; ``auto`` is the checkpoint's own, float32 for random weights.
        image_tokens: of each random prompt; None for a checkpoint, whose processor decides.
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
    """A model, and what makes prompts for it."""

    model: Any = field(repr=False)
    processor: Any = field(repr=False)
    source: Source

    def inputs(self, batch: int) -> dict[str, Any]:
        """Model inputs for ``batch`` prompts with a picture each: drawn scenes for a checkpoint, else random values."""
        if self.processor is not None:
            return _drawn(self, batch)
        return _random(self, batch)


def find_shape(name: str) -> dict[str, Any]:
    """An entry of ``SHAPES``. Raises ``InputError``, naming the nearest."""
    if name not in SHAPES:
        raise InputError(f"--shape {name}: no such shape; {did_you_mean(name, [*SHAPES, 'demo'])}")
    return SHAPES[name]


def tiles(image_tokens: int) -> tuple[int, int]:
    """How many pictures, and patches along the side of each, make so many visual tokens.

    One square picture of up to 24 × 24 patches, or several of one size: 576 is one of 336 pixels, 2,880 are five, as
    LLaVA-NeXT cuts a picture up.

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
        ModelNotLoaded, UnsupportedModel: see ``inference.loading.load``.
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
        text_config=transformers.LlamaConfig(**source.shape["text"], max_position_embeddings=8192),
        image_token_index=IMAGE,
    )
    torch.manual_seed(0)
    with torch.device(source.device), _default_dtype(_dtype(source.dtype)):
        model = transformers.LlavaForConditionalGeneration(config).eval()
    return Subject(model=model, processor=None, source=source)


def check_device(device: str) -> None:
    """Raises ``InputError`` where torch does not know the device or it is not there."""
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
        index = torch.device(device).index or 0
        if index >= torch.cuda.device_count():
            raise InputError(f"--device {device}: torch sees {torch.cuda.device_count()} CUDA devices only")


def _map(device: str) -> str | None:
    return None if device == "cpu" else device


def _dtype(name: str) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, "float32" if name == "auto" else name)
    return found


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _drawn(subject: Subject, batch: int) -> dict[str, Any]:
    from keepsight.demo.world import scenes
    from keepsight.source.prompts import prepare

    pictures = [scene.image() for scene in scenes("val", batch)]
    inputs = prepare(subject.processor, pictures, subject.source.prompt, raw=subject.source.raw)
    return dict(inputs.to(subject.model.device, dtype=subject.model.dtype))


def _random(subject: Subject, batch: int) -> dict[str, Any]:
    import torch

    source = subject.source
    assert source.image_tokens is not None
    assert source.shape is not None
    count, side = tiles(source.image_tokens)
    generator = torch.Generator().manual_seed(0)
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
