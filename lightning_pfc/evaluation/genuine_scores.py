"""The pairs of images of one identity: few, and enumerated."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_pfc.evaluation.blockwise import UnitRows
from lightning_pfc.evaluation.peers import Peers

_GENUINE_CHUNK = 1 << 18


def genuine_scores(rows: UnitRows, identity: Tensor, peers: Peers) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share of the genuine pairs, by chunks: identity and float64 cosine of each.

    In the order of identities the images of one lie together; step d pairs every image with the d-th one after it.
    """
    order = identity.argsort(stable=True)
    sorted_identity = identity[order]
    sizes = torch.bincount(identity)
    ends = sizes.cumsum(0)[sorted_identity]
    position = torch.arange(len(order), device=order.device)
    number = 0
    for step in range(1, int(sizes.max())):
        position = position[position + step < ends[position]]
        for part in torch.split(position, _GENUINE_CHUNK):
            if number % peers.world_size == peers.rank:
                first, second = order[part], order[part + step]
                yield sorted_identity[part], rows.exact(torch.minimum(first, second), torch.maximum(first, second))
            number += 1
