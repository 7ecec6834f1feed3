"""A data set to a file of embeddings: in batches, with a list of what could not be read, and to be interrupted."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.deploy.embedded_files import KINDS, write_embeddings
from lightning_pfc.deploy.embedders import PictureEmbedder
from lightning_pfc.deploy.engines import Floats
from lightning_pfc.deploy.errors import ExportError
from lightning_pfc.deploy.pictures import Pixels
from lightning_pfc.faces import FaceCutter
from lightning_pfc.storage.journal import Journal
from lightning_pfc.storage.whole_files import sha256

_ROWS, _JOURNAL = "rows.f32", "journal.tsv"
_Read = tuple[int, list[Pixels], str]  # number of the picture, what it gave, or why nothing


@dataclass(frozen=True)
class EmbedReport:
    """What became of a data set.

    Attributes:
        pictures: How many there are.
        rows: How many embeddings the file holds.
        rejects: Path and reason of each picture that gave none.
        resumed: How many pictures an interrupted run had done.
        table: List of the rejects; None where there are none.
    """

    pictures: int
    rows: int
    rejects: list[tuple[str, str]]
    resumed: int
    table: Path | None


def embed_images(
    embedder: PictureEmbedder,
    images: EncodedImages,
    target: str | os.PathLike[str],
    *,
    cutter: FaceCutter | None = None,
    detector_file: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    workers: int = 1,
    progress: bool = True,
) -> EmbedReport:
    """Embed all pictures of a data set into ``target``, which appears when all is done.

    Until then the work lies in ``TARGET.partial``; the same call goes on where an interrupted one stopped.

    Args:
        embedder: Of :func:`~lightning_pfc.deploy.embedders.open_embedder`.
        images: The data set.
        target: ``.npz`` (``emb``, ``label``, ``path``, ``names``) or ``.parquet`` (the same columns, and ``name``).
        cutter: Pictures are photos: embed the faces that it finds in them.
        detector_file: Of the cutter; its digest is kept, so that faces of two detectors are not mixed unseen.
        batch_size: Pictures in a call of the network.
        workers: Threads that read and decode.
        progress: Show a progress bar.

    Raises:
        ExportError: not one picture gave an embedding; names the first reason.
        FileExistsError: the target is there.
        ValueError: an argument is out of range, or ``TARGET.partial`` is of another job.
        OSError: nothing can be written.
    """
    final = Path(target)
    if final.suffix.lower() not in KINDS:
        raise ValueError(f"{final}: embeddings are written as {' or '.join(KINDS)}; name the file so")
    if final.exists():
        raise FileExistsError(f"{final} is there already; take it away, or give another name")
    work = final.with_name(f"{final.name}.partial")
    if detector_file is not None and cutter is None:
        raise ValueError(f"detector_file={os.fspath(detector_file)!r} is that of a cutter; give one, or leave it out")
    detector = sha256(detector_file) if detector_file is not None else ""
    done = _rows_into(work, embedder, images, cutter, batch_size, workers, progress, detector)
    return _finish(final, work, images, done)


@dataclass(frozen=True)
class EmbeddedRows:
    """Embeddings in a folder of their own.

    Attributes:
        rows: ``(n, D)`` float32, on disk.
        images: ``(n,)`` int64, the picture of each row, in rising order.
        rejects: Position and reason of each picture that gave none.
    """

    rows: npt.NDArray[np.float32]
    images: npt.NDArray[np.int64]
    rejects: list[tuple[int, str]]


def embed_rows(
    embedder: PictureEmbedder,
    images: EncodedImages,
    work: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    workers: int = 1,
    progress: bool = True,
) -> EmbeddedRows:
    """Embed all pictures of a data set into a folder; the same call goes on where an interrupted one stopped.

    Args and errors are those of :func:`embed_images`. Memory: some bytes a picture.
    """
    folder = Path(work)
    done = _rows_into(folder, embedder, images, None, batch_size, workers, progress)
    if not done.count:
        raise ExportError(f"not one of the {len(images):,} pictures gave an embedding; the first: {done.lines[0][2]}")
    rejects = [(int(line[0]), line[2]) for line in done.lines if line[1] == "0"]
    return EmbeddedRows(done.mapped(), done.owners(), rejects)


def _rows_into(
    work: Path,
    embedder: PictureEmbedder,
    images: EncodedImages,
    cutter: FaceCutter | None,
    batch_size: int,
    workers: int,
    progress: bool,
    detector: str = "",
) -> _Done:
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    work.mkdir(parents=True, exist_ok=True)
    job = {
        "source": os.path.abspath(images.source),
        "pictures": len(images),
        "names": _names_digest(images),
        "model": embedder.model_id,
    }
    job |= {} if cutter is None else {"faces": cutter.faces, "size": cutter.size, "detector": detector}
    with Journal(work / _JOURNAL, job) as journal:
        done = _Done(work / _ROWS, journal)
        _embed(embedder, images, done, cutter, batch_size, workers, progress)
    return done


class _Done:
    """Rows on disk, and a line for each picture: its number, how many rows it gave, or why none."""

    def __init__(self, rows: Path, journal: Journal) -> None:
        self.rows, self.journal = rows, journal
        self.width = 0
        self.lines = [line for line in journal.lines if len(line) == 4 and line[0].isdigit() and line[1].isdigit()]
        self.resumed = len(self.lines)
        if self.lines:
            self.width = int(self.lines[0][3])
        size = 4 * self.width * self.count
        if self.resumed and (not rows.is_file() or rows.stat().st_size < size):
            raise ValueError(f"{rows.parent} is damaged; take it away, and begin again")
        self._file = rows.open("ab")
        self._file.truncate(size)  # rows whose lines were not written any more

    @property
    def count(self) -> int:
        return sum(int(line[1]) for line in self.lines)

    def add(self, batch: Sequence[tuple[int, int, str]], rows: Floats | None) -> None:
        """Rows first: a line is a promise that its rows are there."""
        if rows is not None:
            self.width = rows.shape[1]
            self._file.write(np.ascontiguousarray(rows, np.float32).tobytes())
            self._file.flush()
        for number, count, reason in batch:
            line = [str(number), str(count), reason, str(self.width)]
            self.lines.append(line)
            self.journal.add(line)
        self.journal.flush()

    def close(self) -> None:
        self._file.close()

    def mapped(self) -> npt.NDArray[np.float32]:
        """The rows where they lie."""
        return np.memmap(self.rows, np.float32, "r", shape=(self.count, self.width))

    def owners(self) -> npt.NDArray[np.int64]:
        """The picture of each row."""
        return np.repeat([int(line[0]) for line in self.lines], [int(line[1]) for line in self.lines])


def _embed(
    embedder: PictureEmbedder,
    images: EncodedImages,
    done: _Done,
    cutter: FaceCutter | None,
    batch_size: int,
    workers: int,
    progress: bool,
) -> None:
    def read(number: int) -> _Read:
        try:
            data = images.read(number)
            if cutter is None:
                return number, [embedder.prepare(data)], ""
            return number, [embedder.prepare(face.pixels) for face in cutter.photo(data)], ""
        except ValueError as error:  # broken, or no face in it
            return number, [], str(error).removeprefix("image: ")

    start = len(done.lines)
    try:
        with (
            ThreadPoolExecutor(workers) as pool,
            tqdm(total=len(images), initial=start, unit=" pictures", disable=not progress) as bar,
        ):
            for found in _batches(pool, read, range(start, len(images)), batch_size):
                pixels = [each for _, faces, _ in found for each in faces]
                rows = embedder.embed_pixels(np.stack(pixels)) if pixels else None
                done.add([(number, len(faces), reason) for number, faces, reason in found], rows)
                bar.update(len(found))
    finally:
        done.close()


def _batches(pool: Executor, read: Callable[[int], _Read], numbers: range, size: int) -> Iterator[list[_Read]]:
    """What was read, a batch at a time; the next batch is read while one is in use."""
    waiting: list[Future[_Read]] = []
    for start in range(0, len(numbers), size):
        reading = [pool.submit(read, number) for number in numbers[start : start + size]]
        if waiting:
            yield [future.result() for future in waiting]
        waiting = reading
    yield [future.result() for future in waiting]


def _finish(final: Path, work: Path, images: EncodedImages, done: _Done) -> EmbedReport:
    rejects = [(_path(images, int(line[0])), line[2]) for line in done.lines if line[1] == "0"]
    if not done.count:
        shutil.rmtree(work)
        raise ExportError(f"not one of the {len(images):,} pictures gave an embedding; the first: {rejects[0][1]}")
    owner, rows = done.owners(), done.mapped()
    write_embeddings(final, rows, images.labels[owner], [_path(images, i) for i in owner.tolist()], images.identities)
    table = None
    if rejects:
        table = final.with_name(f"{final.name}.rejected.tsv")
        table.write_text("".join(f"{path}\t{reason}\n" for path, reason in rejects), encoding="utf-8")
    del rows
    shutil.rmtree(work)
    return EmbedReport(len(images), len(owner), rejects, done.resumed, table)


def _names_digest(images: EncodedImages) -> str:
    """Of where each picture lies, in order: with one more and one less, as many would get the rows of others."""
    digest = hashlib.sha256(images.labels.tobytes())
    for number in range(len(images)):
        digest.update(images.locate(number).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _path(images: EncodedImages, number: int) -> str:
    place = images.locate(number)
    return os.path.relpath(place, images.source) if os.path.isdir(images.source) else place
