"""What a strategy's wrappers were made for, so that it is noticed when a model is no longer that."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_pfc.distributed import Comm
from lightning_pfc.optim.frozen import thawed_message


class Wiring:
    """Which parameters of a module are trained, and which parameters and buffers there are at all.

    DDP reads this once, when it wraps the module: what is unfrozen later it does not average, what is frozen later it
    waits for, a buffer that is replaced it no longer sends.
    """

    def __init__(self, module: nn.Module) -> None:
        self.known = list(module.parameters())  # held, so that no identity is used again
        self.trained = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
        self.digest = zlib.crc32("\n".join(self.trained.values()).encode())
        self._parameters = _parameters(module)
        self._buffers = _buffers(module)

    def holds_for(self, module: nn.Module) -> bool:
        """Whether the module has the same parameters, and trains the same of them."""
        return _parameters(module) == self._parameters

    def rebound_buffers(self, module: nn.Module) -> bool:
        """Whether buffers are others than at the last look."""
        before, self._buffers = self._buffers, _buffers(module)
        return any(one is not other for one, other in zip(before, self._buffers, strict=False)) or len(before) != len(
            self._buffers
        )

    def check_held(self, before: Wiring, optimizers: Sequence[Optimizer]) -> None:
        """Refuse what is trained now, was not at set-up, and is in no optimizer.

        Raises:
            ValueError: naming it; "frozen" is what it was.
        """
        held = {id(param) for optimizer in optimizers for group in optimizer.param_groups for param in group["params"]}
        new = {key: name for key, name in self.trained.items() if key not in before.trained and key not in held}
        if new:
            existed = next(iter(new)) in {id(param) for param in before.known}
            raise ValueError(thawed_message(list(new.values()), "frozen" if existed else "not there (or frozen)"))


def tell_apart(trained: Collection[str], comm: Comm) -> ValueError:
    """The error for ranks that train different parameters; a collective."""
    gathered: list[set[str]] = [set() for _ in range(comm.world_size)]
    dist.all_gather_object(gathered, set(trained), group=comm.agreement.group)
    common = set.intersection(*gathered)
    rank, name = next((rank, min(names - common)) for rank, names in enumerate(gathered) if names - common)
    others = [other for other, names in enumerate(gathered) if name not in names]
    return ValueError(
        f"{name} is trained on rank {rank} and frozen on rank {', '.join(map(str, others))}: every rank must freeze "
        "and unfreeze the same parameters before the same batch."
    )


def _parameters(module: nn.Module) -> list[int]:
    """Identity and fate of every parameter, in order; a fraction of a millisecond for a large backbone."""
    return [
        2 * id(param) + param.requires_grad
        for child in module.modules()
        for param in child._parameters.values()
        if param is not None
    ]


def _buffers(module: nn.Module) -> list[Tensor]:
    return [buffer for child in module.modules() for buffer in child._buffers.values() if buffer is not None]
