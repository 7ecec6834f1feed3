"""NumPy's files, ``.npy`` and ``.npz``: plain numbers and texts, nothing evaluated, no room made for mere claims."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.errors import FormatError, reading
from lightning_pfc.data.unpack_limit import check_unpacked
from lightning_pfc.storage.positioned import PositionedFile
from lightning_pfc.storage.regular import open_file

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 1 << 16
# What numpy writes of a plain array. numpy itself reads it with Python's parser.
_HEADER = re.compile(
    rb"\{'descr': '([<>|=][biufUS]\d{1,9})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,18}L?, ?)*(?:\d{1,18}L?)?)\), ?\}\s*"
)


class Header:
    """Of an array in a file.

    Attributes:
        dtype, shape: of the array.
        fortran: whether it is stored column by column.
        start: where its numbers begin.
        num_bytes: how many bytes they have.
    """

    def __init__(self, begin: bytes, path: str | os.PathLike[str]) -> None:
        if begin[:6] != _MAGIC or len(begin) < 12:
            raise FormatError("not an array of NumPy", path=path, offset=0)
        wide = begin[6] >= 2
        length = int.from_bytes(begin[8 : 12 if wide else 10], "little")
        self.start = (12 if wide else 10) + length
        text = begin[12 if wide else 10 : self.start]
        match = _HEADER.fullmatch(text)
        if length > _MAX_HEADER or match is None:
            raise FormatError(f"not a plain array of numbers or texts: {text[:80]!r}", path=path, offset=0)
        self.dtype: np.dtype[Any] = np.dtype(match[1].decode())
        self.fortran = match[2] == b"True"
        self.shape = tuple(int(n) for n in re.findall(rb"\d+", match[3]))
        self.num_bytes = self.dtype.itemsize
        for n in self.shape:
            self.num_bytes *= n


class NpyFile:
    """The rows of a ``.npy``, read when they are asked for. Can be pickled, and read by several processes.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: it is not there.
        FormatError: it is no array of plain numbers, or is cut off.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with reading(path, "an array"):
            self.file = PositionedFile(path)
            header = Header(self.file.read(0, min(self.file.size, _MAX_HEADER + 12)), path)
        self.shape, self.dtype = header.shape, header.dtype
        self._header = header
        if header.start + header.num_bytes > self.file.size:
            raise FormatError(
                f"an array {self.dtype} {self.shape} has {header.num_bytes:,} bytes, the file {self.file.size:,}",
                path=path,
            )

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Some rows, in memory of their own."""
        if self._header.fortran or not self.shape:
            return np.asarray(self.whole()[rows])
        width = self._header.num_bytes // max(1, len(self))
        with reading(self.path, "an array"):
            if isinstance(rows, slice):
                start, stop, step = rows.indices(len(self))
                if step == 1:
                    begin = self._header.start
                    data = bytearray(self.file.read(begin + start * width, begin + max(start, stop) * width))
                    return self._rows(data, max(0, stop - start))
                rows = np.arange(start, stop, step)
            places = np.asarray(rows)
            if places.dtype == np.bool_:
                places = np.flatnonzero(places)
            if len(places) and (places.min() < -len(self) or places.max() >= len(self)):
                raise IndexError(f"row {places.max()} of {len(self)}")
            starts = (self._header.start + (places % max(1, len(self))) * width).tolist()
            return self._rows(self.file.gather(starts, width), len(starts))

    def _rows(self, data: bytearray, count: int) -> npt.NDArray[Any]:
        return _numbers(data, self.dtype).reshape(count, *self.shape[1:])

    def mapped(self) -> np.memmap[Any, Any]:
        """All of it as a read-only map."""
        order: Any = "F" if self._header.fortran else "C"
        return np.memmap(self.path, self.dtype, "r", self._header.start, self.shape, order)

    def whole(self) -> npt.NDArray[Any]:
        """All of it."""
        start = self._header.start
        with reading(self.path, "an array"):
            data = bytearray(self.file.read(start, start + self._header.num_bytes))
        return _shaped(data, self._header)


def read_npy(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """A whole ``.npy``; raises as :class:`NpyFile`."""
    return NpyFile(path).whole()


def read_npz(
    path: str | os.PathLike[str], wanted: Collection[str]
) -> tuple[dict[str, npt.NDArray[Any]], Sequence[str]]:
    """Some arrays of a ``.npz``.

    Args:
        path: the file.
        wanted: names of arrays; those that are not there are left out.

    Returns:
        The arrays by name, and the names of all that the file has.

    Raises:
        FileNotFoundError: it is not there.
        FormatError: it is damaged, an array is none of plain numbers or texts, or they would unpack to far more than
            they can.
    """
    with reading(path, "an npz file of plain arrays"), open_file(path) as file, zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        chosen = {name: info for name, info in members.items() if name in wanted}
        check_unpacked(
            sum(info.compress_size for info in chosen.values()),
            sum(info.file_size for info in chosen.values()),
            what="it",
            path=path,
        )
        found = {}
        for name, info in chosen.items():
            with archive.open(info) as member:
                found[name] = _read_member(member, info.file_size, f"{os.fspath(path)} [{name}]")
        return found, list(members)


def _read_member(member: IO[bytes], size: int, where: str) -> npt.NDArray[Any]:
    begin = member.read(12)
    length = int.from_bytes(begin[8 : 12 if begin[6:7] >= b"\x02" else 10], "little")
    if length > _MAX_HEADER:
        raise FormatError("not a plain array of numbers or texts", path=where)
    begin += member.read(max(0, length + (0 if begin[6:7] >= b"\x02" else -2)))
    header = Header(begin, where)
    if header.start + header.num_bytes > size:
        raise FormatError(
            f"an array {header.dtype} {header.shape} has {header.num_bytes:,} bytes, not {size:,}", path=where
        )
    data = bytearray(member.read(header.num_bytes))
    if len(data) != header.num_bytes:
        raise FormatError(f"the array ends after {len(data):,} of {header.num_bytes:,} bytes", path=where)
    while member.read(1 << 16):  # to its end, where the checksum is compared
        pass
    return _shaped(data, header)


def _shaped(data: bytearray, header: Header) -> npt.NDArray[Any]:
    return _numbers(data, header.dtype).reshape(header.shape, order="F" if header.fortran else "C")


def _numbers(data: bytearray, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.frombuffer(data, dtype) if data else np.zeros(0, dtype)
