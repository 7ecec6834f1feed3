"""What a run folder of ``pfc-train`` holds for whoever uses the model: weights, words, pictures, figures."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.identities import Identities, difference
from lightning_pfc.checkpoint.reader import CheckpointReader
from lightning_pfc.data.numbering import numbered_as, numbered_if_same
from lightning_pfc.data.preprocessing import METADATA_KEY, Preprocessing
from lightning_pfc.data.source import IdentityData
from lightning_pfc.data.verification import VerificationSet
from lightning_pfc.runs.errors import ExportError
from lightning_pfc.runs.network import EmbeddingModel, load_network
from lightning_pfc.runs.own_checkpoint import LAST, own_checkpoint
from lightning_pfc.runs.plain import read_json
from lightning_pfc.runs.records import newest_record
from lightning_pfc.runs.thresholds import Thresholds
from lightning_pfc.storage.yaml_texts import read_yaml

THRESHOLDS = "thresholds.json"
_SOURCES = ("Files", "Glyphs", "Joint", "Synthetic")
_TARGETS = {f"lightning_pfc.data.{name}" for name in _SOURCES}


class Run:
    """A run folder.

    Args:
        folder: of the run.
        checkpoint: another one than the best that the run named, or its own ``checkpoints/last.ckpt``.

    Raises:
        ExportError: it is no run folder, or has no finished checkpoint; says what is there.
    """

    def __init__(self, folder: str | os.PathLike[str], checkpoint: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            what = "is a file" if self.folder.exists() else "is not there"
            raise ExportError(f"{what}; give the run folder that pfc-train printed, such as runs/DATE_TIME", folder)
        self.checkpoint = self._checkpoint() if checkpoint is None else Path(checkpoint)
        self._is_own = checkpoint is None or self.folder.resolve() in self.checkpoint.resolve().parents

    def _checkpoint(self) -> Path:
        try:
            own = own_checkpoint(self.folder)
        except ValueError as error:
            raise ExportError(f"{error} (--checkpoint FILE)", self.folder) from None
        if own is not None:
            return self._best(own) or own
        others = sorted(self.folder.glob("checkpoints/*.ckpt"))
        if others:
            raise ExportError(f"has no {LAST}; give --checkpoint, for example {others[-1]}", self.folder)
        known = (self.folder / "config.yaml").is_file()
        why = (
            "training has not saved one yet; wait for the end of its first epoch" if known else "this is no run folder"
        )
        raise ExportError(f"has no {LAST}: {why}, or give --checkpoint FILE", self.folder)

    def _best(self, last: Path) -> Path | None:
        """The checkpoint that the run found best, if it has ended since it saved its last one."""
        name, results = self.results.get("best_checkpoint"), self.folder / "results.json"
        if not isinstance(name, str) or name != Path(name).name or results.stat().st_mtime < last.stat().st_mtime:
            return None
        return last.parent / name if (last.parent / name).exists() else None

    @functools.cached_property
    def _loaded(self) -> tuple[EmbeddingModel, dict[str, Any]]:
        return load_network(self.checkpoint)

    @property
    def network(self) -> EmbeddingModel:
        """Backbone and neck, in evaluation mode."""
        return self._loaded[0]

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        """Of the module."""
        return self._loaded[1]

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The words of the run; empty where there is no ``config.yaml``. Nothing in it is instantiated here."""
        path = newest_record(self.folder, "config")
        if path is None:
            return {}
        try:
            found = OmegaConf.to_container(OmegaConf.create(read_yaml(path)))
        except (OmegaConfBaseException, OSError, ValueError) as error:
            raise ExportError(f"cannot be read: {error}", path) from error
        except Exception as error:  # the YAML parser's own
            raise ExportError(f"is no YAML: {str(error).splitlines()[0]}", path) from error
        return {str(k): v for k, v in found.items()} if isinstance(found, dict) else {}

    @property
    def results(self) -> Mapping[str, Any]:
        """``results.json``; empty where there is none."""
        path = self.folder / "results.json"
        return read_json(path) if path.is_file() else {}

    @property
    def preprocessing(self) -> Preprocessing:
        """How its pictures are made ready."""
        channels, height, width = self.network.config.input_size
        stored = self.hyper_parameters.get(METADATA_KEY)
        if stored is None:  # of before there was a record
            return Preprocessing(size=(height, width), channels=channels)
        return Preprocessing.from_config(stored).changed(size=(height, width), channels=channels)

    @property
    def thresholds(self) -> Thresholds:
        """What ``pfc-eval calibrate...`` wrote.

        Raises:
            ExportError: the file is damaged.
        """
        return read_thresholds(self.folder / THRESHOLDS)

    @functools.cached_property
    def data(self) -> Any:
        """The opened data of the run, an :class:`~lightning_pfc.data.IdentityData`.

        Raises:
            ExportError: the run's words do not say what they were, they are of a kind that only its own program knows,
                they are not there any more, or they have other identities than the checkpoint was trained on.
        """
        from hydra.utils import instantiate

        source = _source(self.config)
        if not source:
            raise ExportError(
                "has no config.yaml that names its data, so there are no pictures to check the export on; "
                "give some with --images FOLDER",
                self.folder,
            )
        if unknown := [target for target in _targets(source) if target not in _TARGETS]:
            raise ExportError(
                f"was trained on data of {unknown[0]}, which is not opened for a file's word; "
                "give pictures with --images FOLDER",
                self.folder,
            )
        try:
            made = instantiate(OmegaConf.create(source), _convert_="all")
            made.prepare()
            opened = made.open()
        except Exception as error:
            lines = str(error.__cause__ or error).splitlines() or [type(error).__name__]
            raise ExportError(
                f"the data of the run cannot be opened ({lines[0][:300]}); give pictures with --images FOLDER",
                self.folder,
            ) from error
        opened = self._numbered(opened)
        self._check_identities(opened.class_names)
        return opened

    def _numbered(self, opened: IdentityData) -> IdentityData:
        """With the numbers of its own checkpoint, where training has kept them although the data had others."""
        if not self._is_own:
            return opened
        data = self.config.get("data")
        if not isinstance(data, dict) or data.get("classes_of") is None:
            return numbered_if_same(opened, self.checkpoint)
        try:
            return numbered_as(opened, self.checkpoint)
        except (CheckpointError, ValueError):
            return opened  # what is wrong is said when the names are compared

    def _check_identities(self, names: Any) -> None:
        """See that the run's data are still what its checkpoint was trained on.

        Raises:
            ExportError: they are not: what they hold out now may have been trained on, a center be somebody else's.
        """
        if not self._is_own or names is None:
            return
        there = CheckpointReader(self.checkpoint, check=False).identities
        found = None if there is None else difference(there, Identities.of(names))
        if found is not None:
            raise ExportError(
                f"was trained on other identities than its data have now: {found}, so what they hold out may have been "
                "trained on. Restore the data, or name pictures of others: --images FOLDER of pfc-export, "
                "+protocols.mine=pairs.txt of pfc-eval",
                self.folder,
            )

    def verification_sets(self) -> dict[str, VerificationSet]:
        """The run's sets of identities that were not trained on, by name: of the validation, then of the test."""
        sets = {**self.data.validation, **self.data.test}
        return {name: part for name, part in sets.items() if isinstance(part, VerificationSet)}

    def verification_set(self, name: str) -> VerificationSet:
        """One of them.

        Raises:
            ExportError: there is none of that name; says which there are.
        """
        sets = self.verification_sets()
        if name not in sets:
            known = f"there are {', '.join(sets)}" if sets else "it held out no identities"
            raise ExportError(f"has no held-out set {name!r}: {known}", self.folder)
        return sets[name]


def read_thresholds(path: Path) -> Thresholds:
    """Thresholds of a file; none where there is no file.

    Raises:
        ExportError: the file is damaged.
    """
    if not path.is_file():
        return Thresholds(source=str(path.parent))
    try:
        return Thresholds.from_dict(read_json(path).get("thresholds", {}), str(path.parent))
    except ValueError as error:
        raise error if isinstance(error, ExportError) else ExportError(str(error), path) from error


def _source(config: Mapping[str, Any]) -> dict[str, Any]:
    data = config.get("data")
    source = data.get("source") if isinstance(data, Mapping) else None
    return {str(key): value for key, value in source.items()} if isinstance(source, Mapping) else {}


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        if "_args_" in node or "_partial_" in node:
            yield "hydra"
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _targets(value)


def spread(table: Any, count: int) -> Tensor:
    """(n, C, H, W) uint8: some pictures of a table, evenly spread over it."""
    places = np.unique(np.linspace(0, len(table) - 1, min(count, len(table))).astype(np.int64))
    found: Tensor = table.fetch(places)
    return found if found.dtype == torch.uint8 else found.to(torch.uint8)
