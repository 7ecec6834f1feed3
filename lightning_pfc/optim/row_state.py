"""Which state of an optimizer has an entry per class: declared, for every optimizer, and asked here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_pfc.optim.foreign.steps import check_optimizer

_OF_TORCH = {"row_var": True, "col_var": False, "variance": True}
"""State of ``torch.optim.Adafactor``, whose factors look like rows where a rank has as many classes as numbers."""


def row_state_keys(optimizer: Optimizer) -> Mapping[str, bool]:
    """Names of an optimizer's state of a head's parameter, and whether what they name has an entry per class.

    An optimizer says so itself with a class attribute ``row_state_keys``, as those of this package do. Of another one
    on several ranks it is seen in the trial that each goes through, see
    :func:`~lightning_pfc.optim.foreign.steps.check_optimizer`, of which this is then a part (a collective at the first
    call).
    """
    declared = getattr(optimizer, "row_state_keys", None)
    if declared is not None:
        return dict.fromkeys(declared, True)
    return {**check_optimizer(optimizer).row_keys, **_OF_TORCH}


def has_entry_per_class(optimizer: Optimizer, key: str, value: Any, num_classes: int) -> bool:
    """Whether a state of a head's parameter has an entry for each of ``num_classes`` classes.

    Args:
        optimizer: which made it.
        key: its name in ``optimizer.state[param]``.
        value: the state.
        num_classes: those of this rank, or all, where the state is of all ranks.
    """
    if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != num_classes:
        return False
    # What nobody has declared is of an optimizer that was never tried, on one process: one number or row at a time.
    return row_state_keys(optimizer).get(key, not hasattr(optimizer, "row_state_keys"))
