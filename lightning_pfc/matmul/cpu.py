"""Float32 matrix products on a CPU by the faster of the two libraries that PyTorch carries.

PyTorch hands float32 products to MKL, which takes its 256-bit code on processors that are not Intel's. oneDNN, which
comes with PyTorch as well and does its convolutions, uses AVX-512 on all of them: on an AMD EPYC with AVX-512 the three
products of a head ran 2.5 to 3.5 times faster, at the same accuracy. PyTorch offers oneDNN for products only under the
name of a lower precision, since on processors with matrix units for bfloat16 (AMX) oneDNN then uses these. Without such
units the products stay in float32; that is looked at, once, before anything is switched.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def fast_fp32_matmul() -> Iterator[None]:
    """Lets float32 products on a CPU go through oneDNN where that is faster and as accurate; elsewhere does nothing.

    Also a decorator. What the user chose with ``torch.set_float32_matmul_precision`` is in force again afterwards; a
    choice other than the default is left alone. Whether the switch is thrown depends on the processor and the version
    of PyTorch only, so a run that is repeated on a machine gives the same bits.
    """
    if not onednn_is_faster():
        yield
        return
    setting = _setting()
    before = setting.fp32_precision
    if before not in ("none", "ieee"):  # the user has chosen
        yield
        return
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this machine gains by :func:`fast_fp32_matmul`: AVX-512, not Intel's, products exact to float32."""
    setting = _setting()
    if not hasattr(setting, "fp32_precision") or not (torch._C._has_mkldnn and torch._C.has_mkl):
        return False
    if _vendor() != "AuthenticAMD" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        # 1 + 2^-12 is a float32 but no bfloat16, nor half of a pair of them whose product would keep the 2^-24.
        a = torch.full((64, 512), 1.0 + 2.0**-12)
        return bool((torch.mm(a, a.t()) == 512.0 * (1.0 + 2.0**-12) ** 2).all())
    finally:
        setting.fp32_precision = before


def _setting() -> Any:
    """What PyTorch keeps of the precision of oneDNN's products; None before the version that has it."""
    return getattr(torch.backends.mkldnn, "matmul", None)


def _vendor() -> str:
    """The processor's vendor as Linux gives it; empty where it is not known."""
    if platform.system() != "Linux":
        return ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


onednn_is_faster()  # looked at now: later might be within somebody's tensor mode or a graph that is being traced
