"""Keys of a run's config that do nothing together with others, where no single class could notice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_pfc.commands.prediction import NUM_CLASSES
from lightning_pfc.ignored import warn_ignored


def warn_idle_keys(config: DictConfig) -> None:
    """Say of what was given that it changes nothing in this run.

    Args:
        config: of ``pfc-train``, composed.
    """
    trainer: Any = OmegaConf.to_container(config.trainer, resolve=True)
    _warn_of_clipping(trainer)
    if not config.fit:
        if config.finetune:
            warn_ignored("finetune=", "with fit=false nothing is trained.")
        if config.head.get("init") == "class_means":
            warn_ignored("head.init=class_means", "with fit=false nothing is trained.")
        for key in ("max_epochs", "max_steps"):
            if trainer.get(key) == 0:
                warn_ignored(f"trainer.{key}=0", "with fit=false nothing is trained.")
    if config.fit and config.finetune and _changes_nothing(config):
        warn_ignored(
            "finetune=base",
            "all of the backbone is trained as ever; choose frozen, head_first, last_blocks, layer_decay, l2_sp, "
            "distill or lora, or set one of its keys.",
        )
    if config.init_parts is not None and not config.init_from:
        warn_ignored(f"init_parts={list(config.init_parts)}", "without init_from= there is nothing to take them from.")
    if config.predict.k != NUM_CLASSES and config.predict.source is None:
        warn_ignored(f"predict.k={config.predict.k}", "without predict.source= nothing is predicted.")
    if config.fit and not config.test and config.plots and not config.logger:
        warn_ignored("plots=true", "with test=false and no logger there is nothing to draw.")


def _changes_nothing(config: DictConfig) -> bool:
    """Whether a choice of ``finetune`` leaves everything as it would be without."""
    idle = {"frozen_epochs": 0, "trained_blocks": None, "batch_norm": None, "l2_sp": 0, "distill": 0, "lora": None}
    rates = (config.optimizer.get(key) for key in ("backbone_lr_scale", "layer_decay"))
    chosen = all(config.finetune.get(key, value) == value for key, value in idle.items())
    return chosen and all(rate in (None, 1) for rate in rates)


def _warn_of_clipping(trainer: Mapping[str, Any]) -> None:
    if trainer.get("gradient_clip_val") is not None:
        return
    way_out = "without trainer.gradient_clip_val nothing is clipped."
    if trainer.get("gradient_clip_algorithm") is not None:
        warn_ignored(f"trainer.gradient_clip_algorithm={trainer['gradient_clip_algorithm']}", way_out)
    strategy = trainer.get("strategy")
    if isinstance(strategy, Mapping) and strategy.get("clip", "global") != "global":
        warn_ignored(f"trainer.strategy.clip={strategy['clip']}", way_out)
