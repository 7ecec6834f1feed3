"""Lightning's ``ModelCheckpoint``, whose ``last.ckpt`` is that of the run that trains now, and written once."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_info
from typing_extensions import override

from lightning_pfc.checked import checked
from lightning_pfc.checkpoint.publish import give_second_name, run_of
from lightning_pfc.checkpoint.remote import is_address


@checked
class RunCheckpoint(ModelCheckpoint):
    """Takes the arguments of ``ModelCheckpoint`` and has its files, with three differences.

    With ``save_last=True``, ``last.ckpt`` is the last one also where a metric is watched. Lightning writes it only
    together with one of the best, so that a run that was killed would go on from its best epoch, however long ago.

    A checkpoint that is to be one of the best and the last is written once, and has two names by hard links: with the
    centers of 10^8 classes the second would take as long again, and as much room. Asynchronous saves write both, since
    the first is not there yet, and so does a file system without such links.

    Where an older run has left its ``last.ckpt`` in the folder, Lightning calls the new one ``last-v1.ckpt``, and what
    opens ``last.ckpt`` later finds the older run. Here the older one becomes ``last-v1.ckpt`` (or the next number that
    is free) when the new run saves for the first time. Whose a checkpoint is, its run id tells; without one, and at
    addresses, the names are Lightning's.
    """

    _just_saved: str | None = None  # in this hook
    _last_is_there = False  # it was written alone in this hook

    @override
    def _generate_state_key(self, **kwargs: Any) -> str:
        return f"ModelCheckpoint{kwargs!r}"  # its state may go on from ModelCheckpoint's, and the other way around

    @override
    def _save_topk_checkpoint(self, trainer: Any, monitor_candidates: Any) -> None:
        self._just_saved, self._last_is_there = None, False
        super()._save_topk_checkpoint(trainer, monitor_candidates)
        if self.save_last is True and self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, monitor_candidates)
            self._last_is_there = True  # Lightning now takes the step for saved, and asks for it again

    @override
    def _save_last_checkpoint(self, trainer: Any, monitor_candidates: Any) -> None:
        if self._last_is_there:
            self._last_is_there = False
            return
        if self.save_last:
            self._make_way(trainer, self.format_checkpoint_name(monitor_candidates, self.CHECKPOINT_NAME_LAST))
        super()._save_last_checkpoint(trainer, monitor_candidates)
        self._just_saved = None

    @override
    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        source, self._just_saved = self._just_saved, filepath
        if source is None or not self._has_second_name(trainer, source, filepath):
            super()._save_checkpoint(trainer, filepath)

    def _has_second_name(self, trainer: Any, source: str, path: str) -> bool:
        """Collective. A checkpoint that a thread is still writing is not there yet; then there are two."""
        if not hasattr(trainer.strategy, "run_id") or is_address(source) or is_address(path):
            return False
        linked = False
        if trainer.is_global_zero and os.path.exists(source) and source != path:
            linked = give_second_name(Path(source), Path(path))
        return bool(trainer.strategy.broadcast(linked))

    def _make_way(self, trainer: Any, path: str) -> None:
        """Collective in the first call of a run that is told nothing of a ``last.ckpt`` of its own."""
        run = getattr(trainer.strategy, "run_id", None)
        if run is None or path == self.last_model_path or is_address(path):
            return
        own = False
        if trainer.is_global_zero and os.path.lexists(path):
            owner = run_of(Path(path))
            own = owner == run
            if owner is not None and not own:
                _set_aside(Path(path), owner)
        if trainer.strategy.broadcast(own):
            self.last_model_path = path  # is replaced, and not counted on from


def _set_aside(path: Path, owner: str) -> None:
    names = (path.with_name(f"{path.stem}-v{number}{path.suffix}") for number in itertools.count(1))
    free = next(name for name in names if not os.path.lexists(name))
    path.rename(free)
    rank_zero_info(f"{path} was of an older run ({owner}); it is {free.name} now.")
