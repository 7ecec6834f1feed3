"""WebDataset shards: tar files in which the parts of a sample share a name and follow each other."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from typing_extensions import override

from lightning_pfc.checked import checked
from lightning_pfc.data.entries import is_hidden, is_hidden_path
from lightning_pfc.data.errors import FormatError, reading
from lightning_pfc.data.formats.base import EncodedImages, contiguous_labels
from lightning_pfc.data.formats.label_values import refuse_no_identity
from lightning_pfc.data.formats.patterns import Paths, files_of, inside, is_pattern
from lightning_pfc.data.formats.texts import Texts
from lightning_pfc.data.parts import refuse_missing_shards, refuse_several_splits
from lightning_pfc.storage.positioned import PositionedFile

IMAGE_ENDINGS = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "img", "gif", "tif", "tiff"))
LABEL_ENDINGS = ("cls", "cls2", "index", "inx", "id", "label.txt")
MAX_IMAGE = 64 << 20  # bytes
MAX_TEXT = 1 << 20  # bytes
MAX_NAME = 1 << 12  # bytes of a name; file systems allow no more


@checked
class WebDatasetImages(EncodedImages):
    """Local shards with an image (``.jpg``, ``.png``, ...) and a label per sample.

    The label is the field ``identity`` of ``.json``, otherwise ``.cls``, otherwise the field ``label`` of ``.json``.

    The shards are indexed when they are opened and then read by position, so every sampler works and epochs are whole.
    Shards must be plain ``.tar``: a compressed one has no positions.

    Args:
        shards: a path, a pattern (``train-{000000..000123}.tar``, ``train-*.tar``), a folder of ``.tar`` files, or a
            list of these.
        label_field: the field of ``.json`` that is the label, in place of all these.
        allow: folders that links among the shards of a folder or pattern may lead into, besides their own.

    Raises:
        MissingLibraryError: braces are used and webdataset is not installed.
        FileNotFoundError: no file fits.
        FormatError: a shard is damaged, or a sample has an image, but no label, or the reverse.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        label_field: str | None = None,
        allow: Paths = (),
    ) -> None:
        listed = [shards] if isinstance(shards, (str, os.PathLike)) else list(shards)
        self.source = ", ".join(str(item) for item in listed)
        with reading(self.source, "WebDataset shards"):
            paths = [path for item in listed for path in _expand(os.fspath(item), allow)]
            if not paths:
                raise FileNotFoundError(f"no shard fits {self.source}")
            self._index([PositionedFile(path) for path in paths], label_field)

    def _index(self, shards: list[PositionedFile], label_field: str | None) -> None:
        self._shards = shards
        places: list[tuple[int, int, int]] = []
        keys: list[str] = []
        names: list[str] = []
        for number, shard in enumerate(self._shards):
            for name, offset, size, label in _samples(shard, label_field):
                places.append((number, offset, size))
                keys.append(label)
                names.append(name)
        if not places:
            raise FormatError("no sample has an image and a label", path=self.source)
        self._places = np.array(places, dtype=np.int64)
        self._names = Texts(names)
        refuse_no_identity(keys, self.source)
        numeric = all(re.fullmatch(r"0|[1-9][0-9]{0,14}", key, re.ASCII) for key in keys)
        self.labels, self.identities = contiguous_labels(np.array([int(key) for key in keys]) if numeric else keys)

    @override
    def read(self, index: int) -> bytes:
        number, offset, size = self._places[self._check_index(index)].tolist()
        shard: PositionedFile = self._shards[number]
        with reading(shard.path, "a tar"):
            return shard.read(offset, offset + size)

    @override
    def locate(self, index: int) -> str:
        number, offset, _ = self._places[index].tolist()
        return f"{self._shards[number].path}, byte {offset}"

    @override
    def name(self, index: int) -> str:
        return self._names[index]


def _expand(pattern: str, allow: Paths) -> list[str]:
    """The shards that a word of the user means. Links among those that are looked for may not lead away."""
    if os.path.isdir(pattern):
        names = [name for name in os.listdir(pattern) if name.lower().endswith(".tar") and not is_hidden(name)]
        refuse_several_splits(names, pattern, f"give a pattern, such as {os.path.join(pattern, 'train-*.tar')}")
        refuse_missing_shards(names, pattern)
        return inside(pattern, [os.path.join(pattern, name) for name in names], allow)
    return files_of(pattern, allow) if is_pattern(pattern) else [pattern]


