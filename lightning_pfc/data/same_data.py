"""Whether all ranks have opened the same data."""

from __future__ import annotations

import torch.distributed as dist

from lightning_pfc.data.source import IdentityData
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.distributed.owner import get_owner


def in_group() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized()


def agree_on_data(data: IdentityData | None, failure: Exception | None) -> bool:
    """Compare what every rank has opened. Collective where there is a group, on the CPU.

    Args:
        data: of this rank; None where opening them failed.
        failure: why.

    Returns:
        Whether there were ranks to compare.

    Raises:
        Exception: the failure of any rank, on every rank.
        RuntimeError: if ranks opened different data.
    """
    if not in_group():
        if failure is not None:
            raise failure
        return False
    owner = get_owner()
    comm = owner.comm if owner is not None and owner.comm is not None else Comm.from_group()
    numbers = [] if data is None else [int(data.fingerprint[:15], 16), data.num_classes, data.num_images]
    everyone = comm.agreement.exchange("data: setup", numbers, failure)
    if different := [r for r, theirs in enumerate(everyone) if theirs != everyone[0]]:
        raise RuntimeError(
            f"Ranks {different} opened other data than rank 0 (rank 0: {everyone[0][1]} classes, {everyone[0][2]} "
            f"images; rank {different[0]}: {everyone[different[0]][1]}, {everyone[different[0]][2]}). Every node "
            "needs the same files, fonts and versions."
        )
    return True
