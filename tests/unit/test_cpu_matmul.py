"""The switch to the faster library: exact, only where it pays, and never in the way of the user's own choice."""

from __future__ import annotations

import pytest
import torch

from lightning_pfc.matmul import cpu as cpu_matmul
from lightning_pfc.matmul.cpu import fast_fp32_matmul, onednn_is_faster


def test_products_are_float32_inside_and_the_setting_is_restored() -> None:
    before = torch.get_float32_matmul_precision()
    a = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    with fast_fp32_matmul():
        product = torch.mm(a, a.t())
    exact = a.double() @ a.double().t()
    assert float((product - exact).abs().max()) < 1e-5 * float(exact.abs().max())  # bfloat16 would be off by 1e-3
    assert torch.get_float32_matmul_precision() == before


def test_it_is_restored_after_an_error_too() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), fast_fp32_matmul():
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="this PyTorch has no setting per library")
def test_a_users_choice_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_matmul, "onednn_is_faster", lambda: True)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        chosen = torch.backends.mkldnn.matmul.fp32_precision
        with fast_fp32_matmul():
            assert torch.backends.mkldnn.matmul.fp32_precision == chosen
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("vendor", ["GenuineIntel", ""])
def test_only_where_the_processor_gains(monkeypatch: pytest.MonkeyPatch, vendor: str) -> None:
    monkeypatch.setattr(cpu_matmul, "_vendor", lambda: vendor)
    onednn_is_faster.cache_clear()
    try:
        assert not onednn_is_faster()
    finally:
        onednn_is_faster.cache_clear()
