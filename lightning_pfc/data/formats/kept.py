"""Pictures of a small set stay decoded: reading and decoding them anew costs a third of an epoch there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import get_worker_info

MOST_KEPT = 256 << 20  # bytes, of all loader workers of a process together

Picture = npt.NDArray[np.uint8]


class KeptPictures:
    """Memory for every picture of a table, where that is little; each process fills its own as pictures are asked for.

    Args:
        count: pictures of the table.
        shape: (H, W, C) of each.
        most: bytes beyond which none is kept.
    """

    def __init__(self, count: int, shape: tuple[int, int, int], most: int = MOST_KEPT) -> None:
        self.count, self.shape, self.most = count, shape, most
        self._pictures: Picture | None = None
        self._there: npt.NDArray[np.bool_] | None = None

    def fetch(self, index: npt.NDArray[np.int64], decode: Callable[[int, Picture], Picture]) -> Picture:
        """(b,) positions to (b, H, W, C) pictures.

        Args:
            index: which.
            decode: position and room for a picture (H, W, C), to the picture, in that room or elsewhere.
        """
        there, pictures = self._rooms()
        batch = np.empty((len(index), *self.shape), np.uint8)
        for row, place in enumerate(index.tolist()):
            room = batch[row]
            if there is not None and pictures is not None and there[place]:
                room[...] = pictures[place]
                continue
            picture = decode(place, room)
            if picture is not room:
                room[...] = picture
            if there is not None and pictures is not None:
                pictures[place] = room
                there[place] = True
        return batch

    def _rooms(self) -> tuple[npt.NDArray[np.bool_] | None, Picture | None]:
        """Made when first asked for: in the worker, then, where there are workers."""
        if self._there is None:
            worker = get_worker_info()
            size = self.count * int(np.prod(self.shape)) * (worker.num_workers if worker else 1)
            if size > self.most:
                return None, None
            self._pictures = np.empty((self.count, *self.shape), np.uint8)  # pages are taken as they are filled
            self._there = np.zeros(self.count, np.bool_)
        return self._there, self._pictures

    def __getstate__(self) -> dict[str, Any]:
        """Without the pictures: another process decodes its own."""
        return {**self.__dict__, "_pictures": None, "_there": None}
