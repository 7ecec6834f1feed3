"""A checkpoint with another set of classes: some kept, some merged, some new; without holding it in memory."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.checkpoint.blocks import BlockWriter, safetensors_header, tensor_bytes
from lightning_pfc.checkpoint.dcp_storage import save_small, small_name
from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.identities import KEY, UNNAMED, Identities, encoded_names
from lightning_pfc.checkpoint.manifest import BLOCK, Manifest
from lightning_pfc.checkpoint.manifest_entries import ChunkEntry, FileEntry, TensorEntry, dtype_of
from lightning_pfc.checkpoint.publish import prepare_folder, publish, remove
from lightning_pfc.checkpoint.reader import MODEL, CheckpointReader
from lightning_pfc.checkpoint.single import OWN

_CLASSES = "num_classes"  # the hyper-parameter that follows the number of rows


@dataclass(frozen=True)
class KeepRows:
    """Rows ``start`` to ``stop`` of the classes as they were."""

    start: int
    stop: int


@dataclass(frozen=True)
class MergeRows:
    """One row for several classes: the mean of their centers; everything else is the first one's."""

    classes: tuple[int, ...]


@dataclass(frozen=True)
class NewRows:
    """New rows: given centers, and zeros in everything else, such as a bias and the state of optimizers.

    Attributes:
        count: how many.
        centers: gives the centers of the new classes ``start`` to ``stop``, (stop - start, D) of float.
    """

    count: int
    centers: Callable[[int, int], Tensor]

    @staticmethod
    def of(centers: Tensor) -> NewRows:
        """With centers that are there already, (count, D)."""
        return NewRows(len(centers), lambda start, stop: centers[start:stop])


Piece = KeepRows | MergeRows | NewRows


def rewrite_classes(path: Path, target: Path, pieces: Sequence[Piece], added: Sequence[str] = ()) -> int:
    """Write a checkpoint with another set of classes: weights, and the rows of optimizers with them.

    Args:
        path: a folder, or a file of one process that was saved under ``strategy="pfc"``.
        target: the new folder; any number of ranks can read it.
        pieces: the new rows in order.
        added: names of new classes. The result has the names of its classes if the source has; without any,
            new classes are unnamed.

    Returns:
        The new number of classes.

    Raises:
        CheckpointError: if the source is damaged, ``target`` exists, or there is no room for it.
    """
    source = CheckpointReader(path)
    old = source.num_classes
    if target.exists():
        raise CheckpointError(f"{target} exists; name a new folder, so that nothing is lost.")
    new = sum(
        1 if isinstance(p, MergeRows) else p.count if isinstance(p, NewRows) else p.stop - p.start for p in pieces
    )
    if new < 1:
        raise CheckpointError("no class would be left.")
    entries = {key: entry.with_rows(new) if entry.by_class else entry for key, entry in source.tensors.items()}
    folder = prepare_folder(target)
    try:
        _check_room(folder, target, sum(entry.nbytes for entry in entries.values()))
        tensors, files = _write_tensors(folder, source, entries, pieces)
        rest = _with_num_classes(source.rest, old, new)
        own = {key: value for key, value in rest.get(OWN, {}).items() if key not in ("random_state", KEY)}
        rest[OWN] = own
        info = {key: value for key, value in source.info.items() if key != KEY}
        if (names := _new_identities(source, pieces, new, added)) is not None:
            files |= [names.write(folder)]
            info[KEY] = names.facts
        files[small_name(0)] = save_small(folder / small_name(0), rest)
        Manifest(tensors, files, 0, {**info, "rewritten_from": path.name}).write(folder)
        publish(folder, target)
    except BaseException:
        remove(folder)
        raise
    return new


