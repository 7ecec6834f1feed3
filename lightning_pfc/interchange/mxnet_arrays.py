"""The files of ``mx.nd.save``: read and written by their layout, which is that of MXNet 1.x.

A list of arrays and a list of names (or none): 64-bit 0x112, 0, the number of arrays, the arrays; the number of names,
each with its length. An array is a 32-bit mark, kind of storage, number of axes, 64-bit axes, device, type, values.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from lightning_pfc.storage.regular import check_regular

_FILE, _ARRAY, _ARRAY_OF_NUMPY = 0x112, 0xF993FAC9, 0xF993FACA
_DTYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8"}
_TORCH = {torch.float32: 0, torch.float64: 1, torch.float16: 2}
_MOST = 1 << 20  # arrays of a file, bytes of a name


class _Damaged(Exception):
    pass


def read_mxnet(path: Path) -> dict[str, Tensor]:
    """Arrays by name; ``"0"``, ``"1"``, ... where the file has no names. Values stay in the file until they are used.

    Raises:
        OSError: if it is no ordinary file.
        ValueError: if it is damaged, or no such file.
    """
    size = check_regular(path).st_size
    try:
        with path.open("rb") as file:
            return _read(path, file, size)
    except _Damaged as error:
        raise ValueError(f"{path}: it is no file of mx.nd.save, or damaged ({error}).") from error


def _read(path: Path, file: BinaryIO, size: int) -> dict[str, Tensor]:
    mark, _, count = _take(file, "<QQQ")
    if mark != _FILE or count > _MOST:
        raise _Damaged("it does not begin as one")
    arrays = [_array(path, file, size) for _ in range(count)]
    [names] = _take(file, "<Q")
    if names not in (0, count):
        raise _Damaged(f"{names} names for {count} arrays")
    found = [_name(file) for _ in range(names)] or [str(i) for i in range(count)]
    if len(set(found)) != count:
        raise _Damaged("two arrays have one name")
    return dict(zip(found, arrays, strict=True))


def _array(path: Path, file: BinaryIO, size: int) -> Tensor:
    mark, storage, axes = _take(file, "<Iii")
    if mark not in (_ARRAY, _ARRAY_OF_NUMPY) or storage not in (-1, 0) or not 0 <= axes <= 32:
        raise _Damaged("an array in it is sparse, or older than MXNet 1.0")
    shape = _take(file, f"<{axes}q")
    _, _, kind = _take(file, "<iii")
    if kind not in _DTYPES or any(n < 0 for n in shape):
        raise _Damaged("an array in it has numbers of an unknown type")
    dtype, start = np.dtype(_DTYPES[kind]), file.tell()
    length = dtype.itemsize
    for n in shape:
        length *= n
    if length > size - start:
        raise _Damaged(f"an array in it claims the shape {tuple(shape)}")
    file.seek(start + length)
    if not length:
        return torch.from_numpy(np.empty(shape, dtype))
    return torch.from_numpy(np.memmap(path, dtype, "c", start, tuple(shape)))  # copied when written to


def _name(file: BinaryIO) -> str:
    [length] = _take(file, "<Q")
    if length > _MOST:
        raise _Damaged("a name in it is too long")
    content = file.read(length)
    if len(content) != length:
        raise _Damaged("it ends early")
    return content.decode("utf-8", "replace")


def _take(file: BinaryIO, layout: str) -> tuple[int, ...]:
    content = file.read(struct.calcsize(layout))
    if len(content) != struct.calcsize(layout):
        raise _Damaged("it ends early")
    return struct.unpack(layout, content)


def write_mxnet(path: Path, arrays: Mapping[str, Tensor], *, names: bool = True) -> None:
    """Write arrays of floats as ``mx.nd.save`` does."""
    with path.open("wb") as file:
        file.write(struct.pack("<QQQ", _FILE, 0, len(arrays)))
        for array in arrays.values():
            shape = tuple(array.shape)
            file.write(struct.pack(f"<Iii{len(shape)}qiii", _ARRAY, 0, len(shape), *shape, 1, 0, _TORCH[array.dtype]))
            file.write(array.contiguous().numpy().tobytes())
        file.write(struct.pack("<Q", len(arrays) if names else 0))
        for name in arrays if names else ():
            content = name.encode()
            file.write(struct.pack("<Q", len(content)) + content)
