"""Rows of a checkpoint for classes that are elsewhere now: found by their names, read in a stream."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.identities import UNNAMED, Identities, composed
from lightning_pfc.checkpoint.manifest import BLOCK

NEW = -1
_KEY = 16  # bytes; of 10^9 names no two have the same key by chance


def row_origins(there: Identities, here: Identities) -> Tensor:
    """Which row of a checkpoint each class of some data has.

    Names are read in a stream; memory is about 64 bytes a name. Where a name is not there, one that differs in how
    Unicode writes accents alone is taken, if there is one such on either side.

    Args:
        there: the classes of the checkpoint.
        here: those of the data.

    Returns:
        (here.count,) int64, :data:`NEW` for classes that the checkpoint does not know. Its classes without a name are
        nobody's.

    Raises:
        CheckpointError: if two classes of either have one name.
    """
    old, new = _keys(there, unnamed=True), _keys(here)
    order = _sorted_alone(old, there, "the checkpoint")
    _sorted_alone(new, here, "the data")
    if not len(old):
        return torch.full((len(new),), NEW)
    place = np.minimum(np.searchsorted(old, new, sorter=order), len(old) - 1)
    rows = order[place]
    found = np.where(old[rows] == new, rows, NEW)
    _by_composed_names(there, here, found)
    return torch.from_numpy(found)


def _by_composed_names(there: Identities, here: Identities, found: NDArray[np.int64]) -> None:
    """Fill in, in place, what has its row under another way of writing accents."""
    left = np.ones(there.count, bool)
    left[found[found != NEW]] = False
    if not left.any() or (found != NEW).all():
        return
    old, new = _composed(there, left), _composed(here, found == NEW)
    for name in old.keys() & new.keys():
        if len(old[name]) == len(new[name]) == 1:
            found[new[name][0]] = old[name][0]


def _composed(names: Identities, wanted: NDArray[np.bool_]) -> dict[str, list[int]]:
    """Rows by composed name, of names with more than ASCII in them."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if wanted[row] and not name.isascii():
            rows.setdefault(composed(name), []).append(row)
    return rows


def check_most_are_known(where: str, origins: Tensor, count: int, way_out: str) -> int:
    """See that more than half of the smaller side's classes have a row.

    Args:
        where: names the checkpoint.
        origins: of :func:`row_origins`.
        count: classes of the checkpoint.
        way_out: what to do otherwise, a sentence.

    Returns:
        How many have one.

    Raises:
        CheckpointError: if not.
    """
    known = int((origins != NEW).sum())
    if 2 * known <= min(count, len(origins)):
        raise CheckpointError(
            f"{where} has {count} classes and the data have {len(origins)}, but only {known} names are in both: these "
            f"seem to be other identities, or their names are made in another way. {way_out}"
        )
    return known


def take_rows(read: Callable[[int, int], Iterator[Tensor]], origins: Tensor, out: Tensor) -> None:
    """Copy rows to where they belong; those that are new stay as they are.

    Args:
        read: gives rows ``start`` to ``stop`` of a tensor, in parts.
        origins: (n,) int64, the row of each row of ``out``, or :data:`NEW`.
        out: (n, ...).
    """
    order = torch.argsort(origins, stable=True)
    wanted = origins[order]
    first = int(torch.searchsorted(wanted, 0))  # behind the new ones
    order, wanted = order[first:], wanted[first:]
    if not len(wanted):
        return
    step = max(1, BLOCK // max(1, out[:1].numel() * out.element_size()))
    for low in range(int(wanted[0]), int(wanted[-1]) + 1, step):
        begin, end = (int(torch.searchsorted(wanted, edge)) for edge in (low, low + step))
        if begin == end:
            continue
        start = int(wanted[begin])
        rows = torch.cat(list(read(start, int(wanted[end - 1]) + 1)))
        out[order[begin:end].to(out.device)] = rows[wanted[begin:end] - start].to(out.device, out.dtype)


def unnamed_rows(names: Identities) -> list[int]:
    """The classes that have no name."""
    return [row for row, name in enumerate(names) if name == UNNAMED]


def _keys(names: Identities, unnamed: bool = False) -> NDArray[np.bytes_]:
    """(count,) of bytes; ``unnamed`` gives each class without a name a key that no name has."""
    texts = (f"\0{row}" if unnamed and name == UNNAMED else name for row, name in enumerate(names))
    made = (hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=_KEY).digest() for text in texts)
    return np.fromiter(made, dtype=f"S{_KEY}", count=names.count)


def _sorted_alone(keys: NDArray[np.bytes_], names: Identities, whose: str) -> NDArray[np.int64]:
    """The order of keys that are all different.

    Raises:
        CheckpointError: naming two classes that have one name.
    """
    order = np.argsort(keys, kind="stable")
    twice = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    if len(twice):
        one, other = sorted((int(order[twice[0]]), int(order[twice[0] + 1])))
        name = next(itertools.islice(names, one, None))
        raise CheckpointError(
            f"classes {one} and {other} of {whose} are both named {name!r}, so names do not say whose a center is. "
            "Give each identity a name of its own, or take rows by their position: head.match=position."
        )
    return order
