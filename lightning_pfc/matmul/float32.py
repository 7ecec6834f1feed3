"""Float32 matrix products in the precision that is wanted here, whatever the user has allowed for other products.

PyTorch has two ways to say it: ``torch.set_float32_matmul_precision`` (and ``allow_tf32``), and from 2.9 on
``fp32_precision`` of every backend. Where the second was used, asking the first raises; so only the second is asked and
set where there is one, and what was set is in force again afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lightning_pfc.matmul.cpu import fast_fp32_matmul


def tf32_is_allowed() -> bool:
    """Whether the user lets float32 products of a GPU be computed in TF32, in either way of saying so."""
    setting: Any = torch.backends.cuda.matmul
    if hasattr(setting, "fp32_precision"):
        return bool(setting.fp32_precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


@contextmanager
def true_float32() -> Iterator[None]:
    """While open, products of float32 operands are float32's on every device, on a CPU by the faster library."""
    with cuda_products(tf32=False), cpu_products():
        yield


@contextmanager
def cpu_products() -> Iterator[None]:
    """While open, products of float32 operands on a CPU are float32's, by the faster library."""
    setting: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if hasattr(setting, "fp32_precision"):
        with _set(setting, "ieee"), fast_fp32_matmul():
            yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def cuda_products(*, tf32: bool) -> Iterator[None]:
    """While open, products of float32 operands on a GPU are TF32's, or float32's."""
    setting: Any = torch.backends.cuda.matmul
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # so nothing is there; is_available opens drivers
        yield
    elif hasattr(setting, "fp32_precision"):
        with _set(setting, "tf32" if tf32 else "ieee"):
            yield
    else:
        before, setting.allow_tf32 = setting.allow_tf32, tf32
        try:
            yield
        finally:
            setting.allow_tf32 = before


@contextmanager
def _set(setting: Any, word: str) -> Iterator[None]:
    """While open, the ``fp32_precision`` of a backend's products is ``word``; what it inherits it inherits again."""
    before = setting.fp32_precision
    kept = "none" if before == getattr(torch.backends, "fp32_precision", None) else before
    setting.fp32_precision = word
    try:
        yield
    finally:
        setting.fp32_precision = kept
