"""New vectors for a gallery from another model, while the old ones serve."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.formats.folder import read_image_file
from lightning_pfc.deploy.errors import NoFaceError
from lightning_pfc.deploy.recogniser import Recogniser
from lightning_pfc.gallery.enrolling import BATCH, model_record
from lightning_pfc.gallery.gallery import Gallery
from lightning_pfc.gallery.store import Pending


def reembed(
    gallery: Gallery, recogniser: Recogniser, folder: Path | None, from_previews: bool, missing: list[str]
) -> Iterator[int]:
    """Embed every picture that the next model has not seen; yields how many each batch took.

    Args:
        gallery: to be moved; begun and not finished before, it goes on.
        recogniser: the next model.
        folder: where the pictures lie; their own paths are not followed otherwise.
        from_previews: use the small image of a picture that is not there.
        missing: gets a line for each picture that could not be read.
    """
    store = gallery.store
    model = model_record(recogniser)
    store.begin_next(model)
    last = 0
    while waiting := store.pending(last, BATCH):
        last = waiting[-1].picture
        found = [(one.picture, _pixels(one, recogniser, folder, from_previews, missing)) for one in waiting]
        read = [(picture, pixels) for picture, pixels in found if pixels is not None]
        if read:
            rows = recogniser.embed_pixels(np.stack([pixels for _, pixels in read]))
            store.put_next(model, [(picture, row) for (picture, _), row in zip(read, rows, strict=True)])
        yield len(waiting)


def _pixels(
    one: Pending, recogniser: Recogniser, folder: Path | None, from_previews: bool, missing: list[str]
) -> np.ndarray | None:
    try:
        if folder is not None and (path := _below(folder, one.source)) is not None:
            return recogniser.prepare(read_image_file(path))
        if from_previews and one.preview is not None:
            return recogniser.prepare(one.preview)
        missing.append(f"picture {one.picture} of {one.identity}: {one.source or 'no file'} is not in the folder")
    except (FormatError, NoFaceError) as error:
        missing.append(f"picture {one.picture} of {one.identity}: {error}")
    return None


def _below(folder: Path, source: str) -> Path | None:
    """The file of a source in the folder, by the end of its path that fits: a gallery decides no paths by itself."""
    parts = [part for part in Path(source).parts if part not in ("/", "..", ".")]
    for start in range(len(parts)):
        path = folder.joinpath(*parts[start:])
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            return path
    return None
