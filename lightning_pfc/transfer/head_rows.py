"""The centers of a head from those of another one: by the names of their classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.checkpoint.by_name import NEW, check_most_are_known, row_origins, take_rows
from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.identities import Identities, difference
from lightning_pfc.checkpoint.save_load import shared_errors
from lightning_pfc.distributed import Comm
from lightning_pfc.heads.partial_fc import PartialFC
from lightning_pfc.interchange.plain_weights import all_finite, why_no_weights
from lightning_pfc.strategies.moved_rows import on_all_ranks
from lightning_pfc.transfer.sources import Weights

_ROWS = 65_536  # looked at together
_WAY_OUT = "Leave head out of init_parts, or say head.match=position if row i is class i."


def take_head(
    heads: Mapping[str, PartialFC],
    weights: Weights,
    prefix: str,
    names: Identities | None,
    comm: Comm,
    report: Any,
    *,
    must: bool,
    by_position: bool,
) -> None:
    """Fill this rank's rows of every head that the source has. Collective.

    Args:
        heads: by their names in the module.
        weights: the source.
        prefix: what its names have before those of a module.
        names: of the classes of the data.
        comm: the ranks.
        report: is told what was done.
        must: whether it is an error that rows cannot be taken.
        by_position: row i is class i.

    Raises:
        CheckpointError: on every rank.
    """
    for name, head in heads.items():
        origins = None
        with shared_errors(comm, report.source):
            if comm.rank == 0:
                origins = _origins(name, head, weights, prefix, names, report, must, by_position)
        origins = on_all_ranks(origins, comm)
        if origins is None:
            report.new.append(f"{name}.weight")
            continue
        if not head.is_materialized:
            head.attach(comm)
        with shared_errors(comm, report.source):
            _fill(name, head, weights, prefix, origins, report)


def _origins(
    name: str,
    head: PartialFC,
    weights: Weights,
    prefix: str,
    names: Identities | None,
    report: Any,
    must: bool,
    by_position: bool,
) -> Tensor | None:
    where, shape = f"init_from={report.source}", weights.shapes.get(f"{prefix}{name}.weight")
    width = head.weight.shape[1]
    wrong = "it has none" if shape is None else "" if shape[1:] == (width,) else f"its centers have {shape[1:]} numbers"
    there = weights.identities
    named = there is not None and names is not None and not by_position and names.count == head.num_classes
    if not wrong and named and there is not None and names is not None and (there.count,) == (shape or ())[:1]:
        origins = _by_name(where, there, names, must)
        report.notes.append(_said(name, origins, there.count))
        return origins if bool((origins != NEW).any()) else None
    if not wrong and shape is not None and shape[0] != head.num_classes:
        wrong = f"it has {shape[0]} classes, this head {head.num_classes}, and no names say which are the same"
    if wrong:
        if must:
            raise CheckpointError(f"{where} has no {name} for this module: {wrong}. Leave head out of init_parts.")
        report.notes.append(f"{name} is new: {wrong}")
        return None
    report.notes.append(f"{name}: all rows, by their position")
    return torch.arange(head.num_classes)


def _by_name(where: str, there: Identities, names: Identities, must: bool) -> Tensor:
    if difference(there, names) is None:
        return torch.arange(names.count)
    origins = row_origins(there, names)
    if must:
        check_most_are_known(where, origins, there.count, _WAY_OUT)
    return origins


def _said(name: str, origins: Tensor, there: int) -> str:
    known = int((origins != NEW).sum())
    new = len(origins) - known
    return (
        f"{name}: rows of {known} classes by their names, {new} {'class is' if new == 1 else 'classes are'} new, "
        f"{there - known} of the source left"
    )


def _check(what: str, read: Callable[[int, int], Iterator[Tensor]], wanted: Tensor, out: Tensor) -> None:
    """See that rows are weights before one is taken: which reads them twice, once a run.

    Raises:
        CheckpointError: they are not.
    """
    least, most = (int(wanted.min()), int(wanted.max()) + 1) if len(wanted) else (0, 0)
    for start in range(least, most, _ROWS):
        stop = min(start + _ROWS, most)
        among = wanted[(wanted >= start) & (wanted < stop)] - start
        for part in read(start, stop):
            if wrong := why_no_weights(part, True):
                raise CheckpointError(f"{what} {wrong}")
            own, among = among[among < len(part)], among[among >= len(part)] - len(part)
            if not all_finite(part[own].to(out.dtype)):
                raise CheckpointError(
                    f"{what} holds NaN or infinity, so the run that wrote it had diverged. Give an earlier checkpoint, "
                    "or leave head out of init_parts."
                )


def _fill(name: str, head: PartialFC, weights: Weights, prefix: str, origins: Tensor, report: Any) -> None:
    own = origins[head.shard.start : head.shard.stop]
    report.known_rows[name] = own != NEW
    for key in ("weight", "bias"):
        out, there = getattr(head, key), f"{prefix}{name}.{key}"
        if out is None or there not in weights.shapes:
            continue
        read = partial(weights.rows, there)
        _check(f"init_from={report.source}: {there}", read, own[own != NEW], out)
        with torch.no_grad():
            take_rows(read, own, out.detach())
        report.taken.append(f"{name}.{key}")
