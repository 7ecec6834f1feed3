"""A folder of photos to a folder of aligned faces, and what became of each photo."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from lightning_pfc.data.entries import files_below
from lightning_pfc.data.errors import reading
from lightning_pfc.data.formats.folder import IMAGE_SUFFIXES, read_image_file
from lightning_pfc.data.formats.patterns import Paths
from lightning_pfc.faces.contact_sheet import write_contact_sheet
from lightning_pfc.faces.cutting import AlignedFace, FaceCutter
from lightning_pfc.storage.enclosure import Enclosure
from lightning_pfc.storage.journal import Journal, mark_of
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

    A photo whose bytes are not those of the earlier call is aligned anew, and what it gave then is taken away.

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
        "quality": quality,
        **cutter.settings,
    }
    with Journal(target.with_name(target.name + ".photos.tsv"), job) as journal:
        known = {line[0]: line for line in journal.lines if len(line) in (3, 4) and line[1].isdigit()}
        found = _aligned(
            tqdm(paths, unit=" photos", disable=not progress), known, inside, target, cutter, quality, journal
        )
    rejects = [(path, reason) for path, _, reason, *_ in found if reason]
    sheet = write_contact_sheet(target.with_name(target.name + ".rejected.png"), inside, rejects) if rejects else None
    counts = [int(count) for _, count, reason, *_ in found if not reason]
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
) -> list[list[str]]:
    """A line of each photo: its path, how many faces it shows, "" or why it was rejected, and its mark.

    (Lines of versions that had no mark have three fields; they are believed.)
    """
    lines = {}
    for path in paths:
        before = known.get(path)
        data, mark, reason = _read(path, inside)
        if before and before[3:] in ([], [mark]):
            lines[path] = before
            continue
        for number in range(_written(before, cutter) if before else 0):
            (target / path).with_name(_name(path, number)).unlink(missing_ok=True)
        count = 0
        if not reason:
            count, reason = _cut(data, path, inside, target, cutter, quality)
        lines[path] = [path, str(count), reason, mark]
        journal.add(lines[path])
        journal.flush()
    if any(lines.get(path) is not line for path, line in known.items()):
        journal.rewrite([*lines.values(), *(line for path, line in known.items() if path not in lines)])
    return list(lines.values())


def _written(line: list[str], cutter: FaceCutter) -> int:
    """How many pictures a photo gave, by its line."""
    count = 0 if line[2] else int(line[1])
    return count if cutter.faces == "all" else min(count, 1)


def _read(path: str, inside: Enclosure) -> tuple[bytes, str, str]:
    """Bytes and mark of a photo, or why there are none."""
    try:
        data = read_image_file(path, inside=inside)
    except ValueError as error:
        return b"", "", _without_place(str(error), os.path.join(inside.root, path))
    return data, mark_of(data), ""


def _cut(data: bytes, path: str, inside: Enclosure, target: Path, cutter: FaceCutter, quality: int) -> tuple[int, str]:
    """Write the faces of a photo; how many it shows, or why there are none."""
    where = os.path.join(inside.root, path)
    try:
        faces = cutter.photo(data, where=where)
    except ValueError as error:  # no picture, or no face in it
        return 0, _without_place(str(error), where)
    for number, face in enumerate(faces):
        _write((target / path).with_name(_name(path, number)), face, quality)
    return faces[0].others + 1, ""


def _name(path: str, number: int) -> str:
    """Of the aligned picture of a photo's face."""
    photo = Path(path)
    name = photo.name if photo.suffix.lower() in _KINDS else f"{photo.name}.png"  # a.gif and a.bmp may lie side by side
    return f"{Path(name).stem}.face{number}{Path(name).suffix}" if number else name


def _write(path: Path, face: AlignedFace, quality: int) -> None:
    kind = _KINDS[path.suffix.lower()]
    options = {"quality": quality, "subsampling": 0} if kind == "JPEG" else {}
    with write_whole(path) as file:
        Image.fromarray(face.pixels).save(file, kind, **options)


def _without_place(message: str, place: str) -> str:
    return message.removeprefix(place).lstrip(": ")
