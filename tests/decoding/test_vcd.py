"""VCD: the schedule, the noise and the formula, on numbers worked by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import Tensor

from keepsight import VCD, NoImageTokens, UnsupportedModel
from keepsight.decoding.contrast import plausible
from keepsight.decoding.vcd import add_noise, draw_noise, noised, signal_level, vcd

Z = torch.tensor([[2.0, 1.5, -1.0]])
U = torch.tensor([[1.0, 2.0, -1.0]])


@pytest.mark.parametrize(
    ("step", "signal", "noise"),
    [
        (0, 0.999989, 0.004726),
        (100, 0.998293, 0.058406),
        (300, 0.980984, 0.194089),
        (500, 0.863017, 0.505175),
        (700, 0.592677, 0.805440),
        (900, 0.364888, 0.931051),
        (999, 0.285042, 0.958515),
    ],
)
def test_schedule(step: int, signal: float, noise: float) -> None:
    level = signal_level(step)
    assert level**0.5 == pytest.approx(signal, abs=1e-6)
    assert (1 - level) ** 0.5 == pytest.approx(noise, abs=1e-6)


def noise_of(inputs: dict[str, Any], seed: int = 0, config: Any = None) -> Tensor:
    """The noise of inputs with one tensor of pixels."""
    (noise,) = draw_noise(inputs, seed, config).values()
    return noise


def test_noise_has_the_schedules_spread_and_keeps_dtype() -> None:
    pixels = torch.rand(2, 3, 64, 64)
    covered = add_noise(pixels, noise_of({"pixel_values": pixels}, seed=1), 500)
    assert (covered - 0.863017 * pixels).std().item() == pytest.approx(0.5052, abs=0.01)
    half = pixels.bfloat16()
    assert add_noise(half, noise_of({"pixel_values": half}, seed=1), 500).dtype == torch.bfloat16
    assert noised({"pixel_values": half}, seed=1, step=500)["pixel_values"].dtype == torch.bfloat16


def test_noise_of_a_picture_does_not_depend_on_its_batch() -> None:
    pixels = torch.rand(3, 3, 8, 8)
    together = noise_of({"pixel_values": pixels})
    assert torch.equal(together[1:2], noise_of({"pixel_values": pixels[1:2]}))
    assert not torch.equal(together, noise_of({"pixel_values": pixels}, seed=1))
    # Qwen: a flat list of patches
    grid = torch.tensor([[1, 2, 2], [1, 2, 4]])
    flat = noise_of({"pixel_values": torch.rand(12, 6), "image_grid_thw": grid})
    assert torch.equal(flat[4:], noise_of({"pixel_values": torch.rand(8, 6), "image_grid_thw": grid[1:]}))
    # Pixtral: a small picture padded to its neighbour's size
    sizes = torch.tensor([[4, 6], [8, 8]])
    padded = noise_of({"pixel_values": torch.rand(2, 3, 8, 8), "image_sizes": sizes})
    alone = noise_of({"pixel_values": torch.rand(1, 3, 4, 6), "image_sizes": sizes[:1]})
    assert torch.equal(padded[:1, :, :4, :6], alone)
    assert padded[0, :, 4:].abs().max() == 0


def test_a_padding_tile_stays_zero() -> None:
    pixels = torch.rand(1, 2, 3, 4, 4)
    pixels[0, 1] = 0
    noise = noise_of({"pixel_values": pixels})
    assert noise[0, 1].abs().max() == 0
    assert noise[0, 0].abs().min() > 0


def test_the_noise_is_the_one_that_recorded_results_were_made_with() -> None:
    """One sample of the seed for each shape: of a tile, of a picture without its padding, of all patches of a picture."""

    def sample(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(7))

    for shape in ((2, 3, 8, 8), (2, 4, 3, 8, 8), (1, 1, 4, 3, 8, 8)):
        expected = sample(3, 8, 8).expand(shape)
        assert torch.equal(noise_of({"pixel_values": torch.rand(shape)}, seed=7), expected)
    grid = torch.tensor([[1, 4, 6], [1, 2, 2]])
    found = noise_of({"pixel_values": torch.rand(28, 96), "image_grid_thw": grid}, seed=7)
    assert torch.equal(found, torch.cat([sample(24, 96), sample(4, 96)]))
    sizes = torch.tensor([[8, 4], [8, 8]])
    found = noise_of({"pixel_values": torch.rand(2, 3, 8, 8), "image_sizes": sizes}, seed=7)
    assert torch.equal(found[0, :, :, :4], sample(3, 8, 4))
    assert torch.equal(found[1], sample(3, 8, 8))


def test_worked_scores() -> None:
    assert vcd(Z, U, alpha=1.0, beta=0.1).tolist() == [[3.0, 1.0, -torch.inf]]
    assert vcd(Z, U, alpha=1.0, beta=0.0).tolist() == [[3.0, 1.0, -1.0]]
    assert vcd(Z, U, alpha=0.5, beta=0.1).tolist() == [[2.5, 1.25, -torch.inf]]
    torch.testing.assert_close(
        vcd(Z, U, alpha=1.0, beta=0.1).softmax(-1), torch.tensor([[0.8808, 0.1192, 0.0]]), atol=5e-5, rtol=0
    )
    torch.testing.assert_close(
        vcd(Z, U, alpha=0.5, beta=0.1).softmax(-1), torch.tensor([[0.7773, 0.2227, 0.0]]), atol=5e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("beta", "kept"),
    [
        (0.0, [True, True, True]),
        (0.1, [True, True, False]),
        (0.5, [True, True, False]),
        (0.7, [True, False, False]),
        (1.0, [True, False, False]),
    ],
)
def test_plausible_tokens(beta: float, kept: list[bool]) -> None:
    assert plausible(Z, beta).tolist() == [kept]
    assert plausible(Z.log_softmax(-1), beta).tolist() == [kept]


def test_a_cutoff_between_bfloat16_logits_is_not_rounded() -> None:
    # 16 + log 0.1 = 13.697 lies between two logits that bfloat16 can hold, and would itself become one of them, 13.6875
    logits = torch.tensor([[16.0, 13.6875, 13.75]], dtype=torch.bfloat16)
    assert plausible(logits, 0.1).tolist() == [[True, False, True]]
    assert torch.equal(plausible(logits, 0.1), plausible(logits.double(), 0.1))


def test_the_models_own_choice_is_always_plausible() -> None:
    scores = torch.randn(50, 99) * 4
    best = scores.argmax(-1, keepdim=True)
    for beta in (1e-6, 0.1, 0.5, 1.0):
        assert plausible(scores, beta).gather(-1, best).all()


def test_defaults_are_the_cards() -> None:
    assert (VCD().alpha, VCD().beta, VCD().noise_step) == (1.0, 0.1, 500)


def test_a_prompt_with_placeholders_but_no_pixels() -> None:
    family = FAMILIES["llava"]
    inputs = family.inputs([[1, 5, 6]])
    del inputs["pixel_values"]
    with pytest.raises(NoImageTokens, match="pixel_values"):
        VCD().processor(family.model(), inputs)


def test_precomputed_features_are_no_pixels() -> None:
    family = FAMILIES["llava"]
    inputs = family.inputs([[1, 5, 6]])
    inputs["image_embeds"] = inputs.pop("pixel_values")
    with pytest.raises(
        UnsupportedModel, match="'image_embeds' holds what a vision tower made of the pictures"
    ):
        VCD().processor(family.model(), inputs)
