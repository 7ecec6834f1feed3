"""What Lightning is told of this package when both are there: a strategy's name, and a better word about folders.

It runs while Lightning is being imported, often by a module of ours that is itself half imported: so nothing of this
package is needed before somebody makes the strategy or meets a folder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_pfc.names.strategy_names import add_names

if TYPE_CHECKING:
    from lightning_pfc.strategies.pfc import PartialFCStrategy


def register() -> None:
    """Make ``Trainer(strategy="pfc")``, ``"pfc_spawn"`` and ``"pfc_notebook"`` known; harmless twice."""
    from lightning.pytorch.strategies import StrategyRegistry

    add_names(StrategyRegistry, _make_strategy)
    _explain_folders()


def _make_strategy(**options: Any) -> PartialFCStrategy:
    from lightning_pfc.strategies.pfc import PartialFCStrategy

    return PartialFCStrategy(**options)


_make_strategy.makes_way = True  # type: ignore[attr-defined]


def _explain_folders() -> None:
    """Have Lightning say what to do about a folder where it can open files only, instead of "Is a directory".

    This is ``load_from_checkpoint`` of other modules, and ``ckpt_path=`` under other strategies. They have no place
    for a message of ours; nothing else about them is changed.
    """
    import lightning.fabric.plugins.io.torch_io as torch_io
    import lightning.pytorch.core.saving as saving

    for module in (saving, torch_io):
        load: Any = vars(module).get("pl_load")
        if load is not None and not getattr(load, "explains_folders", False):
            vars(module)["pl_load"] = _explaining(load)


def _explaining(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def pl_load(path_or_url: Any, *args: Any, **kwargs: Any) -> Any:
        from lightning_pfc.checkpoint.errors import CheckpointError
        from lightning_pfc.checkpoint.manifest import is_checkpoint_folder

        if isinstance(path_or_url, str | Path) and is_checkpoint_folder(path_or_url):
            raise CheckpointError(
                f"{path_or_url} is a checkpoint folder of several ranks, where a file is needed. In a Trainer use "
                f'strategy="pfc", also on one process; for load_from_checkpoint turn it into one file first: '
                f"pfc-ckpt merge {path_or_url} whole.ckpt"
            )
        return load(path_or_url, *args, **kwargs)

    pl_load.explains_folders = True  # type: ignore[attr-defined]
    return pl_load
