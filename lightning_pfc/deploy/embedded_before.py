"""What a job that embeds has done so far: rows on disk, and a line for each picture that gave them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.deploy.engines import Floats
from lightning_pfc.storage.journal import Journal, mark_of

Result = TypeVar("Result")


class DoneRows:
    """Rows on disk, and a line for each picture: its number, how many rows it gave, or why none, their width, its mark.

    Args:
        rows: the file.
        journal: with the lines.

    Raises:
        ValueError: rows are missing that lines promise.
    """

    def __init__(self, rows: Path, journal: Journal) -> None:
        self.rows, self.journal = rows, journal
        self.lines = [*journal.lines]
        self.resumed = len(self.lines)
        self.width = int(self.lines[0][3]) if self.lines else 0
        size = 4 * self.width * self.count
        if self.resumed and (not rows.is_file() or rows.stat().st_size < size):
            raise ValueError(f"{rows.parent} is damaged; take it away, and begin again")
        self._file = rows.open("ab")
        self._file.truncate(size)  # rows whose lines were not written any more

    @property
    def count(self) -> int:
        """Rows."""
        return sum(int(line[1]) for line in self.lines)

    def add(self, batch: Sequence[tuple[int, int, str, str]], rows: Floats | None) -> None:
        """Rows first: a line is a promise that its rows are there."""
        if rows is not None:
            self.width = rows.shape[1]
            self._file.write(np.ascontiguousarray(rows, np.float32).tobytes())
            self._file.flush()
        for number, count, reason, mark in batch:
            line = [str(number), str(count), reason, str(self.width), mark]
            self.lines.append(line)
            self.journal.add(line)
        self.journal.flush()

    def close(self) -> None:
        """Close the file, which stays."""
        self._file.close()

    def mapped(self) -> npt.NDArray[np.float32]:
        """The rows where they lie."""
        return np.memmap(self.rows, np.float32, "r", shape=(self.count, self.width))

    def owners(self) -> npt.NDArray[np.int64]:
        """The picture of each row."""
        return np.repeat([int(line[0]) for line in self.lines], [int(line[1]) for line in self.lines])


def keep_unchanged(journal: Journal, images: EncodedImages, batch_size: int, workers: int, progress: bool) -> None:
    """Forget the lines from the first picture on that has other bytes than when it was embedded; reads all of them."""

    def mark(number: int) -> str:
        try:
            return mark_of(images.read(number))
        except ValueError:
            return ""

    known, kept = len(journal.lines), 0
    whole = (len(line) == 5 and line[1].isdigit() and line[3].isdigit() for line in journal.lines)
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=known, unit=" pictures", desc="unchanged", disable=not progress or not known) as bar,
    ):
        for found in in_batches(pool, mark, range(known), batch_size):
            same = [next(whole) and journal.lines[kept + i][4] == one for i, one in enumerate(found)]
            kept += same.index(False) if False in same else len(same)
            bar.update(len(found))
            if False in same:
                break
    if kept < known:
        journal.rewrite(journal.lines[:kept])


def in_batches(pool: Executor, read: Callable[[int], Result], numbers: range, size: int) -> Iterator[list[Result]]:
    """What was read, a batch at a time; the next batch is read while one is in use."""
    waiting: list[Future[Result]] = []
    for start in range(0, len(numbers), size):
        reading = [pool.submit(read, number) for number in numbers[start : start + size]]
        if waiting:
            yield [future.result() for future in waiting]
        waiting = reading
    yield [future.result() for future in waiting]
