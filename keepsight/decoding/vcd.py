"""VCD: visual contrastive decoding, which contrasts the model with the same picture covered in noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from zlib import crc32

import torch
from torch import Tensor

from keepsight.decoding.contrast import contrast, keep_only, one_left, plausible
from keepsight.decoding.image_tensors import SECOND_VIEWS, Piece, image_tensors
from keepsight.method import Method, parameter
from keepsight.parts import Contrast, View

if TYPE_CHECKING:
    from typing_extensions import Self

    from keepsight.target import Target

STEPS = 1000
"""The number of steps of the diffusion schedule, as in the official code."""


def signal_level(step: int) -> float:
    """Returns how much of the picture is left after ``step + 1`` diffusion steps: ᾱ, between 0 and 1.

    ``β_i = sigmoid(linspace(−6, 6, 1000)_i) · (0.005 − 1e-5) + 1e-5``; ``ᾱ = Π (1 − β_i)`` for i ≤ step.
    The noised picture is ``√ᾱ · x + √(1 − ᾱ) · ε``: at step 500, 0.863 of the signal with 0.505 of noise.
    """
    # In double precision, since the product has up to a thousand factors close to 1.
    ramp = torch.linspace(-6, 6, STEPS, dtype=torch.float64)
    beta = torch.sigmoid(ramp) * (0.005 - 1e-5) + 1e-5
    return float(torch.cumprod(1 - beta, 0)[step])


def add_noise(pixels: Tensor, noise: Tensor, step: int) -> Tensor:
    """Returns ``√ᾱ · pixels + √(1 − ᾱ) · noise``, computed in float32, in dtype and shape of ``pixels``."""
    level = signal_level(step)
    return (math.sqrt(level) * pixels.float() + math.sqrt(1 - level) * noise).to(pixels.dtype)


def draw_noise(inputs: Mapping[str, Any], seed: int, config: Any = None) -> dict[str, Tensor]:
    """Returns unit Gaussian noise in the shape of every input that holds pixels, and 0 where they are padding.

    Every picture, or tile of a picture, gets the sample that ``seed`` gives for its shape: a row of a batch is
    then treated exactly as alone, and a result does not depend on the order of the data. A picture that comes as a list of
    patches counts as one, so that no two of its patches get the same noise. Tensors that show the pictures a second time,
    larger or in crops, get noise of their own. The noise is drawn on the CPU, so it is the same on every device. All-zero
    tiles, which some processors add as padding and models recognise by being zero, get no noise.

    Args:
        inputs: the model inputs, as its processor returned them.
        seed: the seed of the noise, 0 or more.
        config: the model's configuration, which a few layouts need (see ``image_tensors``).

    Raises:
        UnsupportedModel: the pictures cannot be found.
    """
    found = image_tensors(inputs, config)
    return {key: _noise(inputs[key], pieces, _seed_of(key, seed)) for key, pieces in found.items()}


def _seed_of(key: str, seed: int) -> int:
    """Returns the seed of the noise in the input ``key``."""
    # torch reads 32 bits of a seed. Samples of one shape in two tensors must be independent.
    return crc32(f"{key} {seed}".encode()) if key in SECOND_VIEWS else seed


def _noise(pixels: Tensor, pieces: Sequence[Piece], seed: int) -> Tensor:
    """Returns the noise of the pictures in one tensor."""
    noise = torch.zeros(pixels.shape)
    samples: dict[tuple[int, ...], Tensor] = {}
    for piece in pieces:
        shape = tuple(noise[piece.where].shape)
        if shape not in samples:
            # A generator of its own for each sample leaves the caller's random state as it is.
            samples[shape] = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        noise[piece.where] = samples[shape]
    return noise.to(pixels.device)


def noised(inputs: Mapping[str, Any], seed: int, step: int, config: Any = None) -> dict[str, Tensor]:
    """Returns every input that holds pixels with ``add_noise`` applied to its pictures; padding stays as it is.

    Args:
        inputs: the model inputs, as its processor returned them.
        seed: the seed of the noise, 0 or more.
        step: the step of the noise schedule, 0 to 999.
        config: the model's configuration, which a few layouts need (see ``image_tensors``).

    Raises:
        UnsupportedModel: the pictures cannot be found.
    """
    changed = {}
    for key, pieces in image_tensors(inputs, config).items():
        pixels: Tensor = inputs[key]
        noise = _noise(pixels, pieces, _seed_of(key, seed))
        changed[key] = pixels.clone()
        for piece in pieces:
            changed[key][piece.where] = add_noise(pixels[piece.where], noise[piece.where], step)
    return changed


def vcd(expert: Tensor, amateur: Tensor, *, alpha: float, beta: float) -> Tensor:
    """Returns ``(1 + α) · expert − α · amateur`` where the expert's probability is at least β times its largest, else −inf.

    Args:
        expert: ``(batch, vocab)`` logits or log-probabilities given the picture.
        amateur: the same, given the noised picture.
        alpha: the strength of the contrast, 0 or more.
        beta: the plausibility cutoff, in [0, 1].

    >>> vcd(torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([[1.0, 2.0, -1.0]]), alpha=1.0, beta=0.1)
    tensor([[3., 1., -inf]])
    """
    return keep_only(contrast(expert, amateur, strength=alpha), plausible(expert, beta))


def combine(
    expert: Tensor, amateurs: Sequence[Tensor] | None, step: int, *, alpha: float, beta: float
) -> Tensor:
    """Returns what ``vcd`` gives where the amateur ran, and elsewhere the expert's scores with the cutoff alone."""
    # The cutoff applies at every step, whether the amateur ran or not.
    if amateurs is None:
        return keep_only(expert, plausible(expert, beta))
    return vcd(expert, amateurs[0], alpha=alpha, beta=beta)


