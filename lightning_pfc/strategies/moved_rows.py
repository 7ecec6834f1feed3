"""``head.match=names``: a checkpoint's rows, where the identities that they belong to are in the data now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from lightning.fabric.utilities import rank_zero_info
from torch import Tensor

from lightning_pfc.checkpoint.by_name import NEW, check_most_are_known, row_origins, take_rows, unnamed_rows
from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.identities import Identities, difference
from lightning_pfc.checkpoint.manifest_entries import TensorEntry, dtype_of
from lightning_pfc.checkpoint.reader import MODEL, CheckpointReader
from lightning_pfc.distributed import Comm
from lightning_pfc.heads.partial_fc import PartialFC

_WAY_OUT = "Give the data of the checkpoint, or head.match=position if row i is class i, or begin anew with init_from=."


def find_moves(
    where: str, there: Identities | None, here: Identities | None, heads: Mapping[str, PartialFC]
) -> Tensor | None:
    """Which row each class comes from; None where all stay in their places. To be called on one rank.

    Args:
        where: names the checkpoint.
        there: the names that it keeps.
        here: those of the data.
        heads: of the module.

    Raises:
        CheckpointError: names are missing, are there twice, or hardly any are in both.
    """
    if there is None or here is None:
        who = where if there is None else "this run's data"
        raise CheckpointError(
            f"head.match=names needs the names of the classes, and {who} has none. Leave it out; rows are taken by "
            "their position then."
        )
    if difference(there, here) is None:
        return None
    others = [name for name, head in heads.items() if head.num_classes != here.count]
    if others:
        raise CheckpointError(
            f"head.match=names moves the rows of heads that have all classes of the data; {others[0]} has "
            f"{heads[others[0]].num_classes} of {here.count}. Give the data of the checkpoint."
        )
    origins = row_origins(there, here)
    _take_unnamed(where, there, origins)
    known = check_most_are_known(where, origins, there.count, _WAY_OUT)
    new = here.count - known
    begin = " (their centers begin at random)" if new else ""
    if new and any(head.initial_centers.awaits_means for head in heads.values()):
        begin = (
            " (their centers begin at random: head.init=class_means is for the beginning of a run, such as one with "
            f"init_from={where})"
        )
    rank_zero_info(
        f"{where}: rows taken by name: {known}; classes that are new in the data: {new}{begin}; classes of the "
        f"checkpoint that are left out: {there.count - known}."
    )
    return origins


def _take_unnamed(where: str, there: Identities, origins: Tensor) -> None:
    """Fill in, in place, the rows without a name: theirs is who is new in the data and stands at their place.

    Raises:
        CheckpointError: there is none at the place of one, and new classes elsewhere.
    """
    left = []
    for row in unnamed_rows(there):
        if row < len(origins) and origins[row] == NEW:
            origins[row] = row
        else:
            left.append(row)
    if left and bool((origins == NEW).any()):
        raise CheckpointError(
            f"{where}: class {left[0]} has no name (pfc-ckpt append without --names), and who is new in the data does "
            "not stand at its place, so head.match=names cannot tell whose its center is. Append them again with "
            "--names, in the order of their centers."
        )


def on_all_ranks(origins: Tensor | None, comm: Comm) -> Tensor | None:
    """What rank 0 has found. Collective, on the CPU."""
    if comm.world_size == 1:
        return origins
    size = torch.tensor([-1 if origins is None else len(origins)])
    dist.broadcast(size, group_src=0, group=comm.agreement.group)
    if size < 0:
        return None
    found = torch.empty(int(size), dtype=torch.int64) if origins is None else origins
    dist.broadcast(found, group_src=0, group=comm.agreement.group)
    return found


def moved_rows(
    source: CheckpointReader,
    origins: Tensor,
    heads: Mapping[str, PartialFC],
    live: Mapping[str, Tensor],
    keys: Iterable[str],
) -> dict[str, Tensor]:
    """This rank's rows of everything in a checkpoint that has a row per class.

    New classes begin with the centers that a new head would have, and zeros in everything else.

    Args:
        source: the checkpoint.
        origins: (C,) as :func:`find_moves` gives them.
        heads: of the module.
        live: its tensors by name; those that fit are filled in place.
        keys: of what is wanted.
    """
    return {
        key: _moved(source, key, source.tensors[key], origins, heads, live)
        for key in keys
        if source.tensors[key].by_class
    }


def _moved(
    source: CheckpointReader,
    key: str,
    entry: TensorEntry,
    origins: Tensor,
    heads: Mapping[str, PartialFC],
    live: Mapping[str, Tensor],
) -> Tensor:
    head = next((head for name, head in heads.items() if f"{name}." in key), next(iter(heads.values())))
    shard = head.shard
    shape, dtype = (shard.num_local, *entry.shape[1:]), dtype_of(entry.dtype)
    out = live.get(key.removeprefix(MODEL)) if key.startswith(MODEL) else None
    if out is None or tuple(out.shape) != shape or out.dtype != dtype:
        out = torch.empty(shape, dtype=dtype)
    own = origins[shard.start : shard.stop]
    with torch.no_grad():
        out = out.detach()
        if bool((own == NEW).any()):
            if key.endswith(".weight") and len(shape) == 2:
                head.initial_centers.fill_(out, shard.start, head.seed)
            else:
                out.zero_()
        take_rows(lambda start, stop: source.read(key, start, stop), own, out)
    return out
