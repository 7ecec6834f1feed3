"""The Trainer of ``pfc-train``, with its callbacks and loggers, as a config says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, ModelSummary
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from lightning_utilities.core.rank_zero import rank_zero_warn
from omegaconf import DictConfig, OmegaConf

from lightning_pfc.callbacks import Summary
from lightning_pfc.checked import check_call
from lightning_pfc.distributed.jobs import restart_count
from lightning_pfc.transfer import ClassMeans, InitFrom
from lightning_pfc.transfer.sources import find_source


def make_callbacks(config: DictConfig) -> list[Callback]:
    """All callbacks, those that begin a run before those that copy the model."""
    return [*_beginning(config), *_callbacks(config)]


def make_trainer(config: DictConfig, callbacks: list[Callback], folder: Path) -> L.Trainer:
    """The Trainer.

    Args:
        config: as it was composed.
        callbacks: of :func:`make_callbacks`.
        folder: of the run.

    Raises:
        ValueError: for what a Trainer refuses, and for a sweep whose processes would each run the whole sweep.
    """
    words: Any = OmegaConf.to_container(config.trainer, resolve=True)
    check_call(L.Trainer, words, "trainer")
    loggers: list[Logger] = _instantiate_each(config.logger)
    own_summary = config.trainer.get("enable_model_summary", True) and not any(
        isinstance(callback, ModelSummary) for callback in callbacks
    )
    trainer: L.Trainer = instantiate(
        config.trainer,
        callbacks=[*callbacks, *([Summary()] if own_summary else [])],
        logger=loggers or False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        default_root_dir=str(folder),
        **({"enable_model_summary": False} if own_summary else {}),
        _convert_="all",
    )
    _refuse_sweep_over_children(trainer)
    return trainer


def _beginning(config: DictConfig) -> list[Callback]:
    """What a run begins with: weights, then centers from them."""
    callbacks: list[Callback] = []
    if config.fit and config.init_from:
        if not config.ckpt_path and not restart_count():
            find_source(str(config.init_from))  # what is not there is said before a folder is made
        callbacks.append(InitFrom(str(config.init_from), config.init_parts and list(config.init_parts)))
    if config.fit and config.head.get("init") == "class_means":
        callbacks.append(ClassMeans())
    if config.fit and config.finetune:
        callbacks.append(instantiate(config.finetune))
        if not (config.init_from or config.ckpt_path or config.backbone.pretrained):
            rank_zero_warn("finetune= is for weights that exist: give init_from= or backbone.pretrained=true.")
    return callbacks


def _callbacks(config: DictConfig) -> list[Callback]:
    callbacks: list[Callback] = _instantiate_each(config.callbacks)
    unwanted: list[type[Callback]] = []  # a Trainer refuses callbacks that have nothing to do
    if not config.trainer.get("enable_progress_bar", True):
        unwanted.append(LightningProgressBar)
    if not any((config.logger or {}).values()):
        unwanted.append(LearningRateMonitor)
    return [callback for callback in callbacks if not isinstance(callback, tuple(unwanted))]


def _instantiate_each(group: DictConfig | None) -> list[Any]:
    return [instantiate(node, _convert_="all") for node in (group or {}).values() if node]


def _refuse_sweep_over_children(trainer: L.Trainer) -> None:
    """Lightning's launcher runs the command line again in each child: here, the whole sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN or trainer.world_size == 1:
        return
    strategy = trainer.strategy
    environment = strategy.cluster_environment if isinstance(strategy, DDPStrategy) else None
    if environment is not None and not environment.creates_processes_externally:
        devices = trainer.num_devices
        raise ValueError(
            f"trainer.devices={devices} in a sweep (-m): each process that the trainer starts would run the whole "
            f"sweep again. Start the processes outside: torchrun --nproc-per-node={devices} $(which pfc-train) -m ..., "
            "or srun; or sweep with trainer.devices=1."
        )
