"""Whether an engine gives the embeddings of the module that was trained, on real pictures and at any batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lightning_pfc.deploy.engines import Engine, Floats
from lightning_pfc.deploy.errors import ExportError

BATCHES = (1, 3, 64)
FLOAT32_BOUND = 1e-5  # of 1 - cosine


class Fidelity(NamedTuple):
    """How far two engines are apart.

    Attributes:
        pictures: How many were compared.
        batches: At which batch sizes.
        cosine_loss: The largest 1 - cosine of a picture's two embeddings.
        length_error: The largest relative difference of their lengths.
    """

    pictures: int
    batches: tuple[int, ...]
    cosine_loss: float
    length_error: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**self._asdict(), "batches": list(self.batches)}


def compare_engines(reference: Engine, engine: Engine, images: Floats, batches: Sequence[int] = BATCHES) -> Fidelity:
    """Embed pictures with both, at several batch sizes.

    Args:
        reference: The trained module.
        engine: What was made of it.
        images: (n, C, H, W) float32; where there are fewer than a batch needs, they are repeated.
        batches: Sizes.

    Returns:
        The largest differences over all of them.

    Raises:
        ExportError: A batch gives another shape, or numbers that are not finite.
    """
    cosine_loss = length_error = 0.0
    wanted = batched(reference, images, 64)
    if not np.isfinite(wanted).all():
        raise ExportError("the trained module itself gives embeddings that are not finite; see whether training broke")
    for size in batches:
        part = np.resize(np.arange(len(images)), max(size, min(len(images), 8 * size)))
        part = part[: len(part) // size * size]
        found = batched(engine, images[part], size)
        if found.shape != (len(part), wanted.shape[1]) or not np.isfinite(found).all():
            raise ExportError(f"a batch of {size} gives {found.shape}, or numbers that are not finite")
        a, b = wanted[part].astype(np.float64), found.astype(np.float64)
        lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        if not (lengths[0] > 0).all() or not (lengths[1] > 0).all():
            raise ExportError("an embedding has no length; see whether training broke")
        # |a/|a| - b/|b||^2 / 2 is 1 - cosine, without the rounding of a number close to 1.
        gap = a / lengths[0][:, None] - b / lengths[1][:, None]
        cosine_loss = max(cosine_loss, float(0.5 * np.square(gap).sum(1).max()))
        length_error = max(length_error, float(np.abs(lengths[1] / lengths[0] - 1).max()))
    return Fidelity(len(images), tuple(batches), cosine_loss, length_error)


def batched(engine: Engine, images: Floats, size: int) -> Floats:
    """(n, C, H, W) to (n, D), a batch at a time."""
    return np.concatenate([engine(images[start : start + size]) for start in range(0, len(images), size)])
