"""What a run says of the kernels of its heads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning.pytorch.utilities import rank_zero_info


def say_kernels(heads: Iterable[tuple[str, Any]]) -> None:
    """Say by what each head's small operations are computed on an accelerator; a CPU has plain torch anyway.

    Args:
        heads: names and heads.
    """
    for name, head in heads:
        if head.device.type != "cpu":
            rank_zero_info(f"{name}: small operations by {head.kernel_choice.describe(head.device)}")
