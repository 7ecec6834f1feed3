"""Saving and loading a checkpoint folder, on any number of ranks."""

from __future__ import annotations

import contextlib
import io
import pickle
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from lightning_pfc.checkpoint.archive import check_archive, check_checkpoint, load_archive
from lightning_pfc.checkpoint.blocks import BlockReader
from lightning_pfc.checkpoint.dcp_planners import RowsLoadPlanner, RowsSavePlanner
from lightning_pfc.checkpoint.dcp_storage import FolderReader, FolderWriter, small_name
from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.identities import KEY, Identities
from lightning_pfc.checkpoint.manifest import Manifest, check_size
from lightning_pfc.checkpoint.manifest_entries import FileEntry, TensorEntry, dtype_of
from lightning_pfc.checkpoint.publish import prepare_folder, publish, remove
from lightning_pfc.checkpoint.split_tree import ClassRows, join_tree
from lightning_pfc.distributed import ClassShard, Comm

_OF_WRITING = (CheckpointError, OSError, ValueError, TypeError, AttributeError, pickle.PicklingError)


class Targets(Protocol):
    """Where the tensors of a checkpoint go."""

    def __call__(self, key: str, stored: TensorEntry) -> Tensor | ClassRows | None:
        """The tensor to fill, or None to have one made."""

    def wants(self, key: str) -> bool:
        """Whether a tensor is read at all; in place of one that is not, the checkpoint has None."""


def save_folder(
    target: Path,
    rest: Any,
    tensors: Mapping[str, Tensor | ClassRows],
    comm: Comm,
    info: Mapping[str, Any],
    group: dist.ProcessGroup | None = None,
    identities: Identities | None = None,
) -> None:
    """Write a checkpoint folder. Collective, over CPU messages only; extra memory is one block of a few MiB a rank.

    Args:
        target: the folder's path; it appears, or is replaced, in one step at the very end.
        rest: of this rank, as :func:`~lightning_pfc.checkpoint.split_tree.split_tree` gives it.
        tensors: likewise. A tensor is taken for the same on every rank, :class:`ClassRows` for this rank's part.
        comm: the ranks.
        info: small facts for the manifest.
        group: the CPU group to talk through; None is that of ``comm.agreement``.
        identities: the names of the classes, which rank 0 writes.

    Raises:
        CheckpointError: on every rank, if any rank could not write; whatever had the name before is still there.
    """
    group = group if group is not None else comm.agreement.group
    folder = _agreed_folder(target, comm, group)
    by_class = sorted(key for key, item in tensors.items() if isinstance(item, ClassRows))
    facts = {**info, "torch": torch.__version__, "saved_at": time.time(), "by_class": by_class}

    def more(folder: Path) -> list[tuple[str, FileEntry]]:
        if identities is None:
            return []
        facts[KEY] = identities.facts
        return [identities.write(folder)]

    writer = FolderWriter(folder, rest, facts, lambda: publish(folder, target), more)
    planner = RowsSavePlanner(writes_rows=comm.rank < comm.shard_size)
    try:
        with _quiet(comm):
            save(
                dict(tensors), storage_writer=writer, planner=planner, process_group=group, no_dist=comm.world_size == 1
            )
    except CheckpointException as failure:
        if comm.rank == 0:
            remove(folder)
        errors = {rank: error for rank, (error, _) in sorted(failure.failures.items())}
        _raise_unless_of_writing(errors, comm.rank)
        reasons = "; ".join(f"rank {rank}: {error}" for rank, error in errors.items())
        raise CheckpointError(
            f"the checkpoint {target} could not be written ({reasons}). What was there before is untouched; see that "
            "the disk has room and may be written, then resume."
        ) from failure
    except BaseException:
        if comm.rank == 0:
            remove(folder)
        raise


@contextlib.contextmanager
def _quiet(comm: Comm) -> Iterator[None]:
    """On one process torch would warn that there is no process group, which is as it should be."""
    with warnings.catch_warnings() if comm.world_size == 1 else contextlib.nullcontext():
        if comm.world_size == 1:
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _raise_unless_of_writing(errors: Mapping[int, BaseException], rank: int) -> None:
    """What a signal handler raised while a checkpoint was being written, such as of a killed loader worker, is news."""
    for where, error in errors.items():
        if isinstance(error, _OF_WRITING):
            continue
        if where == rank or not isinstance(error, Exception):
            raise error
        raise RuntimeError(f"rank {where}: {error}") from error


def _agreed_folder(target: Path, comm: Comm, group: dist.ProcessGroup | None) -> Path:
    made: list[Any] = [None]
    if comm.rank == 0:
        try:
            made = [str(prepare_folder(target))]
        except CheckpointError as error:
            made = [error]
    if comm.world_size > 1:
        dist.broadcast_object_list(made, group_src=0, group=group)
    if isinstance(made[0], CheckpointError):
        raise made[0]
    return Path(made[0])


