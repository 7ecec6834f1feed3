"""Embeddings on disk: NumPy's ``.npz``, which the protocols of ``pfc-eval`` take, or Parquet."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.errors import missing_library
from lightning_pfc.storage.whole_files import write_whole

KINDS = (".npz", ".parquet")
_ROWS = 16_384  # at a time


def write_embeddings(
    path: Path,
    rows: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    paths: Sequence[str],
    names: npt.NDArray[Any],
) -> None:
    """Write a file, whole or not at all; rows may lie on disk, and are never whole in memory.

    Args:
        path: ``.npz`` with ``emb`` (N, D) float32, ``label`` (N,) int64, ``path`` (N,) and ``names`` (C,), the name of
            each label; or ``.parquet`` with the columns ``emb``, ``label``, ``name`` and ``path``.
        rows: (N, D).
        labels: (N,).
        paths: N of them.
        names: (C,).

    Raises:
        MissingLibraryError: pyarrow is not installed.
    """
    if path.suffix.lower() == ".parquet":
        _write_parquet(path, rows, labels, paths, names)
        return
    with write_whole(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, values in (("label", labels), ("path", np.asarray(paths)), ("names", np.asarray(names))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, values, allow_pickle=False)
        with archive.open("emb.npy", "w", force_zip64=True) as entry:
            _write_rows(entry, rows)


def _write_rows(file: IO[bytes], rows: npt.NDArray[np.float32]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": rows.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for start in range(0, len(rows), _ROWS):
        file.write(np.ascontiguousarray(rows[start : start + _ROWS], "<f4").tobytes())


def _write_parquet(
    path: Path,
    rows: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    paths: Sequence[str],
    names: npt.NDArray[Any],
) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing_library("pyarrow", "A .parquet file") from error
    width = rows.shape[1]
    kind = pa.list_(pa.float32(), width)
    columns = [("emb", kind), ("label", pa.int64()), ("name", pa.string()), ("path", pa.string())]
    with write_whole(path) as file, pq.ParquetWriter(file, pa.schema(columns)) as writer:
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            flat = pa.array(np.ascontiguousarray(rows[part]).reshape(-1))
            texts = [str(names[label]) for label in labels[part]]
            arrays = [pa.FixedSizeListArray.from_arrays(flat, width), pa.array(labels[part]), texts, list(paths[part])]
            writer.write_table(pa.table(arrays, schema=pa.schema(columns)))
