"""Initial centers that depend on (seed, global class id) alone: the same head on any number of ranks and any device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pfc.keyed_random.mixing import GAMMA, splitmix_64
from lightning_pfc.losses.base import CenterInit

HeadInit = Literal["normal", "unit", "kaiming", "xavier", "class_means"]

DEFAULT_STD = 0.01  # of InsightFace and most others; a center of 512 numbers then has length 0.23

_BLOCK = 1024  # classes per random stream; a part of the definition of the initial centers, so never changed


class InitialCenters(NamedTuple):
    """How centers begin.

    Attributes:
        init: the name of it, see :func:`initial_centers`.
        std: standard deviation of their numbers before a "unit" row is brought to length 1.
        dim: D; a row holds one center or several side by side.
        awaits_means: whether these are still to be replaced by class means before training.
    """

    init: CenterInit
    std: float
    dim: int
    awaits_means: bool = False

    def check(self) -> None:
        """See that training may begin.

        Raises:
            ValueError: the centers are still random, and means were asked for.
        """
        if self.awaits_means:
            raise ValueError(
                "init='class_means': the centers are still random. Put lightning_pfc.transfer.ClassMeans() among the "
                "Trainer's callbacks, or call lightning_pfc.transfer.fill_with_class_means before training."
            )

    def fill_(self, out: Tensor, start: int, seed: int) -> Tensor:
        """Fill ``out`` (n, K D), row i being global class ``start + i``; see :func:`init_centers_`."""
        return init_centers_(out, start, seed, self.std, self.dim if self.init == "unit" else None)


def initial_centers(
    init: HeadInit | None, std: float | None, of_loss: CenterInit, sizes: tuple[int, int]
) -> InitialCenters:
    """How centers begin, from what the user asked for and what the loss's authors do.

    Args:
        init: "normal" with ``std``; "unit", directions at random and length 1; "kaiming", N(0, 1/D); "xavier",
            N(0, 2/(C + D)); "class_means", as ``of_loss`` until they are replaced by means. None: "normal" where
            ``std`` is given, else ``of_loss``.
        std: of "normal"; None: 0.01.
        of_loss: how the loss's authors begin.
        sizes: C and D.

    Raises:
        ValueError: for an unknown ``init``, a ``std`` that is not positive, or one that would have no effect.
    """
    if init is not None and init not in get_args(HeadInit):
        raise ValueError(f"init={init!r} must be one of {', '.join(get_args(HeadInit))}, or None for the loss's own.")
    if std is not None and not std > 0.0:
        raise ValueError(f"init_std={std} must be above 0.")
    if std is not None and init not in (None, "normal"):
        raise ValueError(f"init_std={std} has no effect with init={init!r}; leave out one of the two.")
    num_classes, dim = sizes
    awaits = init == "class_means"
    found: CenterInit = of_loss if init is None or init == "class_means" else init
    found = "normal" if std is not None else found
    stds = {"normal": DEFAULT_STD if std is None else std, "unit": 1.0, "kaiming": dim**-0.5}
    return InitialCenters(found, stds.get(found, (2.0 / (num_classes + dim)) ** 0.5), dim, awaits)


def init_centers_(out: Tensor, start: int, seed: int, std: float, unit_dim: int | None = None) -> Tensor:
    """Fill ``out`` with N(0, std^2), row i being the center of global class ``start + i``.

    Every block of 1024 classes has its own CPU stream, keyed by (seed, block), so a shard is drawn without the others
    and a GPU gets the numbers of a CPU. Drawn in threads; at most a few blocks are held beside ``out``.

    Args:
        out: (c, D), any floating dtype and device; overwritten.
        start: global class id of the first row.
        seed: of the head.
        std: standard deviation.
        unit_dim: every so many numbers of a row are brought to length 1; None leaves them as they were drawn.
    """
    num_rows, dim = out.shape
    blocks = range(start // _BLOCK, -(-(start + num_rows) // _BLOCK))

    def fill(block: int) -> None:
        generator = torch.Generator("cpu").manual_seed(_stream(seed, block))
        rows = torch.empty((_BLOCK, dim), dtype=torch.float32, device="cpu").normal_(0.0, std, generator=generator)
        if unit_dim is not None:
            rows = F.normalize(rows.view(-1, unit_dim), dim=1).view(_BLOCK, dim)
        low, high = max(block * _BLOCK, start), min((block + 1) * _BLOCK, start + num_rows)
        with torch.no_grad():  # grad mode is per thread
            out[low - start : high - start].copy_(rows[low - block * _BLOCK : high - block * _BLOCK])

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        list(pool.map(fill, blocks))
    return out


def _stream(seed: int, block: int) -> int:
    """A 63-bit seed for the stream of a block (SplitMix64)."""
    z = (seed * GAMMA + (block + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    return int(splitmix_64(np.asarray([z], dtype=np.uint64))[0]) & 0x7FFFFFFFFFFFFFFF
