"""A text file that lists images and their identities: ``.lst`` of im2rec, TSV, CSV, or ``path label`` lines."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from typing_extensions import override

from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.formats.base import EncodedImages, contiguous_labels
from lightning_pfc.data.formats.folder import read_image_file

PATH_NAMES = ("path", "image", "file", "filename", "image_path", "file_name")
LABEL_NAMES = ("label", "identity", "id", "class", "name", "person", "target")
MAX_LIST = 16 << 30  # bytes
MAX_LINE = 1 << 16  # bytes


class ListImages(EncodedImages):
    """Images named in a text file, one a line.

    Understood, by suffix: ``.csv`` (commas, quotes as in RFC 4180), ``.tsv`` and ``.lst`` (tabs), anything else (tabs
    if the line has one, otherwise the last space separates path and label). A first line that names its columns
    (``path,label`` or the like) may give them in any order, among others. Without one: ``path label``, or im2rec's
    ``index label path`` in a ``.lst`` (of several labels the first counts). Identities that are whole numbers
    throughout are numbers, otherwise text. Empty lines are passed over, and in files that are not ``.csv`` also lines
    that begin with ``#``.

    Args:
        path: the list.
        root: folder that relative paths start from; by default the one the list lies in.
        columns: names of the path and the label column, if the first line names them otherwise.

    Raises:
        FileNotFoundError: ``path`` is not a file.
        FormatError: a line has not the fields it needs (names file and byte), or there is no image.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        columns: tuple[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.source = str(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no such file: {self.path}")
        self.root = Path(root) if root is not None else self.path.parent
        paths: list[bytes] = []
        identities: list[str] = []
        offsets: list[int] = []
        for offset, image, identity in _entries(self.path, columns):
            paths.append(os.fsencode(image))
            identities.append(identity)
            offsets.append(offset)
        if not paths:
            raise FormatError("the list names no image", path=path, offset=0)
        self._paths = _join(paths)
        self._offsets = np.array(offsets, dtype=np.int64)
        self.labels, self.identities = contiguous_labels(_as_numbers(identities))

    @override
    def read(self, index: int) -> bytes:
        index = self._check_index(index)
        try:
            return read_image_file(self._path(index))
        except FormatError as error:
            raise FormatError(f"listed at byte {self._offsets[index]} of {self.path}: {error}") from error

    @override
    def locate(self, index: int) -> str:
        return f"{self._path(index)} (listed at byte {self._offsets[index]} of {self.path})"

    @override
    def name(self, index: int) -> str:
        stem = os.path.splitext(self._relative(index))[0].replace(os.sep, "/")
        parts = [part for part in stem.split("/") if part not in ("", ".", "..")]
        return "/".join(parts)

    def _relative(self, index: int) -> str:
        blob, ends = self._paths
        start = int(ends[index - 1]) if index else 0
        return os.fsdecode(blob[start : int(ends[index])])

    def _path(self, index: int) -> str:
        return os.path.join(self.root, self._relative(index))


def _join(paths: list[bytes]) -> tuple[bytes, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """One block of bytes and where each path ends: paths of any length without padding, shared by forked workers."""
    return b"".join(paths), np.cumsum([len(path) for path in paths], dtype=np.int64)


def _as_numbers(identities: list[str]) -> list[str] | np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Whole numbers as such, when all of them are and none would change its text (``007`` stays text)."""
    if all(_is_number(identity) for identity in identities):
        return np.array(
            [int(float(identity)) if "." in identity else int(identity) for identity in identities], dtype=np.int64
        )
    return identities


def _is_number(text: str) -> bool:
    # im2rec writes whole labels as 3.000000.
    head, dot, tail = text.partition(".")
    if not (head.isascii() and head.isdigit()) or len(head) > 15 or (dot and tail.strip("0")):
        return False
    return head == "0" or head[0] != "0"


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """``(byte offset, text)`` of each line, without its end.

    Raises:
        FormatError: a line is too long, is not UTF-8, or holds a zero byte.
    """
    offset = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise FormatError(
                    f"a line is longer than {MAX_LINE} bytes; this is no list of images", path=path, offset=offset
                )
            if b"\0" in line:
                raise FormatError("a line holds a zero byte; this is no list of images", path=path, offset=offset)
            try:
                text = line.decode("utf-8-sig" if offset == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise FormatError(f"not UTF-8: {error.reason}", path=path, offset=offset + error.start) from error
            yield offset, text.rstrip("\r\n")
            offset += len(line)


def _entries(path: Path, columns: tuple[str, str] | None) -> Iterator[tuple[int, str, str]]:
    suffix = path.suffix.lower()
    places: tuple[int, int] | None = None
    first = True
    for offset, line in text_lines(path):
        if not line.strip() or (suffix != ".csv" and line.startswith("#")):
            continue
        fields = _split(line, suffix, path, offset)
        if first:
            first = False
            places = _header(fields, columns, path, offset)
            if places is not None:
                continue
        image, identity = _pick(fields, places, suffix, path, offset)
        yield offset, image, identity


def _split(line: str, suffix: str, path: Path, offset: int) -> list[str]:
    if suffix == ".csv":
        try:
            rows = list(csv.reader(io.StringIO(line), strict=True))
        except csv.Error as error:
            raise FormatError(f"not a line of CSV: {error}", path=path, offset=offset) from error
        fields = rows[0] if rows else []
    elif suffix in (".tsv", ".lst") or "\t" in line:
        fields = line.split("\t")
    else:
        fields = line.rsplit(None, 1)
    return [field.strip() for field in fields]


def _header(fields: list[str], columns: tuple[str, str] | None, path: Path, offset: int) -> tuple[int, int] | None:
    """Places of path and label if these fields name the columns, otherwise ``None``."""
    lower = [field.lower() for field in fields]
    if columns is not None:
        missing = [name for name in columns if name not in fields]
        if missing:
            raise FormatError(f"columns is {columns}, but the first line names {fields}", path=path, offset=offset)
        return fields.index(columns[0]), fields.index(columns[1])
    image = next((lower.index(name) for name in PATH_NAMES if name in lower), None)
    label = next((lower.index(name) for name in LABEL_NAMES if name in lower), None)
    return None if image is None or label is None else (image, label)


def _pick(fields: list[str], places: tuple[int, int] | None, suffix: str, path: Path, offset: int) -> tuple[str, str]:
    if places is None:
        if suffix == ".lst" and len(fields) >= 3:
            places = (len(fields) - 1, 1)
        elif len(fields) == 2 and suffix != ".lst":
            places = (0, 1)
        else:
            wanted = "`index<tab>label<tab>path`" if suffix == ".lst" else "`path` and `label`"
            raise FormatError(
                f"expected {wanted}, found {len(fields)} fields: {fields[:4]!r}", path=path, offset=offset
            )
    if max(places) >= len(fields):
        raise FormatError(
            f"the line has {len(fields)} fields, but the columns need {max(places) + 1}", path=path, offset=offset
        )
    image, identity = fields[places[0]], fields[places[1]]
    if not image or not identity:
        raise FormatError(f"the {'path' if not image else 'label'} is empty", path=path, offset=offset)
    return image, identity