def _check_room(folder: Path, target: Path, needed: int) -> None:
    """Before hours of writing, not at their end."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"{target} would have {needed:,} bytes, and {free:,} are free there. Make room, or name another place."
        )


def _write_tensors(
    folder: Path, source: CheckpointReader, entries: Mapping[str, TensorEntry], pieces: Sequence[Piece]
) -> tuple[dict[str, TensorEntry], dict[str, FileEntry]]:
    """All tensors in one file: what the manifest says of them, and of the file."""
    name = "rank-00000.safetensors"
    offsets = {key: [0] * len(entry.shape) for key, entry in entries.items()}
    header, starts = safetensors_header([(k, e.dtype, e.shape, e.nbytes) for k, e in entries.items()], offsets)
    with BlockWriter(folder / name) as file:
        file.write(header)
        for key, entry in entries.items():
            rows = _new_rows(source, key, pieces) if entry.by_class else source.parts(key)
            for part in rows:
                for piece in tensor_bytes(part):
                    file.write(piece)
    tensors = {
        key: TensorEntry(
            entry.dtype,
            list(entry.shape),
            entry.by_class,
            [ChunkEntry(name, start, [0] * len(entry.shape), list(entry.shape))],
        )
        for (key, entry), start in zip(entries.items(), starts, strict=True)
    }
    return tensors, {name: file.entry()}


def _new_identities(
    source: CheckpointReader, pieces: Sequence[Piece], count: int, added: Sequence[str]
) -> Identities | None:
    names = source.identities
    if names is None:
        return None
    added = added or [UNNAMED] * sum(piece.count for piece in pieces if isinstance(piece, NewRows))

    def new() -> Iterator[str]:
        found, more, place = iter(names), iter(added), 0
        for piece in pieces:  # in the order of the rows that they are made of
            if isinstance(piece, NewRows):
                yield from itertools.islice(more, piece.count)
                continue
            start = piece.classes[0] if isinstance(piece, MergeRows) else piece.start
            stop = start + 1 if isinstance(piece, MergeRows) else piece.stop
            yield from itertools.islice(found, start - place, stop - place)
            place = stop

    return encoded_names(new, count)


def _new_rows(source: CheckpointReader, key: str, pieces: Iterable[Piece]) -> Iterator[Tensor]:
    entry = source.tensors[key]
    is_center = key.startswith(MODEL) and len(entry.shape) == 2
    dtype = dtype_of(entry.dtype)
    for piece in pieces:
        if isinstance(piece, KeepRows):
            yield from source.read(key, piece.start, piece.stop)
        elif isinstance(piece, MergeRows):
            if is_center:
                rows = [next(source.read(key, row, row + 1)).float() for row in piece.classes]
                yield torch.cat(rows).mean(0, keepdim=True).to(dtype)
            else:
                yield next(source.read(key, piece.classes[0], piece.classes[0] + 1))
        else:
            yield from _added_rows(piece, key, entry, is_center)


def _added_rows(piece: NewRows, key: str, entry: TensorEntry, is_center: bool) -> Iterator[Tensor]:
    step = max(1, BLOCK // max(1, entry.row_bytes))
    for start in range(0, piece.count, step):
        count = min(step, piece.count - start)
        if not is_center:
            yield torch.zeros((count, *entry.shape[1:]), dtype=dtype_of(entry.dtype))
            continue
        rows = piece.centers(start, start + count)
        if tuple(rows.shape) != (count, entry.shape[1]):
            raise CheckpointError(f"the new centers have {rows.shape[-1]} numbers each; {key} needs {entry.shape[1]}.")
        yield rows.to(dtype_of(entry.dtype))


def _with_num_classes(rest: Any, old: int, new: int) -> dict[str, Any]:
    """Hyper-parameters of that name follow, so that ``load_from_checkpoint`` builds the right model."""
    found = dict(rest)
    for key in ("hyper_parameters", "datamodule_hyper_parameters"):
        values = found.get(key)
        if isinstance(values, Mapping) and values.get(_CLASSES) == old:
            found[key] = {**values, _CLASSES: new}
    return found


def without(classes: Iterable[int], total: int) -> list[Piece]:
    """The pieces that leave some classes out."""
    pieces: list[Piece] = []
    start = 0
    for row in sorted(set(classes)):
        if start < row:
            pieces.append(KeepRows(start, row))
        start = row + 1
    if start < total:
        pieces.append(KeepRows(start, total))
    return pieces


def joining(groups: Sequence[Sequence[int]], total: int) -> list[Piece]:
    """The pieces that make each group one class, in the place of its first; the others of the group vanish."""
    first = {group[0]: MergeRows(tuple(group)) for group in groups}
    gone = {row for group in groups for row in group[1:]}
    pieces: list[Piece] = []
    start = 0
    for row in sorted({*first, *gone}):
        if start < row:
            pieces.append(KeepRows(start, row))
        if row in first:
            pieces.append(first[row])
        start = row + 1
    if start < total:
        pieces.append(KeepRows(start, total))
    return pieces
