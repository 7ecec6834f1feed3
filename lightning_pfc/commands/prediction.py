"""The best classes of pictures, by name, over a head on many ranks: ``pfc-train ... predict.source=FOLDER``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset

from lightning_pfc.data.camera import to_float
from lightning_pfc.data.evaluation_batches import EvaluationBatches, evaluation_loader
from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.heads.softmax.top_classes import TopClasses
from lightning_pfc.storage.whole_files import write_whole

FILE = "predictions.tsv"
NUM_CLASSES = 5  # of each picture, as in conf/train.yaml


def predict(
    trainer: L.Trainer,
    module: Any,
    data: Any,
    source: str | os.PathLike[str],
    folder: Path,
    *,
    k: int = NUM_CLASSES,
    ckpt_path: str | None = None,
) -> Path:
    """Write ``folder/predictions.tsv``: of each picture its path, then k names and scores. Runs on every rank.

    Each rank takes a part of the pictures and asks the classes of all; the centers stay where they are.

    Args:
        trainer: of any strategy; several ranks share the folder.
        module: a :class:`~lightning_pfc.PartialFCModule`.
        data: the data module, for the names of its classes.
        source: a folder of pictures, or a data set in any format.
        folder: of the run.
        k: classes of each picture, at least 1.
        ckpt_path: weights to load first.

    Raises:
        FileNotFoundError, FormatError: there are no such pictures.
        ValueError: the module was trained on something that files do not hold.
    """
    from lightning_pfc.deploy.picture_folders import open_pictures

    pictures, (rank, ranks) = open_pictures(source), (trainer.global_rank, trainer.world_size)
    batches = PredictionBatches(pictures, _preprocessing(module, data), data.eval_batch_size, rank, ranks)
    parts = [folder / f".{FILE}.{number}" for number in range(ranks)]
    folder.mkdir(parents=True, exist_ok=True)
    before, module.predict_top = module.predict_top, k
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    try:
        with parts[rank].open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            callbacks.append(_Writer(file, pictures, data.data.class_names))
            loader = evaluation_loader(batches, data.num_workers)
            trainer.predict(module, dataloaders=loader, ckpt_path=ckpt_path, return_predictions=False)
        trainer.strategy.barrier("predictions")
        if trainer.is_global_zero:
            _join(folder / FILE, parts)
            rank_zero_info("%s: the %d best classes of %d pictures", folder / FILE, k, len(pictures))
        trainer.strategy.barrier("predictions are together")
    finally:
        module.predict_top = before
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, _Writer)]
        parts[rank].unlink(missing_ok=True)
    return folder / FILE


class PredictionBatches(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """This rank's part of each batch of pictures, as many batches on all ranks: (images, numbers, readable).

    A picture that cannot be read is black, and not ``readable``.

    Args:
        images: the data set.
        preprocessing: of the model.
        batch_size: most pictures per rank and step.
        rank, world_size: of the ranks that share the work.
    """

    def __init__(
        self, images: EncodedImages, preprocessing: Preprocessing, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.images = images
        self.preprocessing = preprocessing
        self._plan = EvaluationBatches(images, None, batch_size, rank, world_size)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        index = self._plan.positions(number)
        channels, height, width = self.preprocessing.image_shape
        pixels = np.zeros((len(index), height, width, channels), np.uint8)
        readable = torch.ones(len(index), dtype=torch.bool)
        for row, place in enumerate(index.tolist()):
            readable[row] = self._put(place, pixels[row])
        return to_float(torch.from_numpy(pixels).permute(0, 3, 1, 2)), torch.from_numpy(index), readable

    def _put(self, place: int, out: npt.NDArray[np.uint8]) -> bool:
        try:
            out[:] = self.preprocessing.picture(self.images.read(place))
        except ValueError:
            return False
        return True


class _Writer(BasePredictionWriter):
    """A line for each picture, as batches come."""

    def __init__(self, file: IO[str], pictures: EncodedImages, names: Any) -> None:
        super().__init__("batch")
        self._file, self._pictures, self._names = file, pictures, names

    def write_on_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, prediction: Any, batch_indices: Any, batch: Any, *_: Any
    ) -> None:
        """Number of the picture, its path, then name and score of each class; nothing more if it cannot be read."""
        found: TopClasses = prediction
        _, index, readable = batch
        rows = zip(index.tolist(), readable.tolist(), found.score.tolist(), found.label.tolist(), strict=True)
        for place, fine, scores, labels in rows:
            pairs = zip(scores, labels, strict=True) if fine else ()
            cells = [cell for score, label in pairs for cell in (self._name(label), f"{score:.4f}")]
            line = [str(place), self._pictures.locate(place), *(cells or ["cannot be read"])]
            self._file.write("\t".join(map(_one_cell, line)) + "\n")

    def _name(self, label: int) -> str:
        return str(label) if self._names is None else str(self._names[label])


def _join(final: Path, parts: Sequence[Path]) -> None:
    if gone := [str(part) for part in parts if not part.is_file()]:
        raise ValueError(
            f"{gone[0]} is not there: the ranks do not share the folder of the run; give output_dir=SHARED"
        )
    with write_whole(final, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for line in sorted(_lines(parts), key=lambda line: int(line.split("\t", 1)[0])):
            file.write(line.split("\t", 1)[1])


def _lines(parts: Sequence[Path]) -> Iterator[str]:
    for part in parts:
        with part.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            yield from file


def _one_cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _preprocessing(module: Any, data: Any) -> Preprocessing:
    known: Preprocessing | None = getattr(module, "preprocessing", None) or data.preprocessing
    if known is None or not hasattr(module, "predict_top"):
        raise ValueError(f"predict.source: a {type(module).__name__} on these data tells no classes of picture files")
    return known.changed(fit="crop") if known.fit == "exact" else known
