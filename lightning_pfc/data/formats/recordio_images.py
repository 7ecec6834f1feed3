"""Labelled images in RecordIO: InsightFace's layout with a header record, and the flat one of im2rec."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from lightning_pfc.checked import checked
from lightning_pfc.data.errors import FormatError, reading
from lightning_pfc.data.formats.base import EncodedImages, contiguous_labels
from lightning_pfc.data.formats.label_values import refuse_no_identity
from lightning_pfc.data.formats.patterns import Paths
from lightning_pfc.data.formats.recordio import FLOAT32_EXACT, MAX_RECORD, RecordFile
from lightning_pfc.data.formats.recordio_headers import HeaderTable, read_headers
from lightning_pfc.data.formats.recordio_index import MAX_INDEX, read_index
from lightning_pfc.data.formats.texts import text_array
from lightning_pfc.storage.enclosure import Enclosure, as_paths

FULL_SCAN = 1 << 20  # up to this many images every header is read: seconds at most, and nothing is taken on trust


@checked
class RecordIOImages(EncodedImages):
    """A ``.rec`` file of labelled images, told apart by what stands at key 0.

    InsightFace's layout: key 0 is a header record without an image, flag 2, labels ``[id_start, id_end]``; images
    have the keys ``1 ... id_start - 1``; identity records follow, whose two labels are the range of their images'
    keys. Any other file is flat, as im2rec and shuffled files are: every key is an image.

    Integers from 2^24 on do not survive as float32, and all labels of the format are float32. Where the header's
    ``id_start`` is that large it is taken from the record's exact ``id`` (as ``RecordWriter`` stores it) or, in files
    of other writers, found as the first record without an image near the rounded value. Rounded identity ranges are
    not used: the image records themselves are read. A class number that large counts only if ``id2`` holds the exact
    one.

    A file ``NAME.names.txt`` beside ``NAME.rec`` (``pfc-data convert`` writes it where identities are text) holds the
    name of identity k in line k.

    Args:
        path: the ``.rec`` file, or a folder that holds ``train.rec``.
        index: the ``.idx`` file; by default the one beside it. If there is none, the records are found by walking over
            the file and numbered in its order.
        trust_ranges: with more than a million images, take labels from the identity records and look only at the first
            and the last image of each identity, instead of at the header of every image.
        max_record: bytes; larger records are refused.
        allow: further folders that links beside the file may lead into.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: the file does not hold what the format promises; names file and offset.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        index: str | os.PathLike[str] | None = None,
        trust_ranges: bool = True,
        max_record: int = MAX_RECORD,
        allow: Paths = (),
    ) -> None:
        path = Path(path)
        if path.is_dir():
            path = path / "train.rec"
        self.source = str(path)
        with reading(path, "a RecordIO file"):
            self._open(path, index, trust_ranges, max_record, _beside(path, allow))

    def _open(
        self,
        path: Path,
        index: str | os.PathLike[str] | None,
        trust_ranges: bool,
        max_record: int,
        inside: Enclosure,
    ) -> None:
        self.records = RecordFile(path, max_record=max_record)
        keys, offsets = self._read_keys(path, index, inside)
        if not len(keys):
            raise FormatError("there is not one record", path=path)
        first = self.records.read(int(offsets[0])) if keys[0] == 0 else None
        self.has_header = first is not None and first[0].flag == 2 and not first[1]
        if self.has_header:
            labels = self._open_headered(keys, offsets, trust_ranges)
        else:
            self.keys, self.offsets = keys, offsets
            labels = self._exact_labels(read_headers(self.records, offsets), offsets)
        refuse_no_identity(labels, path)
        self.labels, self.identities = contiguous_labels(labels)
        names = path.with_suffix(".names.txt")
        if names.exists():
            self.identities = _names_of(self.identities, names, inside)

    @override
    def read(self, index: int) -> bytes:
        return self.records.read(int(self.offsets[self._check_index(index)]))[1]

    @override
    def locate(self, index: int) -> str:
        return f"{self.source}, byte {int(self.offsets[index])} (key {int(self.keys[index])})"

    def _read_keys(
        self, path: Path, index: str | os.PathLike[str] | None, inside: Enclosure
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        chosen = path.with_suffix(".idx") if index is None else index
        if index is None and os.path.exists(chosen):
            inside.real(os.path.basename(chosen))
        if index is not None or os.path.exists(chosen):
            keys, known = read_index(chosen)
            self.records.warn_of_a_rest(known, chosen)
            return keys, known
        offsets = np.fromiter(self.records.scan(), np.int64)
        return np.arange(len(offsets), dtype=np.int64), offsets

    def _open_headered(
        self, keys: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64], trust_ranges: bool
    ) -> npt.NDArray[np.int64]:
        id_start = self._find_id_start(keys, offsets)
        stop = int(np.searchsorted(keys, id_start))
        self.keys, self.offsets = keys[1:stop], offsets[1:stop]
        if len(self.keys) != id_start - 1:
            raise FormatError(
                f"the header record announces the image keys 1 to {id_start - 1}, but the index lists "
                f"{len(self.keys)} of "
                "them; the index is cut off or belongs to another file",
                path=self.source,
                offset=int(offsets[0]),
            )
        if not len(self.keys):
            raise FormatError("the header record announces no image", path=self.source, offset=int(offsets[0]))
        if trust_ranges and len(self.keys) > FULL_SCAN:
            labels = self._labels_from_ranges(offsets[stop:])
            if labels is not None:
                return labels
        return self._exact_labels(read_headers(self.records, self.offsets), self.offsets)

    def _find_id_start(self, keys: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> int:
        header, _ = self.records.read(int(offsets[0]))
        stored = header.labels[0]
        if not (stored >= 1 and stored == np.floor(stored) and stored < 2.0**53):
            raise FormatError(
                f"the header record says that identities begin at key {stored}",
                path=self.source,
                offset=int(offsets[0]),
            )
        if stored < FLOAT32_EXACT:
            start = int(stored)
        elif np.float32(header.id) == stored and np.float32(header.id2) == np.float32(header.labels[1]) and header.id2:
            start = int(header.id)
        else:
            # Rounded. The true one is at most half a step away, where records change from images to bare ranges.
            step = int(np.spacing(np.float32(stored)))
            near = np.arange(*np.searchsorted(keys, [int(stored) - step, int(stored) + step + 1]))
            table = read_headers(self.records, offsets[near])
            bare = np.flatnonzero((table.flag == 2) & (table.length == 0))
            if not len(bare):
                raise FormatError(
                    f"the header record says that identities begin about key {int(stored)} (rounded to float32), "
                    "but there is "
                    "no identity record nearby",
                    path=self.source,
                    offset=int(offsets[0]),
                )
            return int(keys[near[bare[0]]])
        place = int(np.searchsorted(keys, start))
        if place < len(keys) and keys[place] == start:
            table = read_headers(self.records, offsets[place : place + 1])
            if table.flag[0] != 2 or table.length[0]:
                raise FormatError(
                    f"the header record says that identities begin at key {start}, but that record is an image",
                    path=self.source,
                    offset=int(offsets[place]),
                )
        return start

    def _labels_from_ranges(self, identity_offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """Labels by identity records, or ``None`` where these do not tell: rounded, overlapping, or contradicted."""
        table = read_headers(self.records, identity_offsets)
        if not len(table.flag) or (table.flag != 2).any() or table.length.any():
            return None
        count = len(self.keys)
        if count >= FLOAT32_EXACT:
            wide = (
                (table.id.astype(np.float32) == table.label)
                & (table.id2.astype(np.float32) == table.second)
                & (table.id2 > 0)
            )
            if not wide.all():
                return None
            start, stop = table.id.astype(np.int64), table.id2.astype(np.int64)
        else:
            start, stop = table.label.astype(np.int64), table.second.astype(np.int64)
        order = np.argsort(start, kind="stable")
        start, stop = start[order], stop[order]
        start, stop = start[stop > start], stop[stop > start]
        if not len(start) or start[0] != 1 or stop[-1] != count + 1 or (start[1:] != stop[:-1]).any():
            return None
        ends = np.stack([start - 1, stop - 2], axis=1).reshape(-1)
        labels = self._exact_labels(read_headers(self.records, self.offsets[ends]), self.offsets[ends]).reshape(-1, 2)
        if (labels[:, 0] != labels[:, 1]).any():
            return None
        return np.repeat(labels[:, 0], stop - start)

    def _exact_labels(self, table: HeaderTable, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        label = table.label.astype(np.float64)
        with np.errstate(invalid="ignore"):
            wrong = ~((label >= 0) & (label == np.floor(label)) & (label < 2.0**63))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise FormatError(
                f"the label {label[row]} is not a class number", path=self.source, offset=int(offsets[row])
            )
        exact = label.astype(np.int64)
        wide = label >= FLOAT32_EXACT
        if wide.any():
            lost = wide & (table.id2.astype(np.float32) != table.label)
            if lost.any():
                row = int(np.flatnonzero(lost)[0])
                raise FormatError(
                    f"the label {exact[row]} is stored as float32 only, which cannot tell it from its neighbours, "
                    "so classes "
                    "would be mixed up. Write the file again with exact labels (`pfc-data convert` keeps them in id2)",
                    path=self.source,
                    offset=int(offsets[row]),
                )
            exact[wide] = table.id2[wide].astype(np.int64)
        if (table.length <= 0).any():
            row = int(np.flatnonzero(table.length <= 0)[0])
            raise FormatError("the record holds a label, but no image", path=self.source, offset=int(offsets[row]))
        return exact


def _beside(path: Path, allow: Paths) -> Enclosure:
    """Where what belongs to a file may lie: in its folder, and in that which it lies in if it is a link."""
    return Enclosure(path.parent, [path.resolve().parent, *as_paths(allow)])


def _names_of(numbers: npt.NDArray[np.int64], path: Path, inside: Enclosure) -> npt.NDArray[np.str_]:
    try:
        text = inside.read(path.name, MAX_INDEX).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8: {error.reason}", path=path, offset=error.start) from error
    lines = text.split("\n")  # splitlines would also part a name at U+2028
    names = [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
    if len(names) <= int(numbers[-1]):
        raise FormatError(f"it has {len(names)} lines, but the largest class number is {int(numbers[-1])}", path=path)
    return text_array([names[number] for number in numbers.tolist()])
