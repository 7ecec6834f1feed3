"""``pfc-train``; from Python the same is :func:`lightning_pfc.train`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from lightning_pfc.commands.hydra_command import run_application
from lightning_pfc.commands.imports import large_imports
from lightning_pfc.commands.output import may_be_cut_short
from lightning_pfc.config import compose
from lightning_pfc.distributed.jobs import adopt_step
from lightning_pfc.names.lazy import lazy_names
from lightning_pfc.runs.resuming import as_it_was, earlier_run

if TYPE_CHECKING:
    from lightning_pfc.commands.training import run, train

__all__ = ["main", "run", "train"]

_HOME = "lightning_pfc.commands.training"  # imports all that a run needs, which takes seconds
__getattr__, __dir__ = lazy_names(__name__, {"run": _HOME, "train": _HOME})


@may_be_cut_short
def main() -> None:
    """The console script."""
    run_application("pfc-train", "train", _work, prepare=_words, explain_more=_explain_launcher)


def _words() -> list[str]:
    adopt_step()
    earlier = earlier_run(sys.argv[1:])
    return sys.argv[1:] if earlier is None else earlier.words


def _work(config: DictConfig, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    with large_imports():
        from lightning_pfc.commands.training import run

    _join_lightning_log()
    earlier = earlier_run(sys.argv[1:])
    if earlier is not None:
        config = as_it_was(config, earlier, compose)
    return run(config, folder, overrides)


def _explain_launcher(error: BaseException) -> str | None:
    from lightning_pfc.commands.preflight import explain_launcher

    return explain_launcher(error)


def _join_lightning_log() -> None:
    """Let Lightning's messages go where Hydra sends all others: to the terminal once, and to the run folder."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


if __name__ == "__main__":
    main()
