"""Batches of training: an order cut into global batches, each rank's slice of them, and the loader that yields them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_pfc.data.augment import Augment
from lightning_pfc.data.counter import UInts, stream
from lightning_pfc.data.images import ImageTable, Labels
from lightning_pfc.data.mixing import Mix
from lightning_pfc.data.orders import Draws, Order
from lightning_pfc.data.source import Part
from lightning_pfc.names.renamed import renamed_names


class BatchNumber(NamedTuple):
    """Which batch of which epoch."""

    epoch: int
    batch: int


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Cuts an order into global batches and gives each rank its slice.

    The global batch ``g`` holds the draws ``g * B`` to ``(g + 1) * B`` with ``B = batch_size * world_size``, and rank r
    the r-th part of them. So at an equal global batch the same images meet in the same step, however many ranks share
    it.

    Attributes:
        order: the draws of an epoch.
        batch_size: images per rank and step.
        rank, world_size: of the ranks that train together.
        drop_last: leave out the draws that do not fill a global batch; else they make a last, smaller one, divided as
            evenly as can be (fewer than ``world_size`` of them are left out even so: every rank needs an image).
    """

    order: Order
    batch_size: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank={self.rank} must lie in [0, world_size={self.world_size}).")
        if not len(self):
            raise ValueError(
                f"batch_size={self.batch_size} on {self.world_size} rank(s) is a global batch of {self.global_batch}, "
                f"more than the {self.order.length} images of an epoch: use at most "
                f"{max(1, self.order.length // self.world_size)}, or drop_last=False."
            )

    @property
    def global_batch(self) -> int:
        """Images per step over all ranks."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        full, rest = divmod(self.order.length, self.global_batch)
        return full + (not self.drop_last and rest >= self.world_size)

    def draws(self, number: BatchNumber) -> Draws:
        """This rank's draws in a batch of an epoch."""
        if not 0 <= number.batch < len(self):
            raise IndexError(f"batch {number.batch} of {len(self)}")
        start = number.batch * self.global_batch
        size = min(self.global_batch, self.order.length - start)
        mine = (start + self.rank * size // self.world_size, start + (self.rank + 1) * size // self.world_size)
        return self.order.draws(number.epoch, *mine)


class TrainingBatches(Dataset[tuple[Tensor, ...]]):
    """A data set whose items are whole batches: pictures fetched, augmented and labelled together, wherever it runs.

    Item ``BatchNumber(epoch, k)`` is this rank's part of batch k. A plain number k is batch k of epoch 0, which is what
    Lightning's ``overfit_batches`` asks for.

    Args:
        images: the training pictures.
        labels: (N,) int64 class of each.
        plan: which pictures make a batch.
        augment: ``(b, C, H, W) uint8, (b,) uint64 keys -> (b, C, H, W) float32 in [-1, 1]``.
        seed: of the augmentation; an image's key is ``stream(seed, epoch, index, repeat)``.
        mix: mixes pictures of two classes; items are then :class:`~lightning_pfc.data.mixing.MixedBatch`.
        parts: if given, items carry the number of each image's part, and labels are those within the part.

    Raises:
        ValueError: for ``mix`` with an odd batch size, or with parts.
    """

    def __init__(
        self,
        images: ImageTable,
        labels: Labels,
        plan: BatchPlan,
        augment: Augment,
        seed: int = 0,
        mix: Mix | None = None,
        parts: Sequence[Part] = (),
    ) -> None:
        if mix is not None and plan.batch_size % 2:
            raise ValueError(f"batch_size={plan.batch_size} must be even to mix neighbours.")
        if mix is not None and parts:
            raise ValueError("mix cannot be used with one head per data set: a picture would belong to two heads.")
        self.images = images
        self.labels = labels
        self.plan = plan
        self.augment = augment
        self.seed = seed
        self.mix = mix
        self._first_image = np.asarray([part.first_image for part in parts], dtype=np.int64)
        self._first_class = np.asarray([part.first_class for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: BatchNumber | int) -> tuple[Tensor, ...]:
        number, position, keys = self.drawn(number)
        images = self.augment(self.images.fetch(position), keys)
        return self.finish(number, images, *self.targets(position))

    def drawn(self, number: BatchNumber | int) -> tuple[BatchNumber, NDArray[np.int64], UInts]:
        """Which batch a number means, the (b,) positions of its pictures, and the (b,) keys of their augmentation."""
        if not isinstance(number, BatchNumber):
            number = BatchNumber(0, int(number))
        draws = self.plan.draws(number)
        return number, draws.position, stream(self.seed, number.epoch, draws.position, draws.repeat)

    def targets(self, position: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """(b,) positions to what goes with the pictures: (b,) labels and, where there are parts, their (b,) numbers."""
        labels = np.asarray(self.labels[position], dtype=np.int64)
        if not len(self._first_image):
            return (torch.from_numpy(labels),)
        part = np.searchsorted(self._first_image, position, side="right") - 1
        return torch.from_numpy(labels - self._first_class[part]), torch.from_numpy(part)

    def finish(self, number: BatchNumber, images: Tensor, *targets: Tensor) -> tuple[Tensor, ...]:
        """The batch of augmented pictures and their targets, mixed if that is asked for."""
        if self.mix is not None:
            return self.mix(images, targets[0], stream(self.seed, 31, number.epoch, number.batch))
        return images, *targets


class EpochSampler(DistributedSampler[BatchNumber]):
    """The batch numbers of an epoch. Lightning sets the epoch, and leaves alone what is a ``DistributedSampler``."""

    def __init__(self, length: int) -> None:
        # The parent would cut the data set itself; a BatchPlan does that here, so nothing of the parent's is used.
        self.length = length
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration; another one than was left in the middle begins at its beginning."""
        if epoch != self.epoch:
            self.start = 0
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[BatchNumber]:
        start, self.start = self.start, 0
        for batch in range(start, self.length):
            yield BatchNumber(self.epoch, batch)


class TrainingLoader(DataLoader[tuple[Tensor, ...]]):
    """A loader that can be stopped after any batch and taken up there: Lightning stores its state in every checkpoint.

    Args:
        dataset: the batches.
        num_workers: processes that prepare batches; 0 prepares them in the training process.
        drawn_by: plain values by the words that set them, which decide what is in which batch of an epoch.
        kwargs: further arguments of :class:`torch.utils.data.DataLoader`.
    """

    def __init__(
        self,
        dataset: TrainingBatches,
        num_workers: int = 0,
        drawn_by: Mapping[str, int | str | bool] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("sampler", EpochSampler(len(dataset)))
        kwargs.setdefault("batch_size", None)
        super().__init__(dataset, num_workers=num_workers, **kwargs)
        self._drawn_by = dict(drawn_by or {})
        self._epoch = 0
        self._done = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        sampler = self.sampler
        done = sampler.start if isinstance(sampler, EpochSampler) else 0
        for batch in self._batches():
            done += 1
            self._epoch, self._done = getattr(sampler, "epoch", 0), done
            yield batch

    def _batches(self) -> Iterator[Any]:
        """What is handed out; may be made ahead, since only what was handed out counts as done."""
        return super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Which epoch, and how many of its batches were handed out; after the last one, the next epoch and none."""
        ended = self._done >= len(self)
        epoch, batch = (self._epoch + 1, 0) if ended else (self._epoch, self._done)
        place = {"epoch": epoch, "batch": batch, "length": len(self)}
        return {**place, "drawn_by": dict(self._drawn_by)} if self._drawn_by else place

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that the state counts.

        Raises:
            ValueError: if an epoch that was left in the middle would go on with other batches: pictures would be seen
                twice in it, or never. Names the word that differs.
        """
        sampler = self.sampler
        if not isinstance(sampler, EpochSampler):
            return  # overfit_batches: every epoch is the same few batches
        if state["batch"] and state["length"] != len(self):
            raise ValueError(
                f"The checkpoint was written after batch {state['batch']} of {state['length']}, but an epoch has "
                f"{len(self)} batches now: resume with the same data and the same global batch (data.batch_size times "
                "ranks), or from a checkpoint written at the end of an epoch."
            )
        before: Mapping[str, Any] = state.get("drawn_by", {}) if state["batch"] else {}
        for word in filter(before.__contains__, self._drawn_by):
            if before[word] != self._drawn_by[word]:
                raise ValueError(
                    f"The checkpoint was written after batch {state['batch']} of {state['length']} of an epoch with "
                    f"{word}={before[word]}, and this run has {self._drawn_by[word]}: the rest of the epoch would be "
                    f"other pictures. Resume with {word} as it was, or from a checkpoint written at the end of an "
                    "epoch."
                )
        sampler.set_epoch(state["epoch"])
        sampler.start = state["batch"]
        self._epoch, self._done = state["epoch"], state["batch"]


__getattr__ = renamed_names(
    __name__,
    {
        "EvaluationBatches": "lightning_pfc.data.evaluation_batches:EvaluationBatches",
        "evaluation_loader": "lightning_pfc.data.evaluation_batches:evaluation_loader",
    },
)