@dataclass(frozen=True)
class NoisedImage(View):
    """The same prompt with all of its pictures covered in noise: ``add_noise`` with ``draw_noise``.

    Args:
        step: the step of the noise schedule, 0 to 999.
        seed: the seed of the noise.
    """

    step: int
    seed: int

    def inputs(self, target: Target) -> dict[str, Any]:
        changed = noised(target.model_inputs, self.seed, self.step, target.model.config)
        # Inputs without any pixels must not pass for a picture in noise.
        _ = target.pixels
        return {**target.model_inputs, **changed}


@dataclass(frozen=True, kw_only=True)
class VCD(Method):
    """Visual Contrastive Decoding (Leng et al., 2023, arXiv 2311.16922; official code DAMO-NLP-SG/VCD).

    What the model says about a picture covered in noise is its language prior. VCD subtracts it::

        score = (1 + alpha) · z(picture) − alpha · z(noised picture),   −inf where p(picture) < beta · max p

    The picture is noised once per generation, after the processor's resizing and normalising, by ``noise_step``
    steps of a 1,000-step diffusion schedule (``signal_level``). Of several pictures in a prompt all are noised.

    Every tensor of pixels is noised in the layout that its family has, or the model is refused (``image_tensors``):

    * Whole pictures and tiles, ``(…, channels, height, width)``: each gets the sample of its shape. Tiles of zeros get none,
      nor does what ``image_sizes``, ``pixel_attention_mask`` or ``pixel_mask`` say is padding.
    * Lists of patches, with a grid, sizes, positions, a number of crops or placeholders that say which patches make a
      picture: the patches of a picture, or of a slice of it (MiniCPM-V), get one sample together, and padding none.
    * A second view of the pictures, larger (DeepSeek-VL) or in crops (DeepSeek-OCR 2, Step 3.7, Unlimited-OCR): noise of its
      own, independent of that in the first.

    What a processor fills up within a picture or tile, such as bars at its sides, counts as picture where the inputs do not
    say otherwise. The noise has unit variance in the processor's scale: Gemma 4's pixels lie between 0 and 1, so that a
    step is about twice as strong there as where pixels lie between -1 and 1.

    Args:
        alpha: the strength of the contrast, 0 or more; 0 turns it off. Paper and official scripts use 1.
        beta: the plausibility cutoff, in [0, 1]; 0 keeps every token, 1 forces the model's own choice. Paper and code use
            0.1; the official POPE script passes 0.2.
        noise_step: the step of the noise schedule, 0 to 999. Paper and official scripts use 500, for CLIP at 336 pixels.
            Small pictures may need more.
        seed: the seed of the noise.

    Departs from the paper and its code:
        The noise is seeded and the same for each picture or tile of one shape (in the official code it is unseeded, so
        results depend on the order of the data). Scores are returned as log-probabilities, which makes no difference to
        argmax and sampling, and which beam search needs. Greedy and beam search are contrasted as well (in the official
        code ``sample`` only). The amateur keeps its own cache from the second token on; official code before July 2024
        shared the expert's cache, and so stopped contrasting.

    Cost: a second prefill with the vision tower, and one more row in every pass (a second forward pass per token where
    passes cannot be shared, see ``mitigate``); a second cache as long as the first.

    Raises:
        NoImageTokens: the prompt holds no picture, or the inputs no pixels.
        UnsupportedModel: the pictures cannot be found among the inputs, or come without their pixels.
    """

    paper: ClassVar[str] = "2311.16922"
    year: ClassVar[int] = 2023
    title: ClassVar[str] = (
        "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive Decoding"
    )
    gist: ClassVar[str] = "subtracts what the model says about the same picture drowned in noise"
    cost: ClassVar[str] = "prefill +1 with the vision tower; one more row in every pass"

    visible: ClassVar[Mapping[str, Any]] = {"alpha": 4.0, "beta": 0.0, "noise_step": 999}
    negligible: ClassVar[Mapping[str, Any]] = {"alpha": 1e-12, "beta": 0.0}

    alpha: float = parameter(1.0, "strength of the contrast; 0 is off", low=0)
    beta: float = parameter(0.1, "plausibility cutoff, relative to the largest probability", low=0, high=1)
    noise_step: int = parameter(500, "steps of the noise schedule", low=0, high=STEPS - 1)
    seed: int = parameter(0, "seed of the noise", low=0)

    def off(self) -> Self:
        return replace(self, alpha=0.0, beta=0.0)

    def parts(self, target: Target) -> Iterator[Contrast]:
        # With a cutoff alone, tokens are still ruled out, so the part is needed even without a contrast.
        if self.alpha == 0 and self.beta == 0:
            return
        yield Contrast(
            views=[NoisedImage(self.noise_step, self.seed)],
            combine=partial(combine, alpha=self.alpha, beta=self.beta),
            decided=lambda expert, step: one_left(expert, self.beta),
            needed=lambda step: self.alpha > 0,
        )