class _Headers(io.RawIOBase):
    """What tarfile reads of a shard: headers and long names, of which none may be longer than a name can be."""

    def __init__(self, shard: PositionedFile) -> None:
        self.shard = shard
        self.place = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = offset + (0, self.place, self.shard.size)[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAX_TEXT:
            raise FormatError(f"a header of {size} bytes", path=self.shard.path, offset=self.place)
        start = min(self.place, self.shard.size)
        data = self.shard.read(start, min(start + size, self.shard.size))
        self.place = start + len(data)
        return data


def _samples(shard: PositionedFile, label_field: str | None) -> Iterator[tuple[str, int, int, str]]:
    """``(name, offset of the image, its size, label)`` of each sample."""
    current: str | None = None
    image: tuple[int, int] | None = None
    label: str | None = None
    named = False  # the label is a name, which wins over a number
    begin = 0
    for name, offset, size in _members(shard):
        folder, _, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        ending = ending.lower()
        if not stem or not ending or stem.startswith("__") or is_hidden_path(name):
            continue  # as webdataset does: hidden files and folders are no samples
        if key != current:
            if current is not None:
                yield from _sample(shard, begin, current, image, label)
            current, image, label, named, begin = key, None, None, False, offset
        if ending.rpartition(".")[2] in IMAGE_ENDINGS:
            if image is not None:
                raise FormatError(f"sample {key!r} has two images", path=shard.path, offset=offset)
            if size > MAX_IMAGE:
                raise FormatError(f"sample {key!r} has an image of {size} bytes", path=shard.path, offset=offset)
            image = (offset, size)
        elif ending == "json":
            known, counts = _json_label(shard, offset, size, label_field)
            label = known if counts or label is None else label
            named = named or counts
        elif ending in LABEL_ENDINGS and label_field is None and not named:
            label = _label(shard, offset, size)
    if current is not None:
        yield from _sample(shard, begin, current, image, label)


def _sample(
    shard: PositionedFile, begin: int, key: str, image: tuple[int, int] | None, label: str | None
) -> Iterator[tuple[str, int, int, str]]:
    if image is None or label is None:
        raise FormatError(
            f"sample {key!r} has no {'image' if image is None else 'label'}", path=shard.path, offset=begin
        )
    yield key, image[0], image[1], label


def _members(shard: PositionedFile) -> Iterator[tuple[str, int, int]]:
    """``(name, offset, size)`` of the plain files of a tar."""
    offset = 0
    try:
        with tarfile.open(fileobj=cast("Any", _Headers(shard)), mode="r:") as archive:
            for member in archive:
                offset = member.offset
                if len(member.name) > MAX_NAME:
                    raise FormatError(f"a name of {len(member.name)} letters", path=shard.path, offset=offset)
                if member.isreg() and not member.issparse():
                    if member.size < 0 or member.offset_data + member.size > shard.size:
                        raise FormatError(
                            f"{member.name!r} reaches beyond the end of the file", path=shard.path, offset=offset
                        )
                    yield member.name.removeprefix("./"), member.offset_data, member.size
                archive.members = []  # type: ignore[attr-defined]  # the archive would remember every member
            end = archive.offset
    except FormatError:
        raise
    except Exception as error:  # tarfile raises many kinds
        raise FormatError(f"not a whole, uncompressed tar: {error}", path=shard.path, offset=offset) from error
    # tarfile takes a damaged header in the middle for the end.
    if any(shard.read(min(end, shard.size), min(end + 512, shard.size))):
        raise FormatError("the tar ends in the middle: this is no header", path=shard.path, offset=end)


def _text(shard: PositionedFile, offset: int, size: int) -> str:
    if size > MAX_TEXT:
        raise FormatError(f"a label of {size} bytes", path=shard.path, offset=offset)
    try:
        return shard.read(offset, offset + size).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"the label cannot be read: {error}", path=shard.path, offset=offset) from error


def _label(shard: PositionedFile, offset: int, size: int) -> str:
    text = _text(shard, offset, size).strip()
    if not text:
        raise FormatError("the label is empty", path=shard.path, offset=offset)
    return text


def _json_label(shard: PositionedFile, offset: int, size: int, field: str | None) -> tuple[str | None, bool]:
    """The label in a ``.json``, if any, and whether it wins over a ``.cls``."""
    try:
        record: Any = json.loads(_text(shard, offset, size))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the label cannot be read: {error}", path=shard.path, offset=offset) from error
    fields = ("identity", "label") if field is None else (field,)
    name = next((name for name in fields if isinstance(record, dict) and name in record), None)
    if name is None:
        return None, False
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise FormatError(f"the field {name!r} is {value!r}, not a name or number", path=shard.path, offset=offset)
    return str(value), name != "label" or field is not None
