"""From files to a gallery: what is new is embedded in batches, and what is broken is told."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.formats.folder import FolderImages, read_image_file
from lightning_pfc.deploy.errors import NoFaceError
from lightning_pfc.deploy.pictures import Pixels
from lightning_pfc.deploy.recogniser import Recogniser
from lightning_pfc.gallery.errors import GalleryError
from lightning_pfc.gallery.gallery import Gallery
from lightning_pfc.gallery.names import check_name
from lightning_pfc.gallery.previews import preview_of
from lightning_pfc.gallery.records import ModelRecord, NewPicture

BATCH = 64


class Candidate(NamedTuple):
    """A picture that is to be enrolled: the identity's name, where it came from, and its encoded bytes."""

    identity: str
    source: str
    data: bytes


class PictureFile(NamedTuple):
    """A file with a picture of an identity; ``read`` gives its bytes, or raises a FormatError."""

    identity: str
    path: Path
    read: Callable[[], bytes]

    @classmethod
    def named(cls, identity: str, path: Path) -> PictureFile:
        """One that the user names: it may be a link, and lie anywhere."""
        return cls(identity, path, lambda: read_image_file(path))

    @classmethod
    def found_in(cls, images: FolderImages) -> Iterator[PictureFile]:
        """Those of a folder of folders, out of which no link leads."""
        for i, label in enumerate(images.labels.tolist()):
            yield cls(images.identities[label], Path(images.locate(i)), functools.partial(images.read, i))


@dataclass
class EnrolReport:
    """What became of candidates: enrolled, there already, and broken ones with the reason."""

    enrolled: int = 0
    known: int = 0
    broken: list[str] = field(default_factory=list)


def model_record(recogniser: Recogniser) -> ModelRecord:
    """How a gallery knows a recogniser."""
    return ModelRecord(
        recogniser.model_id, recogniser.width, "" if recogniser.folder is None else str(recogniser.folder.resolve())
    )


def enrol_all(
    gallery: Gallery,
    recogniser: Recogniser,
    candidates: Iterable[Candidate],
    report: EnrolReport,
    previews: bool = True,
) -> Iterator[int]:
    """Enrol candidates, in batches that are whole or absent; yields how many candidates each batch took.

    Args:
        gallery: where they go.
        recogniser: what embeds them; the gallery's model.
        candidates: a generator will do.
        report: counts are added to it.
        previews: keep a small image of each.
    """
    gallery.check_model(model_record(recogniser))
    rest = (one for one in candidates if _may_be_named(one, report))
    while batch := list(islice(rest, BATCH)):
        once: dict[tuple[str, str], Candidate] = {}
        for one in batch:
            once.setdefault((one.identity, hashlib.sha256(one.data).hexdigest()), one)
        new = [(one, digest) for (name, digest), one in once.items() if not gallery.store.has(name, digest)]
        report.known += len(batch) - len(new)
        seen = [
            (one, digest, pixels) for one, digest in new if (pixels := _prepared(recogniser, one, report)) is not None
        ]
        if seen:
            rows = recogniser.embed_pixels(np.stack([pixels for _, _, pixels in seen]))
            gallery.extend(
                (one.identity, NewPicture(row, one.source, preview_of(pixels) if previews else None, digest))
                for (one, digest, pixels), row in zip(seen, rows, strict=True)
            )
            report.enrolled += len(seen)
        yield len(batch)


def read_candidate(file: PictureFile, report: EnrolReport) -> Candidate | None:
    """A candidate of a file; None for one that cannot be read, which the report then has."""
    try:
        return Candidate(file.identity, str(file.path), file.read())
    except FormatError as error:
        report.broken.append(str(error))
        return None


def _may_be_named(one: Candidate, report: EnrolReport) -> bool:
    try:
        check_name(one.identity)
    except GalleryError as error:
        report.broken.append(f"{one.source!r}: {error}")
        return False
    return True


def _prepared(recogniser: Recogniser, one: Candidate, report: EnrolReport) -> Pixels | None:
    try:
        return recogniser.prepare(one.data)
    except (FormatError, NoFaceError) as error:
        report.broken.append(f"{one.source}: {error}")
        return None
