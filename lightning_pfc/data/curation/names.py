"""Names of files and folders for images and identities."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.formats.base import EncodedImages

MAX_NAMED = 2_000_000  # images; beyond it names are numbers, so that no set of all names is held
_KINDS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


def image_suffix(data: bytes) -> str:
    """The usual ending for these bytes, ``.img`` if they look like nothing known."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for magic, suffix in _KINDS if data.startswith(magic)), ".img")


def folder_names(identities: npt.NDArray[Any]) -> list[str]:
    """A folder name for each identity, in the same order when sorted.

    Numbers get leading zeros; in text, what no folder may be called is written ``%XX``.
    """
    if identities.dtype.kind in "iu":
        width = len(str(int(identities.max()))) if len(identities) else 1
        return [f"{number:0{width}d}" for number in identities.tolist()]
    return [_safe(str(name)) for name in identities.tolist()]


def _safe(name: str) -> str:
    safe = "".join(f"%{ord(sign):02X}" if sign in '/\\%\0:*?"<>|' or sign < " " else sign for sign in name)
    return f"%{ord(safe[0]):02X}{safe[1:]}" if safe.startswith(".") else safe or "%00"


def file_names(images: EncodedImages) -> list[str] | None:
    """The names that the images had, without their identity's folder; ``None`` if those are no use as names here.

    They must be short, and differ within each class when the case of letters does not count.
    """
    if len(images) > MAX_NAMED:
        return None
    names: list[str] = []
    seen: set[tuple[int, str]] = set()
    for index in range(len(images)):
        label = int(images.labels[index])
        name = images.name(index).removeprefix(f"{images.identities[label]}/")
        name = _safe(name.replace("/", "_"))
        key = (label, name.lower())
        if key in seen or len(name) > 150:
            return None
        seen.add(key)
        names.append(name)
    return names


def image_names(images: EncodedImages) -> npt.NDArray[np.str_]:
    """``CLASS/NAME`` of each image, without ending, all different."""
    folders, files = folder_names(images.identities), file_names(images)
    labels = images.labels.tolist()
    return np.array(
        [f"{folders[label]}/{files[i] if files else f'{i:09d}'}" for i, label in enumerate(labels)], dtype=np.str_
    )
