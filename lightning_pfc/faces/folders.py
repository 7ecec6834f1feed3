"""A folder of photos to a folder of aligned faces, and what became of each photo."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from lightning_pfc.data.entries import files_below
from lightning_pfc.data.errors import reading
from lightning_pfc.data.formats.folder import IMAGE_SUFFIXES, Paths, read_image_file
from lightning_pfc.faces.contact_sheet import write_contact_sheet
from lightning_pfc.faces.cutting import AlignedFace, FaceCutter
from lightning_pfc.storage.enclosure import Enclosure
from lightning_pfc.storage.journal import Journal
from lightning_pfc.storage.whole_files import sha256, write_whole

_KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".png": "PNG"}


@dataclass(frozen=True)
class AlignReport:
    """What became of a folder of photos.

    Attributes:
        photos: How many there are.
        faces: How many aligned pictures lie in the target.
        several: How many photos show more than one face.
        rejects: Path and reason of each photo that gave none.
        table: The list of all photos: path, how many faces were found, what was written or why nothing.
        sheet: The contact sheet of what was rejected; None where nothing was.
    """

    photos: int
    faces: int
    several: int
    rejects: list[tuple[str, str]]
    table: Path
    sheet: Path | None


def align_photos(
    root: str | os.PathLike[str],
    target: str | os.PathLike[str],
    cutter: FaceCutter,
    *,
    detector_file: str | os.PathLike[str] = "",
    quality: int = 95,
    allow: Paths = (),
    progress: bool = True,
) -> AlignReport:
    """Find and align the faces of all photos below a folder; the same call again goes on where one was interrupted.

    A face has the path of its photo below ``target``, and is a JPEG if that is one, else PNG. Of several faces (with
    ``faces="all"``) the second is ``NAME.face1.jpg``, and so on. Beside the target lie ``TARGET.photos.tsv`` and, where
    photos were rejected, ``TARGET.rejected.png``.

    Args:
        root: Folder of photos, at any depth.
        target: Folder to write to.
        cutter: Finds and aligns.
        detector_file: Of the cutter; its digest is kept, so that faces of two detectors are not mixed unseen.
        quality: Of JPEG, 1 to 100.
        allow: Folders besides ``root`` that links in it may lead into.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: ``root`` is not a folder, or holds no picture.
        ValueError: an argument is out of range, or the target was begun with other options.
        OSError: nothing can be written.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"quality={quality} must be 1 to 100")
    if not Path(root).is_dir():
        raise FileNotFoundError(f"no such folder: {root}")
    inside = Enclosure(root, allow)
    with reading(root, "a folder of photos"):
        paths = list(files_below(inside, "", IMAGE_SUFFIXES))
    if not paths:
        raise FileNotFoundError(f"no picture lies below {root}")
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    job = {
        "photos": os.path.abspath(root),
        "detector": sha256(detector_file) if detector_file else "",
        "size": cutter.size,
        "faces": cutter.faces,
        "quality": quality,
    }
    with Journal(target.with_name(target.name + ".photos.tsv"), job) as journal:
        known = {line[0]: line for line in journal.lines if len(line) == 3}
        photos = tqdm(paths, unit=" photos", disable=not progress)
        found = dict(_aligned(photos, known, inside, target, cutter, quality, journal))
    rejects = [(path, reason) for path, (_, reason) in found.items() if reason]
    sheet = write_contact_sheet(target.with_name(target.name + ".rejected.png"), inside, rejects) if rejects else None
    counts = [count for count, reason in found.values() if not reason]
    return AlignReport(
        photos=len(found),
        faces=sum(counts) if cutter.faces == "all" else len(counts),
        several=sum(count > 1 for count in counts),
        rejects=rejects,
        table=journal.path,
        sheet=sheet,
    )


def _aligned(
    paths: tqdm[str],
    known: dict[str, list[str]],
    inside: Enclosure,
    target: Path,
    cutter: FaceCutter,
    quality: int,
    journal: Journal,
) -> Iterator[tuple[str, tuple[int, str]]]:
    """Of each photo: how many faces it shows, and "" or why it was rejected."""
    for path in paths:
        if (line := known.get(path)) and line[1].isdigit():
            yield path, (int(line[1]), line[2])
            continue
        count, reason = 0, ""
        try:
            where = os.path.join(inside.root, path)
            faces = cutter.photo(read_image_file(path, inside=inside), where=where)
            count = faces[0].others + 1
        except ValueError as error:  # no picture, or no face in it
            reason = _without_place(str(error), where)
        else:
            for number, face in enumerate(faces):
                _write(target / path, number, face, quality)
        journal.add((path, str(count), reason))
        journal.flush()
        yield path, (count, reason)


def _write(path: Path, number: int, face: AlignedFace, quality: int) -> None:
    kind = _KINDS.get(path.suffix.lower())
    name = path.name if kind else f"{path.name}.png"  # a.gif and a.bmp may lie side by side
    if number:
        name = f"{Path(name).stem}.face{number}{Path(name).suffix}"
    options = {"quality": quality, "subsampling": 0} if kind == "JPEG" else {}
    with write_whole(path.with_name(name)) as file:
        Image.fromarray(face.pixels).save(file, kind or "PNG", **options)


def _without_place(message: str, place: str) -> str:
    return message.removeprefix(place).lstrip(": ")
