"""Whether a manifest describes a checkpoint at all: checked whole, before a byte of any other file is read."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_pfc.checkpoint.manifest_entries import ChunkEntry, FileEntry, TensorEntry

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_SMALL = re.compile(r"rank-\d+\.pt")  # pickles of everything but tensors
_MOST_RANKS = 1 << 20
_MOST_NUMBERS = 1 << 60  # of a tensor: what an address can reach


def check_layout(
    tensors: Mapping[str, TensorEntry],
    files: Mapping[str, FileEntry],
    world_size: int,
    info: Mapping[str, Any],
    *,
    block: int,
    own_name: str,
) -> None:
    """See that every row of every tensor lies in exactly one place of a file that is long enough for it.

    The first four are those of a :class:`~lightning_pfc.checkpoint.manifest.Manifest`, with values of any type, as JSON
    gave them.

    Args:
        tensors: by path within the checkpoint.
        files: by name within the folder.
        world_size: how many ranks wrote it.
        info: epoch and step, for a look.
        block: bytes under one checksum.
        own_name: what no other file of the folder may be called.

    Raises:
        ValueError: saying which entry is wrong.
    """
    if not _is_count(world_size) or world_size > _MOST_RANKS:
        raise ValueError(f"world_size is {_short(world_size)}")
    if not isinstance(info, dict):
        raise ValueError(f"info is {_short(info)}")
    _check_step(info)
    if not files:
        raise ValueError("it names no files")
    for name, entry in files.items():
        _check_file(name, entry, block, own_name)
    for rank in range(max(1, world_size)):
        if f"rank-{rank:05d}.pt" not in files:
            raise ValueError(f"it names no file rank-{rank:05d}.pt, and {world_size} ranks have written it")
    regions: dict[str, list[tuple[int, int, str]]] = {name: [] for name in files}
    for key, tensor in tensors.items():
        _check_tensor(key, tensor, files)
        for chunk in tensor.chunks:
            size = math.prod(chunk.shape) * tensor.itemsize
            if size:
                regions[chunk.file].append((chunk.start, chunk.start + size, key))
    for name, found in regions.items():
        found.sort()
        for (_, end, first), (start, _, second) in itertools.pairwise(found):
            if start < end:
                raise ValueError(f"{first!r} and {second!r} lie in the same bytes of {name}")


def _check_step(info: Mapping[str, Any]) -> None:
    for name in ("global_step", "epoch"):
        if name in info and not _is_count(info[name]):
            raise ValueError(f"{name} is {_short(info[name])}")


def _check_file(name: str, entry: FileEntry, block: int, own_name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == own_name:
        raise ValueError(f"it names the file {_short(name)}, which is not a file of this checkpoint")
    if not _is_count(entry.size):
        raise ValueError(f"the size of {name} is {_short(entry.size)}")
    sums = entry.crc32
    if not isinstance(sums, list) or len(sums) != -(-entry.size // block):
        raise ValueError(f"{name} needs {-(-entry.size // block)} checksums for its {entry.size} bytes")
    if not all(_is_count(value) and value < 1 << 32 for value in sums):
        raise ValueError(f"a checksum of {name} is not a number of 32 bits")


def _check_tensor(key: str, tensor: TensorEntry, files: Mapping[str, FileEntry]) -> None:
    tensor.itemsize  # noqa: B018 - raises for a dtype that is not known
    if not _is_shape(tensor.shape) or math.prod(max(1, length) for length in tensor.shape) > _MOST_NUMBERS:
        raise ValueError(f"the shape of {key!r} is {_short(tensor.shape)}")
    if not isinstance(tensor.by_class, bool) or (tensor.by_class and not tensor.shape):
        raise ValueError(f"by_class of {key!r} is {_short(tensor.by_class)} for the shape {tensor.shape}")
    for chunk in tensor.chunks:
        _check_chunk(key, chunk, tensor, files)
    if not tensor.shape:
        if len(tensor.chunks) != 1:
            raise ValueError(f"{key!r}, one number, lies in {len(tensor.chunks)} places")
        return
    reached = 0
    for start, rows in sorted((chunk.offset[0], chunk.shape[0]) for chunk in tensor.chunks):
        if rows and start != reached:
            what = "twice" if start < reached else "nowhere"
            raise ValueError(f"row {min(start, reached)} of {key!r} lies {what}")
        reached += rows
    if math.prod(tensor.shape) and reached != tensor.shape[0]:
        raise ValueError(f"row {reached} of {key!r} lies nowhere")


def _check_chunk(key: str, chunk: ChunkEntry, tensor: TensorEntry, files: Mapping[str, FileEntry]) -> None:
    if not isinstance(chunk.file, str) or chunk.file not in files or _SMALL.fullmatch(chunk.file):
        raise ValueError(f"{key!r} lies in {_short(chunk.file)}, which is not a file of tensors of this checkpoint")
    dimensions = len(tensor.shape)
    for name, value in (("offset", chunk.offset), ("shape", chunk.shape)):
        if not _is_shape(value) or len(value) != dimensions:
            raise ValueError(f"the {name} of a part of {key!r} is {_short(value)}")
    if dimensions and (any(chunk.offset[1:]) or chunk.shape[1:] != tensor.shape[1:]):
        raise ValueError(f"a part of {key!r} has {_short(chunk.shape)} at {_short(chunk.offset)}, not whole rows")
    if dimensions and chunk.offset[0] + chunk.shape[0] > tensor.shape[0]:
        raise ValueError(f"a part of {key!r} ends behind its {tensor.shape[0]} rows")
    if not _is_count(chunk.start):
        raise ValueError(f"the start of a part of {key!r} is {_short(chunk.start)}")
    if chunk.start + math.prod(chunk.shape) * tensor.itemsize > files[chunk.file].size:
        raise ValueError(f"a part of {key!r} ends behind the {files[chunk.file].size} bytes of {chunk.file}")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0  # True is no number here


def _is_shape(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(_is_count, value))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
