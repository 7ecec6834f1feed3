"""Parameters that were frozen when an optimizer was made, and are to be trained later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer


def refuse_thawed(optimizer: Optimizer, frozen: Mapping[str, nn.Parameter]) -> None:
    """Have each step of ``optimizer`` look whether what was frozen still is, or has been given to it.

    Args:
        optimizer: made without them; from now on its ``step`` raises ValueError, naming the first.
        frozen: the parameters by their names.
    """

    def check(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        thawed = {name: param for name, param in frozen.items() if param.requires_grad}
        if thawed:
            held = {id(param) for group in optimizer.param_groups for param in group["params"]}
            lost = [name for name, param in thawed.items() if id(param) not in held]
            if lost:
                raise ValueError(thawed_message(lost))

    if frozen:
        optimizer.register_step_pre_hook(check)


def thawed_message(names: Sequence[str], what: str = "frozen") -> str:
    """The one text for parameters that are trained but that no optimizer knows."""
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return (
        f"{names[0]}{more} was {what} when the optimizer was made and is to be trained now, but no optimizer holds it: "
        "it would never move. Give it to one with optimizer.add_param_group, as Lightning's BackboneFinetuning does, "
        "or unfreeze it before the optimizer is made."
    )
