"""``pfc-eval``; from Python the same is :func:`evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from lightning_pfc.commands.hydra_command import run_application
from lightning_pfc.commands.imports import large_imports
from lightning_pfc.commands.output import may_be_cut_short
from lightning_pfc.names.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_pfc.commands.judging import evaluate, run

__all__ = ["evaluate", "main", "run"]

_HOME = "lightning_pfc.commands.judging"  # imports all that a model needs, which takes seconds
__getattr__, __dir__ = lazy_names(__name__, {"evaluate": _HOME, "run": _HOME})


@may_be_cut_short
def main() -> None:
    """The console script."""
    run_application("pfc-eval", "eval", _work)


def _work(config: DictConfig, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    with large_imports():
        from lightning_pfc.commands.judging import run

    return run(config, folder, overrides)


if __name__ == "__main__":
    main()
