"""Names of files and folders for images and identities."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.formats.base import EncodedImages

MAX_NAMED = 2_000_000  # images; beyond it names are numbers, so that no set of all names is held
_ANY_BYTES = ("folder", "webdataset")  # formats that hold names which are no UTF-8
_ENDS = {"recordio": "\n\r", "list": "\n\r\t"}  # what ends a name in the files that have a line for each
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


def written_otherwise(identities: npt.NDArray[Any], format: str) -> dict[int, str]:
    """The names that ``recordio`` and ``list`` cannot hold in their lines, as they are written instead.

    What ends a name is written ``%XX``; in a list also white space at either end, which readers take off.

    Args:
        identities: ``(C,)`` numbers or text.
        format: that is written.

    Returns:
        The names by position in ``identities``.

    Raises:
        ValueError: two identities would have one name, or a name is no UTF-8 and the format holds nothing else.
    """
    if identities.dtype.kind in "iu":
        return {}
    found: dict[int, str] = {}
    for place, name in enumerate(map(str, identities.tolist())):
        if format not in _ANY_BYTES and any("\ud800" <= sign <= "\udfff" for sign in name):
            raise ValueError(f"the identity {name!r} is no UTF-8, which {format} needs; rename it.")
        if (text := _in_line(name, format)) != name:
            found[place] = text
    known = set(map(str, identities.tolist())) if found else set()
    for place, text in found.items():
        if text in known:
            raise ValueError(
                f"the identity {str(identities[place])!r} would be written as {text!r}, the name of another; rename "
                "one, or convert to parquet or webdataset, which hold any text."
            )
        known.add(text)
    return found


def _in_line(name: str, format: str) -> str:
    start, stop = 0, len(name)
    if format == "list":
        start, stop = stop - len(name.lstrip()), len(name.rstrip())
    signs = ((sign, sign in _ENDS.get(format, "") or not start <= place < stop) for place, sign in enumerate(name))
    return "".join(f"%{ord(sign):02X}" if special else sign for sign, special in signs)


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
