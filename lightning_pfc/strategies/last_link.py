"""A second link to the newest checkpoint, for as long as ``last.ckpt`` may be missing or lead nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_pfc.checkpoint.publish import newest, replace_link, settle_last


class LastLink:
    """The second link of each folder of checkpoints, made before a save and settled after it. For rank 0."""

    def __init__(self) -> None:
        self._guards: dict[Path, str] = {}

    def __bool__(self) -> bool:
        return bool(self._guards)

    def keep(self, trainer: Any, path: Path, target: Path | None, run_id: str) -> None:
        """Have the link lead to a checkpoint that is there.

        Args:
            trainer: whose callbacks say which links there are.
            path: what is being saved.
            target: where the link leads; None: to the newest checkpoint of the run that is there, if any.
            run_id: of the run.
        """
        for callback in trainer.checkpoint_callbacks:
            if not isinstance(callback, ModelCheckpoint) or not callback.save_last or callback.dirpath is None:
                continue
            name = callback.CHECKPOINT_NAME_LAST
            if "{" in name or Path(callback.dirpath).absolute() != path.parent or not path.parent.is_dir():
                continue
            leads_to = target or newest(path.parent, run=run_id)
            if leads_to is not None:
                guard = path.parent / f"{name}-saving{callback.FILE_EXTENSION}"
                replace_link(guard, leads_to)
                self._guards[guard] = name

    def settle(self) -> None:
        """Remove the links whose ``last.ckpt`` leads somewhere by now."""
        for guard, name in list(self._guards.items()):  # to which a thread that writes may add meanwhile
            if settle_last(guard, name):
                self._guards.pop(guard, None)
