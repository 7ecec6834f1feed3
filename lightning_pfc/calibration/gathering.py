"""From a protocol of ``pfc-eval`` to what a threshold can be chosen on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_pfc.calibration.material import Material
from lightning_pfc.data.images import ImageTable
from lightning_pfc.data.preprocessing import Flip
from lightning_pfc.evaluation.bins import BinImages
from lightning_pfc.evaluation.embedders import embed_images
from lightning_pfc.evaluation.pairs import IndexedPairs, PairedImages
from lightning_pfc.evaluation.protocols import Evaluator
from lightning_pfc.metrics.functional import cosine_from_squared_distance, pair_squared_distances

KINDS = ("run", "all_pairs", "open_set", "pairs", "bin")


def gather(
    evaluator: Evaluator, name: str, protocol: str | os.PathLike[str] | Mapping[str, Any], *, flip: Flip, pictures: int
) -> Material:
    """Embed the pictures of a protocol.

    All pairs of a set are taken where identities are known, else the pairs that are listed. Of an identity with more
    than ``pictures`` pictures some are taken, evenly spread: else one person of hundreds of pictures would decide.

    Args:
        evaluator: Model, settings and ranks; a collective.
        name: Of the set.
        protocol: As in the config.
        flip: How to embed.
        pictures: Most pictures of an identity.

    Returns:
        The material.

    Raises:
        ValueError: the protocol is of a kind that has no pairs, or the set has no identities.
    """
    if not isinstance(protocol, Mapping):
        protocol = {"type": "bin" if str(protocol).endswith(".bin") else "pairs", "path": protocol}
    kind, path = str(protocol.get("type")), protocol.get("path")
    if kind not in KINDS or path is None:
        raise ValueError(
            f"protocols.{name} of type {kind} holds no pairs to choose a threshold on; use {', '.join(KINDS)}"
        )
    if kind == "run":
        part = evaluator.held_out(name, str(path), str(protocol.get("set", "val")))
        return _all(evaluator, name, part.images, part.identity, flip, pictures)
    if kind == "bin":
        images = BinImages(path)
        return _listed(evaluator, name, images, images.pairs(), None, flip)
    if kind == "pairs" and protocol.get("embeddings") is None:
        listed = PairedImages(path, protocol.get("images"), allow=evaluator.settings.allow)
        return _listed(evaluator, name, listed, listed.pairs(), torch.from_numpy(listed.identities), flip)
    if kind == "pairs":
        raise ValueError(f"protocols.{name}: give the embeddings with their labels as type all_pairs, to calibrate on")
    faces = evaluator.faces(str(path), protocol.get("identities"))
    if faces.labels is None:
        raise ValueError(f"{faces.source} names no identities (label), which a threshold is chosen on")
    if faces.embeddings is not None:
        rows = some_of_each(faces.labels, pictures)
        return Material(name, embeddings=faces.embeddings[rows], labels=faces.labels[rows])
    assert faces.images is not None
    return _all(evaluator, name, faces.images, faces.labels, flip, pictures)


def _all(evaluator: Evaluator, name: str, images: ImageTable, labels: Tensor, flip: Flip, pictures: int) -> Material:
    rows = some_of_each(labels, pictures)
    return Material(name, embeddings=_embed(evaluator, _Rows(images, rows.numpy()), flip), labels=labels[rows])


def _listed(
    evaluator: Evaluator, name: str, encoded: Any, pairs: IndexedPairs, identities: Tensor | None, flip: Flip
) -> Material:
    rows = _embed(evaluator, evaluator.pictures(name, encoded), flip)
    scores = cosine_from_squared_distance(pair_squared_distances(rows, pairs.first, pairs.second))
    known = identities is not None and not bool((identities < 0).any())
    sides = (identities[pairs.first], identities[pairs.second]) if known and identities is not None else None
    return Material(name, scores=scores, same=pairs.same, sides=sides)


def _embed(evaluator: Evaluator, images: ImageTable, flip: Flip) -> Tensor:
    if evaluator.embedder is None:
        raise ValueError("there is no model to embed pictures with: choose embedder=checkpoint or onnx")
    s = evaluator.settings
    return embed_images(
        evaluator.embedder, images, flip=flip, batch_size=s.batch_size, num_workers=s.num_workers, peers=evaluator.peers
    )


def some_of_each(labels: Tensor, most: int) -> Tensor:
    """Positions of at most ``most`` rows of each label, evenly spread over them, in order: (n,) int64."""
    array = labels.numpy()
    order = np.argsort(array, kind="stable")
    _, starts, counts = np.unique(array[order], return_index=True, return_counts=True)
    within = np.arange(len(array)) - np.repeat(starts, counts)
    total = np.repeat(counts, counts)
    # Row j of m is kept where floor(j k / m) steps up: k rows, evenly spread.
    kept = (total <= most) | ((within * most) // total != ((within - 1) * most) // total)
    return torch.from_numpy(np.sort(order[kept]))


class _Rows:
    """Some rows of an image table."""

    def __init__(self, table: ImageTable, rows: NDArray[np.int64]) -> None:
        self._table, self._rows = table, rows

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self._table.image_shape

    def __len__(self) -> int:
        return len(self._rows)

    def fetch(self, index: NDArray[np.int64]) -> Tensor:
        return self._table.fetch(self._rows[index])