def load_folder(
    path: Path,
    comm: Comm,
    target: Targets,
    group: dist.ProcessGroup | None = None,
    weights_only: bool = True,
    given: Mapping[str, Tensor] | None = None,
) -> tuple[Any, Manifest, bool]:
    """Read a checkpoint folder that any number of ranks has written. Collective; runs no code from a file by default.

    Args:
        path: the folder.
        comm: the ranks that read; each gets its own rows.
        target: where the tensors go; rows by class are cut for ``comm``.
        group: the CPU group to talk through; None is that of ``comm.agreement``.
        weights_only: False runs code that the small parts name; only ever by the user's own word.
        given: tensors that are not read but taken as they are, on this rank.

    Returns:
        The checkpoint as Lightning made it, with this rank's rows; its manifest; and whether the small parts are this
        rank's own, which they are if as many ranks read as wrote. Otherwise they are those of rank 0.

    Raises:
        CheckpointError: on every rank, if any file that any rank needs is missing or damaged; the message names it.
    """
    group = group if group is not None else comm.agreement.group
    with shared_errors(comm, path):
        manifest = Manifest.read(path)
        for name, entry in manifest.files.items():
            check_size(path, name, entry)
        own = manifest.world_size == comm.world_size
        rest = read_small(path, manifest, comm.rank if own else 0, weights_only)
        targets: dict[str, Tensor | ClassRows] = {}
        for key, stored in manifest.tensors.items():
            if target.wants(key) and key not in (given or {}):
                found = target(key, stored)
                targets[key] = found if found is not None else _make(stored, comm)
    reader = FolderReader(path, manifest)
    try:
        with _quiet(comm):
            load(
                dict(targets),
                storage_reader=reader,
                planner=RowsLoadPlanner(),
                process_group=group,
                no_dist=comm.world_size == 1,
            )
    except CheckpointException as failure:
        rank, (error, _) = min(failure.failures.items(), key=lambda found: found[0])
        raise CheckpointError(f"rank {rank}: {error}") from failure
    local: dict[str, Any] = dict.fromkeys(manifest.tensors)
    local |= {key: item.tensor if isinstance(item, ClassRows) else item for key, item in targets.items()}
    local |= given or {}
    try:
        return join_tree(rest, local), manifest, own
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be used: {error}.") from error


def _make(stored: TensorEntry, comm: Comm) -> Tensor | ClassRows:
    dtype = dtype_of(stored.dtype)
    if not stored.by_class:
        return torch.empty(stored.shape, dtype=dtype)
    shard = ClassShard(stored.shape[0], comm.shard_rank, comm.shard_size)
    return ClassRows(torch.empty((shard.num_local, *stored.shape[1:]), dtype=dtype), shard)


@contextlib.contextmanager
def shared_errors(comm: Comm, path: Path) -> Iterator[None]:
    """What goes wrong on one rank is raised on all, before anything collective begins. One exchange on the CPU.

    Raises:
        CheckpointError, OSError: on every rank.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as found:
        known = isinstance(found, CheckpointError | FileNotFoundError)
        error = found if known else CheckpointError(f"{path} cannot be read: {found}")
    raise_on_all(comm, "load_checkpoint", error)


def raise_on_all(comm: Comm, tag: str, error: Exception | None) -> None:
    """What went wrong on one rank, if anything did, is raised on all. One exchange on the CPU.

    Raises:
        CheckpointError, OSError: on every rank.
    """
    try:
        comm.agreement.exchange(tag, error=error)
    except RuntimeError as agreed:
        if isinstance(agreed, CheckpointError):
            raise
        raise comm.agreement.in_other_words(CheckpointError(str(agreed))) from agreed


def read_small(path: Path, manifest: Manifest, rank: int, weights_only: bool = True) -> Any:
    """Everything of one rank that is not in the data files, checked and read without running anything from the file.

    Args:
        path: the folder.
        manifest: what is in it.
        rank: of those that wrote it.
        weights_only: False runs code that the file names; only ever by the user's own word.

    Raises:
        CheckpointError: if it is damaged, or holds anything but plain values and tensors.
    """
    name = small_name(rank)
    if name not in manifest.files:
        raise CheckpointError(f"{path} has no file {name}.")
    entry = manifest.files[name]
    with BlockReader(path, name, entry) as file:
        data = bytearray(entry.size)  # no more than the file has
        file.read_into(0, memoryview(data))
    content = io.BytesIO(data)
    try:
        check_archive(content, entry.size)
        content.seek(0)
        rest = load_archive(content, weights_only=weights_only)
        check_checkpoint(rest)
        return rest
    except ValueError as error:
        raise CheckpointError(f"{path / name} cannot be used: {error}. Resume from another checkpoint.") from error


def verify_folder(path: Path) -> Manifest:
    """Read every byte of the files that a manifest names, at least one, and compare all checksums.

    Raises:
        CheckpointError: naming the first file that is missing or damaged.
    """
    manifest = Manifest.read(path)
    for name, entry in manifest.files.items():
        with BlockReader(path, name, entry) as file:
            file.check_all()
    return manifest
