"""Whole checkpoints without holding them in memory: read, turned into one file, given another set of classes."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.checkpoint.blocks import BlockReader, BlockWriter, safetensors_header, tensor_bytes
from lightning_pfc.checkpoint.folder import save_small, small_name
from lightning_pfc.checkpoint.identities import KEY, Identities, encoded_names, in_folder, in_values
from lightning_pfc.checkpoint.manifest import (
    BLOCK,
    CheckpointError,
    ChunkEntry,
    FileEntry,
    Manifest,
    TensorEntry,
    dtype_of,
    is_checkpoint_folder,
)
from lightning_pfc.checkpoint.publish import prepare_folder, publish, remove
from lightning_pfc.checkpoint.single import OWN, load_file, save_file
from lightning_pfc.checkpoint.store import read_small
from lightning_pfc.checkpoint.tree import join_tree, split_tree

MODEL = "state_dict/"
_CLASSES = "num_classes"  # the hyper-parameter that follows the number of rows


class Source:
    """A checkpoint that is read row by row: a folder of any number of ranks, or Lightning's file of one process.

    Args:
        path: the folder or file.
        check: whether a file is compared with its checksums, which reads it whole; those of a folder are compared as it
            is read.

    Raises:
        CheckpointError: if it is neither, or damaged.
    """

    def __init__(self, path: Path, check: bool = True) -> None:
        self.path = path
        self.manifest: Manifest | None = None
        self._whole: dict[str, Tensor] = {}
        if is_checkpoint_folder(path):
            self.manifest = Manifest.read(path)
            self.rest = read_small(path, self.manifest, 0)
            self.tensors = self.manifest.tensors
            self.info = self.manifest.info
        elif path.is_file():
            self._open_file(check)
        else:
            raise CheckpointError(f"{path} is neither a checkpoint folder with a manifest.json nor a checkpoint file.")

    def _open_file(self, check: bool) -> None:
        content = load_file(self.path, check=check)
        own = content.get(OWN)
        by_class = set(map(str, own.get("by_class", ()))) if isinstance(own, Mapping) else set()
        self.rest, tensors = split_tree(content, lambda key, tensor: None, keep=by_class)
        self._whole = {key: tensor for key, tensor in tensors.items() if isinstance(tensor, Tensor)}
        self.tensors = {
            key: TensorEntry.of(tensor, by_class=key in by_class and tensor.dim() > 0)
            for key, tensor in self._whole.items()
        }
        names = ("epoch", "global_step", "pytorch-lightning_version")
        self.info = {name: content[name] for name in names if name in content}

    @property
    def identities(self) -> Identities | None:
        """The names of its classes, if it has them."""
        if self.manifest is not None:
            return in_folder(self.path, self.manifest)
        return in_values(self.rest.get(OWN), str(self.path))

    @property
    def num_classes(self) -> int:
        """Rows of the tensors that have one per class.

        Raises:
            CheckpointError: if there are none, or heads of different sizes.
        """
        sizes = {entry.shape[0] for entry in self.tensors.values() if entry.by_class}
        if not sizes:
            raise CheckpointError(
                f"{self.path} does not say which tensors have a row per class; save it under strategy='pfc'."
            )
        if len(sizes) > 1:
            raise CheckpointError(f"{self.path} has heads of {sorted(sizes)} classes; only one size can be changed.")
        return sizes.pop()

    def read(self, key: str, start: int, stop: int) -> Iterator[Tensor]:
        """Rows of a tensor, in parts of about one block."""
        entry = self.tensors[key]
        step = max(1, BLOCK // max(1, entry.row_bytes))
        if self.manifest is None:
            for first in range(start, stop, step):
                yield self._whole[key][first : min(first + step, stop)]
            return
        for chunk in entry.chunks:
            low, high = max(start, chunk.offset[0]), min(stop, chunk.offset[0] + chunk.shape[0])
            if low >= high:
                continue
            with BlockReader(self.path, chunk.file, self.manifest.files[chunk.file]) as file:
                for first in range(low, high, step):
                    part = torch.empty((min(first + step, high) - first, *entry.shape[1:]), dtype=dtype_of(entry.dtype))
                    file.read_rows(chunk.start + (first - chunk.offset[0]) * entry.row_bytes, part)
                    yield part

    def parts(self, key: str) -> Iterator[Tensor]:
        """All rows of a tensor."""
        entry = self.tensors[key]
        if self.manifest is None and not entry.shape:
            yield self._whole[key]
        elif not entry.shape:
            yield self.whole(key)
        else:
            yield from self.read(key, 0, entry.shape[0])

    def whole(self, key: str) -> Tensor:
        """One tensor in memory."""
        entry = self.tensors[key]
        if self.manifest is None:
            return self._whole[key]
        out = torch.empty(entry.shape, dtype=dtype_of(entry.dtype))
        self.fill(key, out)
        return out

    def joined(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The checkpoint, with these tensors in their places."""
        try:
            return dict(join_tree(self.rest, tensors))
        except ValueError as error:
            raise CheckpointError(f"{self.path} cannot be used: {error}.") from error

    def fill(self, key: str, out: Tensor) -> None:
        """Copy one tensor into another of its shape."""
        entry = self.tensors[key]
        if not entry.shape and self.manifest is not None:
            [chunk] = entry.chunks
            with BlockReader(self.path, chunk.file, self.manifest.files[chunk.file]) as file:
                file.read_rows(chunk.start, out)
            return
        done = 0
        for part in self.parts(key):
            if not entry.shape:
                out.copy_(part)
                return
            out[done : done + len(part)] = part
            done += len(part)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of any number of ranks as one process would have written it, in memory, with whole heads.

    Raises:
        CheckpointError: naming the damaged file.
    """
    source = Source(path)
    return source.joined({key: source.whole(key) for key in source.tensors})


def merge_to_file(path: Path, target: Path) -> None:
    """Write one ordinary Lightning file. Large tensors pass through a temporary file beside it, not through memory.

    Raises:
        CheckpointError: naming the damaged file; ``target`` is not touched then.
    """
    source = Source(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        tensors = {}
        for number, (key, entry) in enumerate(source.tensors.items()):
            mapped = _mapped(Path(folder) / str(number), entry)
            source.fill(key, mapped)
            tensors[key] = mapped
        checkpoint = source.joined(tensors)
        added = dict(checkpoint.get(OWN, {}))
        added.pop("random_state", None)  # of one rank of several
        checkpoint[OWN] = {**added, "by_class": [k for k, e in source.tensors.items() if e.by_class]}
        if (names := source.identities) is not None:
            checkpoint[OWN][KEY] = names.as_values()
        save_file(target, checkpoint)


def _mapped(path: Path, entry: TensorEntry) -> Tensor:
    count = 1
    for size in entry.shape:
        count *= size
    dtype = dtype_of(entry.dtype)
    if count == 0:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(entry.shape)


def merge_to_safetensors(path: Path, target: Path) -> None:
    """Write the weights into one safetensors file, under their names in the module.

    Raises:
        CheckpointError: naming the damaged file; ``target`` is not touched then.
    """
    source = Source(path)
    names = {key.removeprefix(MODEL): key for key in source.tensors if key.startswith(MODEL)}
    small = {
        name: value
        for name, value in source.rest["state_dict"].items()
        if isinstance(value, Tensor) and name not in names
    }
    entries = {name: TensorEntry.of(value, by_class=False) for name, value in small.items()}
    entries |= {name: source.tensors[key] for name, key in names.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    made = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with BlockWriter(made) as file:
            file.write(safetensors_header([(name, e.dtype, e.shape, e.nbytes) for name, e in entries.items()], {})[0])
            for name in entries:
                for part in source.parts(names[name]) if name in names else [small[name]]:
                    for piece in tensor_bytes(part):
                        file.write(piece)
        os.replace(made, target)
    finally:
        made.unlink(missing_ok=True)


# -- classes


@dataclass(frozen=True)
class Kept:
    """Rows ``start`` to ``stop`` of the classes as they were."""

    start: int
    stop: int


@dataclass(frozen=True)
class Joined:
    """One row for several classes: the mean of their centers; everything else is the first one's."""

    classes: tuple[int, ...]


