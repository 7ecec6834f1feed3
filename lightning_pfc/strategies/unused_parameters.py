"""What takes no part in a loss, said after the first backward pass and by name.

DDP sends gradients in buckets, and a bucket with one that never comes is never sent: the replicas go apart without a
word, until the next forward pass of DDP finds it, or whatever compares replicas before that.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

_MOST_NAMES = 3


def check_all_used(model: Any, module: nn.Module, ignored: Collection[str]) -> None:
    """See that a backward pass has reached everything that DDP averages; no collective.

    Args:
        model: the wrapper; anything else has nothing to reduce.
        module: what it holds.
        ignored: parameters that DDP leaves alone.

    Raises:
        RuntimeError: naming what has no gradient, and the ways out.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    try:
        model._check_reducer_finalized()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        averaged = [name for name, p in module.named_parameters() if p.requires_grad and name not in ignored]
        numbers = re.search(r"did not receive grad[^:]*:((?: *\d+)+)", str(error))
        places = [int(place) for place in numbers[1].split()] if numbers else []
        names = [averaged[place] for place in places if place < len(averaged)]
        raise RuntimeError(
            f"{_some(names) or 'a parameter'} took no part in the loss of this step, so that DDP did not average the "
            "gradients of the ranks. Freeze or leave out what is not trained; where it is trained in other steps, or "
            'for another loss: strategy=PartialFCStrategy(find_unused_parameters=True) in place of strategy="pfc".'
        ) from error


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
