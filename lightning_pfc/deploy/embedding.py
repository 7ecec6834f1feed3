"""A data set to a file of embeddings: in batches, with a list of what could not be read, and to be interrupted."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lightning_pfc.data.formats.base import EncodedImages, places_digest
from lightning_pfc.deploy.embedded_before import DoneRows, in_batches, keep_unchanged
from lightning_pfc.deploy.embedded_files import KINDS, write_embeddings
from lightning_pfc.deploy.embedders import PictureEmbedder
from lightning_pfc.deploy.errors import ExportError
from lightning_pfc.deploy.pictures import Pixels
from lightning_pfc.faces import FaceCutter
from lightning_pfc.storage.journal import Journal, mark_of
from lightning_pfc.storage.whole_files import sha256

_ROWS, _JOURNAL = "rows.f32", "journal.tsv"
_Read = tuple[int, list[Pixels], str, str]  # number of the picture, what it gave, or why nothing, and its mark


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

    Until then the work lies in ``TARGET.partial``; the same call goes on where an interrupted one stopped, or at the
    first picture whose bytes are not those that were embedded.

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
) -> DoneRows:
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    work.mkdir(parents=True, exist_ok=True)
    job = {
        "source": os.path.abspath(images.source),
        "pictures": len(images),
        "names": places_digest(images),
        "model": embedder.model_id,
    }
    job |= {} if cutter is None else {**cutter.settings, "detector": detector}
    with Journal(work / _JOURNAL, job) as journal:
        keep_unchanged(journal, images, batch_size, workers, progress)
        done = DoneRows(work / _ROWS, journal)
        _embed(embedder, images, done, cutter, batch_size, workers, progress)
    return done


def _embed(
    embedder: PictureEmbedder,
    images: EncodedImages,
    done: DoneRows,
    cutter: FaceCutter | None,
    batch_size: int,
    workers: int,
    progress: bool,
) -> None:
    def read(number: int) -> _Read:
        mark = ""
        try:
            data = images.read(number)
            mark = mark_of(data)
            if cutter is None:
                return number, [embedder.prepare(data)], "", mark
            return number, [embedder.prepare(face.pixels) for face in cutter.photo(data)], "", mark
        except ValueError as error:  # broken, or no face in it
            return number, [], str(error).removeprefix("image: "), mark

    start = len(done.lines)
    try:
        with (
            ThreadPoolExecutor(workers) as pool,
            tqdm(total=len(images), initial=start, unit=" pictures", disable=not progress) as bar,
        ):
            for found in in_batches(pool, read, range(start, len(images)), batch_size):
                pixels = [each for _, faces, _, _ in found for each in faces]
                rows = embedder.embed_pixels(np.stack(pixels)) if pixels else None
                done.add([(number, len(faces), reason, mark) for number, faces, reason, mark in found], rows)
                bar.update(len(found))
    finally:
        done.close()


def _finish(final: Path, work: Path, images: EncodedImages, done: DoneRows) -> EmbedReport:
    rejects = [(_path(images, int(line[0])), line[2]) for line in done.lines if line[1] == "0"]
    if not done.count:
        shutil.rmtree(work)
        raise ExportError(f"not one of the {len(images):,} pictures gave an embedding; the first: {rejects[0][1]}")
    owner, rows = done.owners(), done.mapped()
    write_embeddings(final, rows, images.labels[owner], [_path(images, i) for i in owner.tolist()], images.identities)
    table = None
    if rejects:
        table = final.with_name(f"{final.name}.rejected.tsv")
        lines = "".join(f"{path}\t{reason}\n" for path, reason in rejects)
        table.write_text(lines, encoding="utf-8", errors="surrogateescape")
    del rows
    shutil.rmtree(work)
    return EmbedReport(len(images), len(owner), rejects, done.resumed, table)


def _path(images: EncodedImages, number: int) -> str:
    place = images.locate(number)
    return os.path.relpath(place, images.source) if os.path.isdir(images.source) else place
