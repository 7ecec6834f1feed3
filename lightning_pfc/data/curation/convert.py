"""Converting data sets from any format into any other: streaming, resumable, and complete when the target appears."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lightning_pfc.data.curation.names import written_otherwise
from lightning_pfc.data.curation.sinks import FolderSink, ParquetSink, RecordSink, Sink, WebDatasetSink
from lightning_pfc.data.format_names import WRITABLE
from lightning_pfc.data.formats.base import EncodedImages, places_digest
from lightning_pfc.storage.whole_files import errors_of, write_whole


def guess_target(target: str | os.PathLike[str]) -> str:
    """The format that the name of a target tells.

    Raises:
        ValueError: it tells none.
    """
    if Path(target).suffix.lower() == ".rec":
        return "recordio"
    raise ValueError(
        f"target is {os.fspath(target)!r}, which tells no format; say it (--to), one of {', '.join(WRITABLE)}."
    )


def convert(
    images: EncodedImages,
    target: str | os.PathLike[str],
    format: str,
    *,
    layout: str = "headered",
    shard_size: int = 8192,
    shuffle: int | None = None,
    progress: bool = True,
) -> Path:
    """Writes the images, byte for byte, and their identities in another format.

    Until all is written the work lies in ``TARGET.partial``; the same call again goes on where an interrupted one
    stopped. The target appears by renaming, after everything in it was written.

    Args:
        images: what to convert.
        target: a folder to be made; for ``recordio`` it may be a file ``NAME.rec`` (``NAME.idx`` comes beside it).
        format: one of ``recordio``, ``folder``, ``list`` (images and ``list.tsv``), ``parquet``, ``webdataset``,
            ``huggingface`` (parquet files that ``datasets.load_dataset`` reads).
        layout: of RecordIO: ``headered`` as InsightFace's (sorted by class), or ``flat`` as DALI wants it.
        shard_size: images per parquet file or tar.
        shuffle: seed of a random order; RecordIO must be ``flat`` for that.
        progress: show a progress bar.

    Returns:
        ``target``.

    Raises:
        ValueError: an argument has none of the values above, or the format cannot tell two identities apart.
        FileExistsError: ``target`` exists, or ``TARGET.partial`` belongs to another conversion.
        MissingLibraryError: the format's library is not installed.
        FormatError: an image cannot be read.
    """
    target = Path(target)
    if format not in WRITABLE:
        raise ValueError(f"format is {format!r}; use one of {', '.join(WRITABLE)}.")
    if layout not in ("headered", "flat"):
        raise ValueError(f"layout is {layout!r}; use 'headered' or 'flat'.")
    if shard_size < 1:
        raise ValueError(f"shard_size is {shard_size}; it is at least 1.")
    if shuffle is not None and format == "recordio" and layout == "headered":
        raise ValueError("shuffle needs layout='flat': the headered layout keeps the images of an identity together.")
    for path in (target, target.with_suffix(".idx")) if target.suffix.lower() == ".rec" else (target,):
        if path.exists():
            raise FileExistsError(f"{path} exists already. Remove it, or give another target.")
    renamed = written_otherwise(images.identities, format)
    work = target.with_name(target.name + ".partial")
    order = _order(images, format, layout, shuffle)
    _claim(work, _fingerprint(images, format, layout, shard_size, shuffle))
    sink = _sink(images, order, work, format, layout, shard_size, renamed)
    try:
        with tqdm(total=len(order), initial=sink.done, unit=" images", desc=target.name, disable=not progress) as bar:
            for position in order[sink.done :].tolist():
                data = images.read(position)
                with errors_of(work, work):
                    sink.write(data)
                bar.update()
        with errors_of(work, work):
            sink.finish()
    finally:
        with errors_of(work, work):
            sink.close()
    _publish(work, target)
    return target


def _order(images: EncodedImages, format: str, layout: str, shuffle: int | None) -> np.ndarray[Any, np.dtype[np.int64]]:
    if shuffle is not None:
        return np.random.default_rng(shuffle).permutation(len(images))
    if format == "recordio" and layout == "headered":
        return np.argsort(images.labels, kind="stable")
    return np.arange(len(images), dtype=np.int64)


def _fingerprint(
    images: EncodedImages, format: str, layout: str, shard_size: int, shuffle: int | None
) -> dict[str, Any]:
    digest = hashlib.sha256(np.ascontiguousarray(images.labels).data)
    digest.update(repr(images.identities.tolist()).encode())
    return {
        "source": images.source,
        "images": len(images),
        "labels": digest.hexdigest(),
        "places": places_digest(images),
        "format": format,
        "layout": layout,
        "shard_size": shard_size,
        "shuffle": shuffle,
    }


def _state(work: Path) -> Path:
    return work.with_name(work.name + ".json")


def _claim(work: Path, fingerprint: dict[str, Any]) -> None:
    """Makes the work folder, or takes it over from an interrupted run of the same conversion."""
    state = _state(work)
    if work.exists() or state.exists():
        try:
            known = json.loads(state.read_text())
        except (OSError, ValueError):
            known = None
        if known != fingerprint:
            raise FileExistsError(
                f"{work} was left by another conversion (other source, data or options). Remove it and "
                f"{state.name}, or give "
                "another target."
            )
    else:
        with write_whole(state, "w") as file:
            json.dump(fingerprint, file)
    work.mkdir(parents=True, exist_ok=True)


def _sink(
    images: EncodedImages,
    order: np.ndarray[Any, np.dtype[np.int64]],
    work: Path,
    format: str,
    layout: str,
    shard_size: int,
    renamed: dict[int, str],
) -> Sink:
    if format == "recordio":
        return RecordSink(images, order, work, layout=layout, renamed=renamed)
    if format in ("folder", "list"):
        return FolderSink(images, order, work, as_list=format == "list", renamed=renamed)
    kind = WebDatasetSink if format == "webdataset" else ParquetSink
    return kind(images, order, work, shard_size=shard_size)


def _publish(work: Path, target: Path) -> None:
    """Gives the finished work its name; of a ``.rec`` file the file itself comes last."""
    if target.suffix.lower() != ".rec":
        os.rename(work, target)
    else:
        for ending in (".names.txt", ".idx", ".rec"):
            file = work / f"train{ending}"
            if file.exists():
                os.replace(file, target.with_suffix(ending))
        shutil.rmtree(work)
    _state(work).unlink(missing_ok=True)
