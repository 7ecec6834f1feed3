"""The pictures of a run's held-out sets, made as the model wants them that is judged on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_pfc.data.formats import DecodedImages
from lightning_pfc.data.images import ImageTable
from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.data.verification import VerificationSet
from lightning_pfc.runs.run_folder import Run


def held_out(run: Run, name: str, wanted: Preprocessing) -> VerificationSet:
    """A held-out set of a run as the model that is judged sees it, which another run, or the user, may have said.

    Where nothing differs they are the tables that training has: a run of several sources fits each in its own way.

    Args:
        run: whose set it is.
        name: of the set.
        wanted: how the model's pictures are made.

    Raises:
        ExportError: the run has no such set.
        ValueError: its pictures are drawn, not read, and are grey where the model wants colours, or the reverse.
    """
    part = run.verification_set(name)
    known = run.data.preprocessing
    if part.images.image_shape == wanted.image_shape and (known is None or known.same_pictures(wanted)):
        return part
    if isinstance(part.images, DecodedImages):
        return replace(part, images=part.images.made_by(wanted))
    if part.images.image_shape == wanted.image_shape:
        return part
    if part.images.image_shape[0] != wanted.channels:
        have = part.images.image_shape[0]
        raise ValueError(
            f"{run.folder}: the pictures of its set {name!r} are drawn with {have} channels, and the model wants "
            f"{wanted.channels}; judge it on pictures that are files"
        )
    return replace(part, images=_Fitted(part.images, wanted))


class _Fitted:
    """Pictures of a table, each brought to another size."""

    def __init__(self, table: ImageTable, preprocessing: Preprocessing) -> None:
        self._table, self._preprocessing = table, preprocessing

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self._preprocessing.image_shape

    def __len__(self) -> int:
        return len(self._table)

    def fetch(self, index: NDArray[np.int64]) -> Tensor:
        pictures = self._table.fetch(index).permute(0, 2, 3, 1).contiguous().numpy()
        fitted = [self._preprocessing.pixels(picture) for picture in pictures]
        return torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2)
