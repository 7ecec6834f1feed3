"""The data module: one for every kind of data, since kinds differ in their source only."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from lightning_pfc.checked import check_arguments
from lightning_pfc.data.augment import KINDS, Augment, augmentation, mirrors
from lightning_pfc.data.batches import BatchPlan, TrainingBatches, TrainingLoader
from lightning_pfc.data.dali import Dali, make_loader
from lightning_pfc.data.evaluation_batches import EvaluationBatches, evaluation_loader
from lightning_pfc.data.mixing import Mix
from lightning_pfc.data.numbering import numbered_as, numbered_if_same
from lightning_pfc.data.orders import Order
from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.data.same_data import agree_on_data, in_group
from lightning_pfc.data.samplers import Mixed, Sampler, Shuffled, make_sampler
from lightning_pfc.data.several_labels import check_labels
from lightning_pfc.data.source import EvaluationSet, IdentityData, LabelledSet, Source, Task
from lightning_pfc.data.verification import VerificationSet

_log = logging.getLogger(__name__)


class IdentityDataModule(L.LightningDataModule):
    """Training batches of a source, and its evaluation sets, right on any number of ranks.

    Training yields ``(images (b, C, H, W) float32 in [-1, 1], labels (b,) int64)``. The global batch of a step depends
    on (seed, epoch, step) and on the global batch size, not on the number of ranks or workers; so does the augmentation
    of an image. Verification yields ``(images, position (b,) int64)`` for the sets of :meth:`verification_sets`,
    classification ``(images, labels)`` for those of :meth:`labelled_sets`; one loader per set, in their order.

    Args:
        source: what to train on, such as :class:`~lightning_pfc.data.Glyphs`.
        batch_size: training images per rank and step.
        eval_batch_size: images per rank and evaluation step; four times ``batch_size`` by default.
        num_workers: processes per rank that prepare batches; 0 prepares them in the training process.
        augment: replaces the augmentation that comes with the source: a name of
            :func:`~lightning_pfc.data.augment.augmentation`, or anything that maps (b, C, H, W) uint8 images and
            (b,) keys to float32 images in [-1, 1].
        sampler: what an epoch draws: "shuffled", "class_balanced", "identity_groups", "mixed", or an object of
            :mod:`lightning_pfc.data.samplers`. By default every image once, the parts of a joint source in proportion.
            In a config also a mapping of ``name`` and the sampler's arguments.
        mix: mixup or CutMix, a :class:`~lightning_pfc.data.mixing.Mix` or a mapping of its arguments.
        seed: of the shuffling and the augmentation.
        drop_last: leave out the images of an epoch that do not fill a global batch.
        repeats: augmented copies of an image in its batch (repeated augmentation).
        pin_memory: page-locked batches; by default where CUDA is.
        loader: "dali" decodes and augments training images with NVIDIA DALI, on the GPU of the rank where there is one;
            a :class:`~lightning_pfc.data.dali.Dali`, or in a config also a mapping of ``name`` and its arguments.
        kind: what the pictures show, in place of ``augment``: "faces" and "objects" are mirrored in training
            (``{name: affine_flip, strength: 0.5}``), "characters", which are something else then, are not
            ("affine"); "spectrograms" stay as they are ("none").
        classes_of: a checkpoint, folder or file: classes have the numbers of its rows. New identities come behind, and
            those that have vanished keep their row, without a picture; a run that goes on from it moves no center, see
            :func:`~lightning_pfc.data.numbering.numbered_as`.

    After ``setup``: ``num_classes``, ``num_images``, ``input_size`` (C, H, W) and ``task`` come from the data.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        augment: Augment | str | Mapping[str, Any] | None = None,
        sampler: Sampler | str | Mapping[str, Any] | None = None,
        mix: Mix | Mapping[str, float] | None = None,
        seed: int = 0,
        drop_last: bool = True,
        repeats: int = 1,
        pin_memory: bool | None = None,
        loader: Dali | str | Mapping[str, Any] | None = None,
        kind: str | None = None,
        classes_of: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        check_arguments(IdentityDataModule, locals())
        if kind is not None and kind not in KINDS:
            raise ValueError(f"kind={kind!r} is unknown; use {', '.join(KINDS)}, or leave it out.")
        if kind is not None and augment is not None:
            raise ValueError(f"kind={kind!r} chooses an augmentation, and augment is given too; leave one of them out.")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("repeats", repeats, 1),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r} must be an integer of at least {least}.")
        if eval_batch_size is not None and eval_batch_size < 1:
            raise ValueError(f"eval_batch_size={eval_batch_size} must be at least 1.")
        self.source = source
        self.classes_of = classes_of
        self.goes_on_from: str | os.PathLike[str] | None = None  # with head.match=names: rows stay where they can
        self.batch_size = batch_size
        self.eval_batch_size = 4 * batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        if kind is not None:
            augment = KINDS[kind]
        self.augment = augmentation(augment) if isinstance(augment, str | Mapping) else augment
        if sampler is not None and repeats > 1:
            raise ValueError(
                f"repeats={repeats} belongs to the default sampler; use sampler=Shuffled(repeats={repeats})."
            )
        self.sampler = None if sampler is None else make_sampler(sampler)
        self.mix = Mix(**mix) if isinstance(mix, Mapping) else mix
        self.seed = seed
        self.drop_last = drop_last
        self.repeats = repeats
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.loader = None if loader is None else make_loader(loader)
        self._data: IdentityData | None = None
        self._failure: Exception | None = None
        self._prepared = self._agreed = False

    # --- life cycle -------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Prepare the source, once, on one process per node; in a group, ``setup`` raises what failed, on all ranks."""
        if self._prepared:  # a Trainer asks before each of fit, validate and test, and a check decodes every picture
            return
        self._failure = None
        try:
            self.source.prepare()
            self._prepared = True
        except Exception as error:
            if not in_group():
                raise
            self._failure = error

    def setup(self, stage: str | None = None) -> None:
        """Open the source, once. On several ranks a collective: an error on one is raised on all, and all must agree.

        Data that were opened before there were ranks (as ``pfc-train`` does: the head needs the number of classes) are
        compared when it is called again among them.

        Raises:
            ValueError, OSError: what is wrong with the data, on every rank.
            RuntimeError: if ranks opened different data.
        """
        if self._data is not None:
            if in_group() and not self._agreed:
                self._agreed = agree_on_data(self._data, None)
            return
        failure, data = self._failure, None
        if failure is None:
            try:
                data = self.source.open()
                check_labels(data, self.sampler, self.mix)
                if self.classes_of is not None:
                    data = numbered_as(data, self.classes_of)
                elif self.goes_on_from is not None:
                    data = numbered_if_same(data, self.goes_on_from)
                if self.loader is not None:
                    self.loader.check(data.train, self._augment(data))
            except Exception as error:
                failure = error
        self._agreed = agree_on_data(data, failure)
        self._data = data
        if data is not None and data.description:
            _log.info("%s", data.description)

    @property
    def data(self) -> IdentityData:
        """The opened source.

        Raises:
            RuntimeError: before ``setup``.
        """
        if self._data is None:
            raise RuntimeError("The data are not open yet: call prepare_data() and setup() first, as a Trainer does.")
        return self._data

    # --- what the data say ------------------------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """Number of training classes."""
        return self.data.num_classes

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Number of training classes of each data set: one number, unless the source joins several."""
        return tuple(part.num_classes for part in self.data.parts) or (self.num_classes,)

    @property
    def num_images(self) -> int:
        """Number of training images."""
        return self.data.num_images

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.data.train.image_shape

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How files become what the model sees, and whether it is judged by mirror images too: trained on some, it is.

        None for pictures of another number of channels than 1 or 3, which no file gives.
        """
        record = self.data.preprocessing
        if record is None:
            channels, height, width = self.input_size
            if channels not in (1, 3):
                return None
            record = Preprocessing(size=(height, width), channels=channels)
        return record.changed(flip="sum" if mirrors(self._augment(self.data)) else "none")

    @property
    def task(self) -> Task:
        """What evaluation does: "open" (verification of unseen identities) or "closed" (classification)."""
        return self.data.task

    def _sets(self, stage: str) -> Mapping[str, EvaluationSet]:
        if stage not in ("validate", "test"):
            raise ValueError(f'stage={stage!r} must be "validate" or "test".')
        return self.data.validation if stage == "validate" else self.data.test

    def verification_sets(self, stage: str = "test") -> dict[str, VerificationSet]:
        """The verification sets of a stage ("validate" or "test") by name, in the order of the loaders."""
        return {name: s for name, s in self._sets(stage).items() if isinstance(s, VerificationSet)}

    def labelled_sets(self, stage: str = "test") -> dict[str, LabelledSet]:
        """The classification sets of a stage ("validate" or "test") by name, in the order of the loaders."""
        return {name: s for name, s in self._sets(stage).items() if isinstance(s, LabelledSet)}

    @property
    def training_options(self) -> dict[str, Any]:
        """What decides the training batches, by the words that set it: compared when a run goes on."""
        return {
            **self._drawn_by(),
            "data.augment": self._augment(self.data),
            "data.mix": self.mix,
            "data.loader": None if self.loader is None else type(self.loader).__name__.lower(),
            "fingerprint of the data": self.data.fingerprint,
        }

    def _drawn_by(self) -> dict[str, int | str | bool]:
        """What decides which pictures are in which batch; plain values."""
        return {
            "global batch (data.batch_size times ranks)": self.batch_size * self._rank()[1],
            "data.sampler": repr(self._sampler()),
            "data.seed": self.seed,
            "data.drop_last": self.drop_last,
            "training images": self.data.num_images,
        }

    # --- loaders ----------------------------------------------------------------------------------------------------

    def order(self) -> Order:
        """Which images an epoch draws."""
        _, world_size = self._rank()
        return self._sampler().order(self.data, seed=self.seed, batch_size=self.batch_size, world_size=world_size)

    def _sampler(self) -> Sampler:
        if self.sampler is not None:
            return self.sampler
        return Mixed() if self.data.parts and self.repeats == 1 else Shuffled(repeats=self.repeats)

    def train_dataloader(self) -> TrainingLoader:
        """This rank's part of the global batches."""
        rank, world_size = self._rank()
        plan = BatchPlan(
            order=self.order(), batch_size=self.batch_size, rank=rank, world_size=world_size, drop_last=self.drop_last
        )
        parts = self.data.parts if self.data.separate else ()
        batches = TrainingBatches(
            self.data.train, self.data.labels, plan, self._augment(self.data), self.seed, self.mix, parts
        )
        if self.loader is not None:
            return self.loader.loader(batches, self._device(), drawn_by=self._drawn_by(), **self._worker_options())
        return TrainingLoader(batches, drawn_by=self._drawn_by(), **self._worker_options())

    def plain_train_dataloader(self) -> DataLoader[Any]:
        """Every training picture once, as validation would see it, with its class: this rank's part, in order."""
        rank, world_size = self._rank()
        data = self.data
        batches = EvaluationBatches(data.train, data.labels, self.eval_batch_size, rank, world_size)
        return evaluation_loader(batches, **self._worker_options())

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader per validation set."""
        return self._evaluation("validate")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader per test set."""
        return self._evaluation("test")

    def _evaluation(self, stage: str) -> list[DataLoader[Any]]:
        rank, world_size = self._rank()
        sets: list[EvaluationSet] = [*self.verification_sets(stage).values(), *self.labelled_sets(stage).values()]
        return [
            evaluation_loader(
                EvaluationBatches(
                    s.images, s.labels if isinstance(s, LabelledSet) else None, self.eval_batch_size, rank, world_size
                ),
                **self._worker_options(),
            )
            for s in sets
        ]

    def _augment(self, data: IdentityData) -> Augment:
        return data.augment if self.augment is None else self.augment

    def _worker_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"num_workers": self.num_workers, "pin_memory": self.pin_memory}
        if self.num_workers:
            options["persistent_workers"] = True
        return options

    def _rank(self) -> tuple[int, int]:
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        return (dist.get_rank(), dist.get_world_size()) if in_group() else (0, 1)

    def _device(self) -> torch.device:
        if self.trainer is not None:
            return self.trainer.strategy.root_device
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
