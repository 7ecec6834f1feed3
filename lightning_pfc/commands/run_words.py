"""What the words of a config may be that no constructor looks at: those below no group, and groups as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from lightning_pfc.checked import check_call

_GROUPS = ("model", "backbone", "data", "data.source", "trainer", "predict")
_EVAL_GROUPS = ("settings", "calibrate", "embedder", "protocols")
_OPTIONAL_GROUPS = ("callbacks", "logger", "finetune")
_LOWEST = {  # of what Lightning takes as it is, and makes nonsense of
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "min_epochs": 0,
}
_LARGEST_SEED = 2**32 - 1  # numpy's


@dataclass
class _Words:
    seed: int
    choices: Literal["auto", "none", "made"] | None
    finetune: Mapping[str, Any] | None
    init_parts: Sequence[Literal["backbone", "neck", "head"]] | None
    fit: bool
    test: bool
    plots: bool


@dataclass
class _Predict:
    k: int


@dataclass
class _EvalWords:
    device: str
    plots: bool


def check_eval_words(config: DictConfig) -> None:
    """As :func:`check_run_words`, of ``pfc-eval``."""
    _check_groups(config, _EVAL_GROUPS)
    check_call(_EvalWords, config)


def check_run_words(config: DictConfig) -> None:
    """See that each is of the kind that it must be, before anything is made of them.

    Args:
        config: of ``pfc-train``, composed.

    Raises:
        ValueError: one is not; names it and the way out.
    """
    _check_groups(config, _GROUPS, _OPTIONAL_GROUPS)
    for group in ("callbacks", "logger"):
        for name, value in (config[group] or {}).items():
            if value is not None and not isinstance(value, DictConfig):
                raise ValueError(
                    f"{group}.{name}={value} stands in place of a group of keys; give one of them, "
                    f"{group}.{name}.KEY=VALUE, or {group}.{name}=null for none."
                )
    for name, least in _LOWEST.items():
        value = config.trainer.get(name)
        if isinstance(value, int | float) and not value >= least:
            raise ValueError(f"trainer.{name}={value} must be at least {least}.")
    check_call(_Words, config)
    check_call(_Predict, config.predict, "predict")
    if not 0 <= config.seed <= _LARGEST_SEED:
        raise ValueError(f"seed={config.seed} must lie between 0 and {_LARGEST_SEED}.")
    if config.predict.k < 1:
        raise ValueError(f"predict.k={config.predict.k} must be at least 1.")


def _check_groups(config: DictConfig, names: Sequence[str], optional: Sequence[str] = ()) -> None:
    for name in (*names, *optional):
        value = OmegaConf.select(config, name)
        if not isinstance(value, DictConfig) and not (value is None and name in optional):
            raise ValueError(f"{name}={value} stands in place of a group of keys; give one of them: {name}.KEY=VALUE.")
