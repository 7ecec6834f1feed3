"""The ``.bin`` verification files of the field (lfw, cfp_fp, agedb_30, ...): pairs of encoded images in one pickle."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lightning_pfc.data.errors import FormatError, reading
from lightning_pfc.evaluation.pairs import IndexedPairs
from lightning_pfc.evaluation.pickled import ByteArray, read_pickled
from lightning_pfc.metrics.functional import fold_of_pair
from lightning_pfc.storage.pickles import Span
from lightning_pfc.storage.positioned import PositionedFile
from lightning_pfc.storage.whole_files import write_whole


class BinImages:
    """The images of a ``.bin`` file, read where they lie; safe in forked and spawned workers.

    Attributes:
        source: The file.
        same: Whether images ``2 i`` and ``2 i + 1`` show one identity, shape (P,), bool.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a file and check all of it but the pixels.

        Args:
            path: The file.

        Raises:
            FileNotFoundError: When it is not there.
            FormatError: When it is not such a file (names the byte); nothing in it is ever run.
        """
        self.source = str(path)
        if not Path(path).exists():
            raise FileNotFoundError(f"no such verification file: {self.source}")
        with reading(path, "a verification file"):
            self._open(PositionedFile(path))

    def _open(self, file: PositionedFile) -> None:
        self._file = file
        if not file.size:
            raise self._error("the file is empty")
        content = read_pickled(file, self.source)
        images, flags = self._two_lists(content)
        self.same = self._flags(flags)
        if len(images) != 2 * len(self.same):
            raise self._error(f"{len(images)} images for {len(self.same)} pairs; there must be two for each")
        if not len(self.same):
            raise self._error("there is no pair in it")
        self._places: npt.NDArray[np.int64] = np.zeros((len(images), 2), dtype=np.int64)
        self._copies: dict[int, bytes] = {}
        for row, image in enumerate(images):
            self._place(row, image)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """One class per image: the file names no identities."""
        return np.arange(len(self), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> bytes:
        """The encoded bytes of an image.

        Raises:
            IndexError: When there is no such image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}, but {self.source} holds {len(self)} images (0 to {len(self) - 1}).")
        if index in self._copies:
            return self._copies[index]
        start, stop = self._places[index].tolist()
        with reading(self.source, "a verification file"):
            return self._file.read(start, stop)

    def locate(self, index: int) -> str:
        """Where an image lies, for messages."""
        return f"{self.source}, image {index} (pair {index // 2})"

    def pairs(self) -> IndexedPairs:
        """The pairs, as positions of images, with ten contiguous folds (none if there are fewer than ten pairs)."""
        count = len(self.same)
        first = torch.arange(count) * 2
        fold = fold_of_pair(count) if count >= 10 else torch.full((count,), -1)
        return IndexedPairs(first, first + 1, torch.from_numpy(self.same), fold)

    def _error(self, reason: str) -> FormatError:
        return FormatError(f"not a verification file: {reason}", path=self.source)

    def _two_lists(self, content: Any) -> tuple[list[Any] | tuple[Any, ...], Any]:
        if not isinstance(content, (tuple, list)) or len(content) != 2:
            raise self._error("expected a pair (images, same), which is what `pfc-data make-bin` writes")
        images, flags = content
        if not isinstance(images, (list, tuple)):
            raise self._error(f"the images are a {type(images).__name__}, not a list")
        return images, flags

    def _flags(self, flags: Any) -> npt.NDArray[np.bool_]:
        if isinstance(flags, ByteArray) and len(flags.shape) == 1:
            raw = flags.data if isinstance(flags.data, bytes) else self._file.read(flags.data.start, flags.data.stop)
            values: Sequence[Any] = list(raw)
        elif isinstance(flags, (list, tuple)):
            values = flags
        else:
            raise self._error(f"same is a {type(flags).__name__}, not a list")
        for pair, value in enumerate(values):
            if not isinstance(value, int) or value not in (0, 1):
                raise self._error(f"same[{pair}] is neither true nor false")
        return np.array(values, dtype=bool)

    def _place(self, row: int, image: Any) -> None:
        if isinstance(image, ByteArray):
            image = image.data
        if isinstance(image, Span):
            self._places[row] = (image.start, image.stop)
        elif isinstance(image, bytes):
            self._copies[row] = image
            self._places[row] = (0, len(image))
        else:
            raise self._error(f"image {row} is a {type(image).__name__}, not bytes")
        if self._places[row, 0] == self._places[row, 1]:
            raise self._error(f"image {row} has no bytes")


def write_bin(path: str | os.PathLike[str], images: Sequence[bytes], same: Sequence[bool]) -> None:
    """Write a ``.bin`` verification file, readable by InsightFace and its relatives; whole or not at all.

    Args:
        path: File to write.
        images: Encoded images (JPEG, PNG); pair i is ``images[2 i]`` and ``images[2 i + 1]``.
        same: Whether a pair shows one identity.

    Raises:
        ValueError: When there are not two images for each pair, no pair, or an empty image.
    """
    if not len(same) or len(images) != 2 * len(same):
        raise ValueError(f"images has {len(images)} entries for {len(same)} pairs; give two for each of at least one")
    if any(not image for image in images):
        raise ValueError("images holds one without bytes")
    with write_whole(path) as file:
        # Protocol 4: what Python 3.4 and everything since reads, with 64-bit lengths.
        pickle.dump(([bytes(image) for image in images], [bool(flag) for flag in same]), file, protocol=4)
