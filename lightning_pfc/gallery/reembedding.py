"""New vectors for a gallery from another model, while the old ones serve."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.formats.folder import read_image_file
from lightning_pfc.deploy.errors import NoFaceError
from lightning_pfc.deploy.pictures import Pixels, prepare
from lightning_pfc.deploy.recogniser import Recogniser
from lightning_pfc.gallery.enrolling import BATCH, model_record
from lightning_pfc.gallery.gallery import Gallery
from lightning_pfc.gallery.store import Pending


def reembed(
    gallery: Gallery,
    recogniser: Recogniser,
    folder: Path | None,
    from_previews: bool,
    missing: list[str],
    other_bytes: bool = False,
) -> Iterator[int]:
    """Embed every picture that the next model has not seen; yields how many each batch took.

    Args:
        gallery: to be moved; begun and not finished before, it goes on.
        recogniser: the next model.
        folder: where the pictures lie; their own paths are not followed otherwise.
        from_previews: use the small image of a picture that is not there.
        missing: gets a line for each picture that could not be read.
        other_bytes: take a file by its name alone; else one with other bytes than were enrolled is not the picture.
    """
    store = gallery.store
    model = model_record(recogniser)
    store.begin_next(model)
    last = 0
    while waiting := store.pending(last, BATCH):
        last = waiting[-1].picture
        read: list[tuple[int, Pixels]] = []
        for one in waiting:
            with _told(one, missing):
                read.append((one.picture, _pixels(one, recogniser, folder, from_previews, other_bytes)))
        if read:
            rows = recogniser.embed_pixels(np.stack([pixels for _, pixels in read]))
            store.put_next(model, [(picture, row) for (picture, _), row in zip(read, rows, strict=True)])
        yield len(waiting)


@contextlib.contextmanager
def _told(one: Pending, missing: list[str]) -> Iterator[None]:
    try:
        yield
    except (FormatError, NoFaceError) as error:
        missing.append(f"picture {one.picture} of {one.identity}: {error}")


def _pixels(
    one: Pending, recogniser: Recogniser, folder: Path | None, from_previews: bool, other_bytes: bool
) -> Pixels:
    """What the network sees of it.

    Raises:
        FormatError: it is nowhere.
        NoFaceError: it is a photo without a face.
    """
    files = [] if folder is None else list(_below(folder, one.source))
    for path in files:
        data = read_image_file(path)
        if other_bytes or hashlib.sha256(data).hexdigest() == one.digest:
            return recogniser.prepare(data)
    if from_previews and one.preview is not None:  # of a photo it is the face that was found in it
        return prepare(one.preview, recogniser.description.preprocessing, max_pixels=recogniser.max_pixels)
    if files:
        raise FormatError("has other bytes than the picture that was enrolled; --other-bytes takes it", path=files[0])
    raise FormatError(f"{one.source or 'no file'} is not in the folder")


def _below(folder: Path, source: str) -> Iterator[Path]:
    """Files of a source in the folder, by the ends of its path that fit: a gallery decides no paths by itself."""
    parts = [part for part in Path(source).parts if part not in ("/", "..", ".")]
    for start in range(len(parts)):
        path = folder.joinpath(*parts[start:])
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            yield path
