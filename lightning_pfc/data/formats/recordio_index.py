"""The index of a RecordIO file (``.idx``): lines ``key<tab>offset``."""

from __future__ import annotations

import os
import warnings

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.errors import FormatError, reading
from lightning_pfc.storage.regular import read_regular

MAX_INDEX = 16 << 30  # bytes


def read_index(path: str | os.PathLike[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Reads an ``.idx`` file.

    Returns:
        keys and byte offsets, ``(n,)`` int64 each, sorted by key (the file need not be).

    Raises:
        FormatError: a line is not ``key<tab>offset`` with two whole numbers, or a key occurs twice.
    """
    with reading(path, "an index of RecordIO"):
        text = read_regular(path, MAX_INDEX)
    if not text.isascii():
        raise FormatError("an index holds only digits, tabs and line ends", path=path, offset=_first_non_ascii(text))
    pairs = _numbers(text)
    if pairs is None:
        pairs = _parse_slowly(text, path)
    keys, offsets = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    if len(keys) > 1 and not (keys[1:] > keys[:-1]).all():
        order = np.argsort(keys, kind="stable")
        keys, offsets = keys[order], offsets[order]
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            raise FormatError(f"key {keys[twice[0]]} occurs more than once", path=path)
    return keys, offsets


def _first_non_ascii(text: bytes) -> int:
    return int(np.flatnonzero(np.frombuffer(text, np.uint8) > 127)[0])


def _numbers(text: bytes) -> npt.NDArray[np.int64] | None:
    """All numbers of a clean index as ``(n, 2)``, or ``None`` if it must be looked at line by line."""
    lines = text.count(b"\n") + (not text.endswith(b"\n") and bool(text))
    if text.count(b"\t") != lines or any(
        bad in text for bad in (b"-", b"+", b".", b"\n\n", b"\t\t", b"\n\t", b"\t\n", b"\0")
    ):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            flat = np.fromstring(text.decode("ascii"), dtype=np.int64, sep=" ")
        except (ValueError, DeprecationWarning):
            return None
    # A number that does not fit 64 bits is clipped by the parser.
    if len(flat) != 2 * lines or (len(flat) and (flat.max() == np.iinfo(np.int64).max or flat.min() < 0)):
        return None
    return flat.reshape(-1, 2)


def _parse_slowly(text: bytes, path: str | os.PathLike[str]) -> npt.NDArray[np.int64]:
    pairs: list[tuple[int, int]] = []
    place = 0
    for line in text.split(b"\n"):
        fields = line.split()
        if fields:
            if len(fields) != 2 or not all(field.isdigit() and len(field) < 19 for field in fields):
                raise FormatError(f"expected `key<tab>offset`, found {line[:60]!r}", path=path, offset=place)
            pairs.append((int(fields[0]), int(fields[1])))
        place += len(line) + 1
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
