"""VCD: the schedule, the noise and the formula, on numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES

from keepsight import VCD, NoImageTokens
from keepsight.decoding.contrast import plausible
from keepsight.decoding.vcd import add_noise, draw_noise, signal_level, vcd

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


def test_noise_has_the_schedules_spread_and_keeps_dtype() -> None:
    pixels = torch.rand(2, 3, 64, 64)
    noised = add_noise(pixels, draw_noise({"pixel_values": pixels}, seed=1), 500)
    assert (noised - 0.863017 * pixels).std().item() == pytest.approx(0.5052, abs=0.01)
    half = pixels.bfloat16()
    assert add_noise(half, draw_noise({"pixel_values": half}, seed=1), 500).dtype == torch.bfloat16


def test_noise_of_a_picture_does_not_depend_on_its_batch() -> None:
    pixels = torch.rand(3, 3, 8, 8)
    together = draw_noise({"pixel_values": pixels}, seed=0)
    assert torch.equal(together[1:2], draw_noise({"pixel_values": pixels[1:2]}, seed=0))
    assert not torch.equal(together, draw_noise({"pixel_values": pixels}, seed=1))
    # Qwen: a flat list of patches
    grid = torch.tensor([[1, 2, 2], [1, 2, 4]])
    flat = draw_noise({"pixel_values": torch.rand(12, 6), "image_grid_thw": grid}, seed=0)
    assert torch.equal(
        flat[4:], draw_noise({"pixel_values": torch.rand(8, 6), "image_grid_thw": grid[1:]}, seed=0)
    )
    # Pixtral: a small picture padded to its neighbour's size
    sizes = torch.tensor([[4, 6], [8, 8]])
    padded = draw_noise({"pixel_values": torch.rand(2, 3, 8, 8), "image_sizes": sizes}, seed=0)
    alone = draw_noise({"pixel_values": torch.rand(1, 3, 4, 6), "image_sizes": sizes[:1]}, seed=0)
    assert torch.equal(padded[:1, :, :4, :6], alone)
    assert padded[0, :, 4:].abs().max() == 0


def test_a_padding_tile_stays_zero() -> None:
    pixels = torch.rand(1, 2, 3, 4, 4)
    pixels[0, 1] = 0
    noise = draw_noise({"pixel_values": pixels}, seed=0)
    assert noise[0, 1].abs().max() == 0
    assert noise[0, 0].abs().min() > 0


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
