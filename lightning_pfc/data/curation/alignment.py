"""Aligning faces by five points, as the pictures of all published face recognition models are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from lightning_pfc.data.errors import FormatError, missing_library, reading
from lightning_pfc.data.formats.folder import read_image_file
from lightning_pfc.data.formats.lines import text_lines
from lightning_pfc.data.formats.patterns import Paths
from lightning_pfc.data.pictures.decoding import MAX_PIXELS, decode_whole
from lightning_pfc.storage.enclosure import Enclosure
from lightning_pfc.storage.whole_files import write_whole

# Left eye, right eye (as seen), nose tip, left and right corner of the mouth in a picture of 112 x 112: the ArcFace
# template.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)

_KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF"}
_KINDS |= {".tiff": "TIFF", ".ppm": "PPM", ".gif": "GIF"}


def similarity_transform(source: npt.ArrayLike, target: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The rotation, scale and shift that bring points closest to others, in the least-squares sense (Umeyama, 1991).

    Args:
        source: ``(n, 2)`` points, n >= 2.
        target: ``(n, 2)`` where they should go.

    Returns:
        ``(2, 3)`` matrix M: ``M @ [x, y, 1]``. It never mirrors.

    Raises:
        ValueError: the shapes differ or are not ``(n, 2)``, or the points coincide or are not finite.
    """
    a, b = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 2 or len(a) < 2:
        raise ValueError(f"source and target have the shapes {a.shape} and {b.shape}; both must be (n, 2), n >= 2.")
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    # In the plane a rotation with scale is one complex factor, and the best one is a quotient of inner products.
    p, q = (a - mean_a) @ [1, 1j], (b - mean_b) @ [1, 1j]
    spread = float(np.vdot(p, p).real)
    if not np.isfinite(spread) or not np.isfinite(q).all() or spread <= 1e-12 * (1 + float(np.abs(mean_a).max()) ** 2):
        raise ValueError(f"the points {a.tolist()} coincide or are not finite, so they give no direction.")
    factor = np.vdot(p, q) / spread
    turn = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([turn, mean_b - turn @ mean_a])


def align(image: npt.NDArray[np.uint8], landmarks: npt.ArrayLike, *, size: int = 112) -> npt.NDArray[np.uint8]:
    """Cuts a face out of a picture so that its five points lie where the ArcFace template has them.

    Args:
        image: ``(H, W, 3)`` or ``(H, W)`` uint8.
        landmarks: ``(5, 2)`` x and y of the eyes, the nose tip and the corners of the mouth (left one first, as seen).
        size: edge of the result in pixels; the template grows with it.

    Returns:
        ``(size, size, 3)`` or ``(size, size)`` uint8; black where it lies outside the picture.

    Raises:
        MissingLibraryError: OpenCV is not installed.
        ValueError: the landmarks are no five different points.
    """
    cv2 = _cv2()
    points = np.asarray(landmarks, dtype=np.float64)
    if points.shape != (5, 2):
        raise ValueError(f"landmarks have the shape {points.shape}; five points (5, 2) are needed.")
    matrix = similarity_transform(points, TEMPLATE * (size / 112))
    aligned: npt.NDArray[np.uint8] = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)
    return aligned


def align_files(
    table: str | os.PathLike[str],
    root: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    size: int = 112,
    quality: int = 95,
    max_pixels: int = MAX_PIXELS,
    allow: Paths = (),
    progress: bool = True,
) -> tuple[int, list[str]]:
    """Aligns the images that a table names; goes on behind what is in ``target`` already.

    Args:
        table: lines ``path x1 y1 ... x5 y5``, with tabs, commas or spaces between. The points are those of the whole
            picture the way up that its EXIF tag says, as OpenCV reads it.
        root: the folder the paths start from.
        target: the folder to write to, under the same paths.
        size: edge of the result in pixels.
        quality: of JPEG, 1 to 100.
        max_pixels: bound of what is decoded, see :func:`~lightning_pfc.data.pictures.decoding.decode`.
        allow: folders besides ``root`` that links in it may lead into.
        progress: show a progress bar.

    Returns:
        How many images lie aligned in ``target``, and why each other one does not.

    Raises:
        FormatError: a line of the table has not the fields it needs, or a path leads out of ``target``.
        ValueError: ``size`` or ``quality`` is out of range.
    """
    if not 8 <= size <= 4096:
        raise ValueError(f"size is {size}; it is 8 to 4096 pixels.")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality}; it is 1 to 100.")
    done, failures = 0, []
    inside = Enclosure(root, allow)
    for path, points in tqdm(read_landmarks(table), unit=" images", disable=not progress):
        final = Path(target) / path
        if not final.is_file():
            try:
                data = read_image_file(path, inside=inside)
                image, whole, _ = decode_whole(data, where=str(Path(root) / path), max_pixels=max_pixels)
                share = np.array(image.shape[1::-1]) / whole[::-1]  # of a large photo that was decoded smaller
                face = Image.fromarray(align(image, points * share, size=size))
            except ValueError as error:
                failures.append(f"{path}: {error}")
                continue
            with write_whole(final) as file:
                kind = _KINDS.get(final.suffix.lower(), "PNG")
                face.save(file, kind, **({"quality": quality, "subsampling": 0} if kind == "JPEG" else {}))
        done += 1
    return done, failures


def read_landmarks(table: str | os.PathLike[str]) -> list[tuple[str, npt.NDArray[np.float64]]]:
    """Reads ``path x1 y1 ... x5 y5`` lines; a first line without numbers is passed over.

    Raises:
        FormatError: a line has not eleven fields, a coordinate is no number, or a path is absolute, has ``..`` or is
            there twice.
    """
    with reading(table, "a table of points"):
        return _read_landmarks(table)


def _read_landmarks(table: str | os.PathLike[str]) -> list[tuple[str, npt.NDArray[np.float64]]]:
    rows: list[tuple[str, npt.NDArray[np.float64]]] = []
    seen: set[str] = set()
    for number, (offset, line) in enumerate(text_lines(Path(table))):
        if not line.strip():
            continue
        separator = "\t" if "\t" in line else "," if "," in line else None
        fields = [field.strip() for field in (line.split(separator) if separator else line.rsplit(None, 10))]
        try:
            points = np.array([float(field) for field in fields[1:]])
        except ValueError:
            if number == 0:
                continue
            raise FormatError(f"a coordinate is no number: {line[:80]!r}", path=table, offset=offset) from None
        if len(points) != 10:
            message = f"expected a path and ten numbers, found {len(fields)} fields"
            raise FormatError(message, path=table, offset=offset)
        if not fields[0] or os.path.isabs(fields[0]) or ".." in Path(fields[0]).parts:
            message = f"the path {fields[0]!r} must lie below the folder of the images"
            raise FormatError(message, path=table, offset=offset)
        if os.path.normpath(fields[0]) in seen:
            message = f"{fields[0]} is listed twice; of a photo with two faces, give each a file of its own"
            raise FormatError(message, path=table, offset=offset)
        seen.add(os.path.normpath(fields[0]))
        rows.append((fields[0], points.reshape(5, 2)))
    return rows


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise missing_library("opencv-python-headless", "Aligning images") from error
    return cv2