@dataclass(frozen=True)
class Added:
    """New rows: given centers, and zeros in everything else, such as a bias and the state of optimizers.

    Attributes:
        count: how many.
        centers: gives the centers of the new classes ``start`` to ``stop``, (stop - start, D) of float.
    """

    count: int
    centers: Callable[[int, int], Tensor]

    @staticmethod
    def of(centers: Tensor) -> Added:
        """With centers that are there already, (count, D)."""
        return Added(len(centers), lambda start, stop: centers[start:stop])


Piece = Kept | Joined | Added


def rewrite_classes(path: Path, target: Path, pieces: Sequence[Piece], added: Sequence[str] = ()) -> int:
    """Write a checkpoint with another set of classes: weights, and the rows of optimizers with them.

    Args:
        path: a folder, or a file of one process that was saved under ``strategy="pfc"``.
        target: the new folder; any number of ranks can read it.
        pieces: the new rows in order.
        added: names of new classes. The result has the names of its classes if the source has, and new ones have some.

    Returns:
        The new number of classes.

    Raises:
        CheckpointError: if the source is damaged, or ``target`` exists.
    """
    source = Source(path)
    old = source.num_classes
    if target.exists():
        raise CheckpointError(f"{target} exists; name a new folder, so that nothing is lost.")
    new = sum(1 if isinstance(p, Joined) else p.count if isinstance(p, Added) else p.stop - p.start for p in pieces)
    if new < 1:
        raise CheckpointError("no class would be left.")
    entries = {key: entry.with_rows(new) if entry.by_class else entry for key, entry in source.tensors.items()}
    folder = prepare_folder(target)
    try:
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
        files: dict[str, FileEntry] = {name: file.entry()}
        rest = _with_num_classes(source.rest, old, new)
        own = {key: value for key, value in rest.get(OWN, {}).items() if key not in ("random_state", KEY)}
        rest[OWN] = own
        info = {key: value for key, value in source.info.items() if key != KEY}
        if (names := _new_identities(source, pieces, new, added)) is not None:
            files |= [names.write(folder)]
            info[KEY] = names.facts
        files[small_name(0)] = save_small(folder / small_name(0), rest)
        tensors = {
            key: TensorEntry(
                entry.dtype,
                list(entry.shape),
                entry.by_class,
                [ChunkEntry(name, start, [0] * len(entry.shape), list(entry.shape))],
            )
            for (key, entry), start in zip(entries.items(), starts, strict=True)
        }
        Manifest(tensors, files, 0, {**info, "rewritten_from": path.name}).write(folder)
        publish(folder, target)
    except BaseException:
        remove(folder)
        raise
    return new


