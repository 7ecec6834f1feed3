"""The choice of DALI, and what is refused because DALI cannot do it here."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from lightning_pfc.checked import checked
from lightning_pfc.data.augment import Augment
from lightning_pfc.data.batches import TrainingBatches
from lightning_pfc.data.dali.encoded import EncodedBatches, tables_of
from lightning_pfc.data.dali.loader import DaliLoader
from lightning_pfc.data.dali.steps import steps_of
from lightning_pfc.data.errors import MissingLibraryError
from lightning_pfc.data.formats.decoded import DecodedImages
from lightning_pfc.data.images import ImageTable
from lightning_pfc.registry import name_and_arguments


def has_dali() -> bool:
    """Whether NVIDIA DALI is installed."""
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # nothing of NVIDIA's at all
        return False


@checked
@dataclass(frozen=True, kw_only=True)
class Dali:
    """Training batches by DALI; evaluation goes on with the plain loader.

    On a GPU the images are decoded by nvJPEG (DALI's device "mixed") and the batches are left there; elsewhere DALI's
    operators run on the CPU.

    Attributes:
        threads: of DALI on each rank; they decode. The data module's ``num_workers`` processes only read the files and
            draw the random numbers; with 0 of them the training process does.

    Raises:
        MissingLibraryError: if DALI is not installed.
    """

    threads: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.threads, int) or self.threads < 1:
            raise ValueError(f"threads={self.threads!r} must be an integer of at least 1.")
        if not has_dali():
            raise MissingLibraryError(
                "loader='dali' needs NVIDIA DALI, which is not installed. Install it with "
                "`pip install 'lightning-pfc[dali]'` (Linux only), or leave loader out.",
                library="nvidia.dali",
            )

    def check(self, images: ImageTable, augment: Augment) -> None:
        """Refuse what DALI cannot do here.

        Raises:
            ValueError: for pictures that are not decoded from files, for ``on_broken="skip"``, for data sets that
                differ in ``fit``, and for an augmentation that has a step which DALI does not do.
        """
        fits = set()
        for table in tables_of(images):
            if not isinstance(table, DecodedImages):
                raise ValueError(
                    "loader='dali' decodes the images of files (data=folder, recordio, list, parquet, webdataset, "
                    f"huggingface); the pictures of {type(table).__name__} are not encoded. Leave loader out."
                )
            if table.on_broken == "skip":
                raise ValueError(
                    "loader='dali' cannot put another image in the place of a broken one (on_broken='skip'): find "
                    "broken images beforehand with `pfc-data check` and use on_broken='raise', or leave loader out."
                )
            fits.add(table.fit)
        if len(fits) > 1:
            raise ValueError(f"loader='dali' needs one fit for all data sets, not {sorted(fits)}.")
        steps_of(augment)

    def loader(self, batches: TrainingBatches, device: torch.device, **options: Any) -> DaliLoader:
        """A loader of ``batches`` whose images are made by DALI on ``device``.

        Args:
            batches: what the plain loader would yield.
            device: of this rank; on anything but a CUDA device the CPU operators run.
            options: of :class:`~lightning_pfc.data.batches.TrainingLoader`.

        Raises:
            ValueError: see :meth:`check`.
        """
        self.check(batches.images, batches.augment)
        return DaliLoader(EncodedBatches(batches), threads=self.threads, device=device, **options)


def make_loader(choice: Dali | str | Mapping[str, Any]) -> Dali:
    """A loader by name, by a mapping of ``name`` and its arguments (as a config has them), or as it is.

    Raises:
        ValueError: for a name that does not exist.
        TypeError: for arguments that the loader does not take.
        MissingLibraryError: if its library is not installed.
    """
    if isinstance(choice, Dali):
        return choice
    name, arguments = name_and_arguments(choice)
    if name != "dali":
        raise ValueError(f"loader={name!r} must be 'dali', or left out for the plain loader.")
    if unknown := set(arguments) - {field.name for field in fields(Dali)}:
        raise TypeError(f"loader 'dali' takes threads, not {', '.join(sorted(unknown))}.")
    return Dali(**arguments)
