"""Products of few rows the other way round: the same figures, only where they are slow, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from recomputed import METHODS, MODES, PROMPTS, run
from torch import nn

from keepsight import mitigate
from keepsight.engines.hf import edit_state as session
from keepsight.engines.hf import thin


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    thin.slow_here.cache_clear()
    yield
    thin.slow_here.cache_clear()


@pytest.mark.parametrize("shape", [(1, 2, 24), (2, 1, 24), (3, 24), (1, 3, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_that_of_a_linear_layer(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias)
    x = torch.randn(*shape)
    for given in (x, torch.randn(*shape[:-1], 48)[..., ::2]):
        found = thin.product(given, layer.weight, layer.bias)
        assert found.shape == (*shape[:-1], 40)
        assert found.is_contiguous()
        torch.testing.assert_close(found, layer(given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("said", "mkl", "slow"),
    [
        ("vendor_id: AuthenticAMD", True, True),
        ("vendor_id: AuthenticAMD", False, False),
        ("GenuineIntel", True, False),
    ],
)
def test_it_is_slow_on_amd_with_mkl(
    said: str, mkl: bool, slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(said)
    monkeypatch.setattr(thin, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert thin.slow_here() is slow


def test_nobody_knows_where_there_is_no_list_of_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thin, "CPUINFO", tmp_path / "none")
    assert thin.slow_here() is False


def test_only_plain_matrices_count() -> None:
    class Adapted(nn.Linear):
        pass

    assert thin.is_plain(nn.Linear(4, 4))
    assert not thin.is_plain(nn.Linear(4, 4).bfloat16())
    assert not thin.is_plain(Adapted(4, 4))
    assert not thin.is_plain(nn.LayerNorm(4))
    assert not thin.is_plain(nn.Linear(4, 4, device="meta"))
    replaced = nn.Linear(4, 4)
    replaced.forward = lambda x: x  # type: ignore[method-assign, assignment]
    assert not thin.is_plain(replaced)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "mistral3"])
def test_shared_passes_write_the_same_tokens_either_way(
    name: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = FAMILIES[name]
    products: list[int] = []
    product = thin.product

    def counting(x: Any, *rest: Any) -> Any:
        products.append(x.shape[:-1].numel())
        return product(x, *rest)

    monkeypatch.setattr("keepsight.engines.hf.fused_pass.product", counting)
    written = []
    for slow in (True, False):
        monkeypatch.setattr(thin, "slow_here", lambda slow=slow: slow)
        products.clear()
        with mitigate(family.model(), METHODS["m3id"], fused=True):
            written.append(run(family, PROMPTS[:1], **MODES[mode]))
        # One prompt and its amateur are two rows; beams are more, and take the ordinary way
        assert set(products) == ({2} if slow and "beam" not in mode else set())
    assert torch.equal(*written)
    assert not any("forward" in vars(module) for module in family.model().modules())
    assert not session.SESSIONS
