"""Sets of images, or of embeddings made elsewhere, that a protocol works on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_pfc.data.arrays import read_npy, read_npz
from lightning_pfc.data.entries import files_below, folders_in
from lightning_pfc.data.errors import FormatError, reading
from lightning_pfc.data.formats import DecodedImages, open_images
from lightning_pfc.data.formats.patterns import Paths, is_pattern, nothing_at
from lightning_pfc.data.images import ImageTable
from lightning_pfc.data.pictures.decoding import MAX_PIXELS
from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.storage.enclosure import Enclosure
from lightning_pfc.storage.regular import read_regular

_EMBEDDING_KEYS = ("emb", "embeddings", "features")
_LABEL_KEYS = ("label", "labels", "identity")
_NAME_KEYS = ("path", "paths", "names", "name")  # of pictures; beside a path, `names` are those of the labels
_LONGEST_LIST = 1 << 30  # bytes


@dataclass(frozen=True)
class FaceSet:
    """Images or embeddings, with what is known about them.

    Attributes:
        source: Where they come from, for messages.
        images: Pictures by position; None for embeddings made elsewhere.
        embeddings: Embeddings made elsewhere, (N, D).
        labels: Identity of each, (N,) int64; None if unknown.
        names: Name of each; None if unknown.
        identities: The data's own name of each label, where it has one.
    """

    source: str
    images: ImageTable | None = None
    embeddings: Tensor | None = None
    labels: Tensor | None = None
    names: list[str] | None = None
    identities: np.ndarray[Any, Any] | None = None

    def __len__(self) -> int:
        found = self.images if self.embeddings is None else self.embeddings
        return 0 if found is None else len(found)


class EncodedFaces:
    """Encoded images as the pictures that a model was trained on.

    Args:
        encoded: With ``read(index)``, ``locate(index)`` and ``len``.
        preprocessing: How they are made; (C, H, W) cuts the middle out of what has another shape.
        max_pixels: Bound of what is decoded.
    """

    def __init__(
        self, encoded: Any, preprocessing: Preprocessing | tuple[int, int, int], *, max_pixels: int = MAX_PIXELS
    ) -> None:
        if not isinstance(preprocessing, Preprocessing):
            channels, height, width = preprocessing
            preprocessing = Preprocessing(size=(height, width), channels=channels, fit="crop")
        self.encoded = encoded
        self.table = DecodedImages(encoded, preprocessing=preprocessing, max_pixels=max_pixels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every picture."""
        return self.table.image_shape

    def __len__(self) -> int:
        return len(self.encoded)

    def fetch(self, index: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        """(b,) positions to (b, C, H, W) uint8 pictures."""
        return self.table.fetch(index)


def open_faces(
    path: str | os.PathLike[str],
    preprocessing: Preprocessing | tuple[int, int, int] | None,
    *,
    max_pixels: int = MAX_PIXELS,
    allow: Paths = (),
) -> FaceSet:
    """Open images with identities (any format of the data module) or a file or folder of embeddings.

    Embeddings are an ``.npz`` with ``emb`` (N, D) and ``label`` or ``names`` (N,), the ``.npz`` of ``pfc-embed``, or a
    folder ``IDENTITY/NAME.npy``.

    Args:
        path: File or folder.
        preprocessing: How the model's pictures are made, or the (C, H, W) that it wants; None if there is no model.
        max_pixels: Bound of what is decoded.
        allow: Folders besides the data's own that links and paths in it may lead into.

    Returns:
        The set.

    Raises:
        FileNotFoundError: When nothing lies there.
        FormatError: When it does not hold what it should.
        ValueError: When it holds images but there is no model.
    """
    path = Path(path)
    if not path.exists() and not is_pattern(path):
        raise nothing_at(path)
    if path.suffix.lower() == ".npz" and path.exists():
        return _npz(path)
    if path.is_dir() and (files := _npy_files(path, allow)):
        return _npy_folder(path, files)
    if preprocessing is None:
        raise ValueError(
            f"{path} holds images, but there is no model to embed them; choose embedder=checkpoint or onnx"
        )
    encoded = open_images(path, allow=allow)
    names = [encoded.name(i) for i in range(len(encoded))]
    faces = EncodedFaces(encoded, preprocessing, max_pixels=max_pixels)
    return FaceSet(str(path), faces, None, torch.from_numpy(encoded.labels), names, encoded.identities)


class _Some:
    """The pictures of a table at some positions."""

    def __init__(self, table: ImageTable, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        self.table, self.rows = table, rows
        self.image_shape = table.image_shape

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, index: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        """(b,) positions to (b, C, H, W) uint8 pictures."""
        return self.table.fetch(self.rows[index])


def of_identities(faces: FaceSet, path: str | os.PathLike[str]) -> FaceSet:
    """The part of a set that shows the identities of a list, a name a line, such as ``RUN/identities/test.txt``.

    A name is the data's own, of embeddings the folder in a row's name, or the label.

    Raises:
        FileNotFoundError: There is no such list.
        FormatError: It is empty or no list, or names an identity that the set has not.
    """
    with reading(path, "a list of identities, a name a line"):
        content = read_regular(path, _LONGEST_LIST)
        text = content.decode("utf-8-sig", "surrogateescape")  # some editors put a mark before the first name
    wanted = dict.fromkeys(line for line in text.replace("\r\n", "\n").split("\n") if line)
    own = _own_names(faces)
    known = set(own)
    if missing := [name for name in wanted if name not in known]:
        count = len(missing)
        raise FormatError(f"names {count} identities that {faces.source} has not, such as {missing[0]!r}", path=path)
    rows = np.flatnonzero([name in wanted for name in own])
    if not len(rows):
        raise FormatError("names no identity", path=path)
    index = torch.from_numpy(rows)
    return FaceSet(
        faces.source,
        None if faces.images is None else _Some(faces.images, rows),
        None if faces.embeddings is None else faces.embeddings[index],
        None if faces.labels is None else faces.labels[index],
        None if faces.names is None else [faces.names[row] for row in rows.tolist()],
        faces.identities,
    )


def labels_of(faces: FaceSet) -> Tensor:
    """The identity of each, (N,) int64.

    Raises:
        ValueError: The set does not say.
    """
    if faces.labels is None:
        raise ValueError(f"{faces.source} names no identities (label), which this protocol needs")
    return faces.labels


def shared_labels(gallery: FaceSet, probes: FaceSet) -> tuple[Tensor, Tensor]:
    """Labels of two sets in one numbering, by the names of their identities; what has a label below 0 keeps it."""
    one, two = _own_names(gallery) or labels_of(gallery).tolist(), _own_names(probes) or labels_of(probes).tolist()
    number = {identity: i for i, identity in enumerate(sorted({*one, *two}))}
    return _renumbered(gallery, one, number), _renumbered(probes, two, number)


def _renumbered(faces: FaceSet, own: list[str], number: dict[str, int]) -> Tensor:
    found = torch.tensor([number[name] for name in own], dtype=torch.int64)
    return found if faces.labels is None else torch.where(faces.labels < 0, faces.labels, found)


def _own_names(faces: FaceSet) -> list[str]:
    """The name of each one's identity: the data's own, the folder in its name, or its label; empty if unknown."""
    if faces.identities is not None and faces.labels is not None:
        return [str(faces.identities[label]) for label in faces.labels.tolist()]
    labels = None if faces.labels is None else [str(label) for label in faces.labels.tolist()]
    if faces.names is not None and all("/" in name for name in faces.names):
        folders = [name.rsplit("/", 1)[0] for name in faces.names]
        # A folder above those of the identities, or one of each day, is not what the labels say.
        if labels is None or len(set(zip(folders, labels, strict=True))) == len(set(folders)) == len(set(labels)):
            return folders
    return labels or []


def _npy_files(path: Path, allow: Paths) -> list[Path]:
    """``IDENTITY/NAME.npy``, each of them a regular file inside."""
    inside = Enclosure(path, allow)
    with reading(path, "a folder of embeddings"):
        files = [path / name for folder in folders_in(inside) for name in files_below(inside, folder, (".npy",))]
        for file in files:
            inside.real(str(file.relative_to(path)))
    return [file for file in files if file.parent.parent == path]


def _npz(path: Path) -> FaceSet:
    found, there = read_npz(path, (*_EMBEDDING_KEYS, *_LABEL_KEYS, *_NAME_KEYS))
    rows = next((found[key] for key in _EMBEDDING_KEYS if key in found), None)
    if rows is None or rows.ndim != 2 or rows.dtype.kind != "f":
        raise FormatError(
            f"no array {' or '.join(_EMBEDDING_KEYS)} of floats (N, D); there are {sorted(there)[:20]}", path=path
        )
    labels = next((found[key] for key in _LABEL_KEYS if key in found), None)
    named = next((key for key in _NAME_KEYS if key in found and found[key].shape == rows.shape[:1]), None)
    names = None if named is None else found[named]
    if labels is not None and (labels.shape != rows.shape[:1] or labels.dtype.kind not in "iu"):
        raise FormatError(f"labels must be {len(rows)} integers, found {labels.dtype} {labels.shape}", path=path)
    return FaceSet(
        str(path),
        embeddings=torch.from_numpy(rows.astype(np.float32)),
        labels=None if labels is None else torch.from_numpy(labels.astype(np.int64)),
        names=None if names is None else [str(name) for name in names],
        identities=None if labels is None or named == "names" else _table(found.get("names"), labels),
    )


def _table(names: np.ndarray[Any, Any] | None, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """The names of all labels, if that is what they are."""
    fits = names is not None and names.ndim == 1 and len(labels) and labels.min() >= 0 and labels.max() < len(names)
    return names if fits else None


def _npy_folder(path: Path, files: list[Path]) -> FaceSet:
    identities = sorted({file.parent.name for file in files})
    number = {name: i for i, name in enumerate(identities)}
    rows: list[np.ndarray[tuple[int], np.dtype[np.float32]]] = []
    for file in files:
        row = read_npy(file)
        if row.dtype.kind != "f" or row.size == 0 or (rows and row.size != rows[0].size):
            raise FormatError(f"not an embedding like the others: {row.dtype} {row.shape}", path=file)
        rows.append(row.reshape(-1).astype(np.float32))
    labels = torch.tensor([number[file.parent.name] for file in files])
    names = [f"{file.parent.name}/{file.stem}" for file in files]
    return FaceSet(str(path), embeddings=torch.from_numpy(np.stack(rows)), labels=labels, names=names)