def _new_identities(source: Source, pieces: Sequence[Piece], count: int, added: Sequence[str]) -> Identities | None:
    names = source.identities
    if names is None or sum(piece.count for piece in pieces if isinstance(piece, Added)) != len(added):
        return None

    def new() -> Iterator[str]:
        found, more, place = iter(names), iter(added), 0
        for piece in pieces:  # in the order of the rows that they are made of
            if isinstance(piece, Added):
                yield from itertools.islice(more, piece.count)
                continue
            start = piece.classes[0] if isinstance(piece, Joined) else piece.start
            stop = start + 1 if isinstance(piece, Joined) else piece.stop
            yield from itertools.islice(found, start - place, stop - place)
            place = stop

    return encoded_names(new, count)


def _new_rows(source: Source, key: str, pieces: Iterable[Piece]) -> Iterator[Tensor]:
    entry = source.tensors[key]
    is_center = key.startswith(MODEL) and len(entry.shape) == 2
    dtype = dtype_of(entry.dtype)
    for piece in pieces:
        if isinstance(piece, Kept):
            yield from source.read(key, piece.start, piece.stop)
        elif isinstance(piece, Joined):
            if is_center:
                rows = [next(source.read(key, row, row + 1)).float() for row in piece.classes]
                yield torch.cat(rows).mean(0, keepdim=True).to(dtype)
            else:
                yield next(source.read(key, piece.classes[0], piece.classes[0] + 1))
        else:
            yield from _added_rows(piece, key, entry, is_center)


def _added_rows(piece: Added, key: str, entry: TensorEntry, is_center: bool) -> Iterator[Tensor]:
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
            pieces.append(Kept(start, row))
        start = row + 1
    if start < total:
        pieces.append(Kept(start, total))
    return pieces


def joining(groups: Sequence[Sequence[int]], total: int) -> list[Piece]:
    """The pieces that make each group one class, in the place of its first; the others of the group vanish."""
    first = {group[0]: Joined(tuple(group)) for group in groups}
    gone = {row for group in groups for row in group[1:]}
    pieces: list[Piece] = []
    start = 0
    for row in sorted({*first, *gone}):
        if start < row:
            pieces.append(Kept(start, row))
        if row in first:
            pieces.append(first[row])
        start = row + 1
    if start < total:
        pieces.append(Kept(start, total))
    return pieces
