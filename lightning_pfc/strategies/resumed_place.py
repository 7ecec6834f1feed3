"""Where a training that goes on was: in its random numbers and in its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning_pfc.checkpoint.rng import random_state, restore_random_state


class ResumedRandomState:
    """The random state of a checkpoint, until the moment of training at which it was taken has come."""

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None
        self._within_epoch = False

    def take(self, state: dict[str, Any], checkpoint: Mapping[str, Any]) -> None:
        """Keep what a checkpoint has; its loops say whether it was saved within an epoch."""
        self._state = state
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
        self._within_epoch = not progress.get("is_last_batch", True)

    def restore_at_start(self) -> None:
        """Of a checkpoint that was taken between two epochs: before the data loader draws."""
        if not self._within_epoch:
            self.restore()

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Within, the generators are as they were; training goes on with what they are at the end."""
        kept, within = self._state is not None, self._within_epoch
        self.restore()
        yield
        if kept:
            self._state, self._within_epoch = random_state(), within

    def restore(self) -> None:
        """Set the generators, unless that is done: the data loader of a running epoch has drawn its own by now."""
        if self._state is not None:
            restore_random_state(self._state)
        self._state = None


def put_loaders_in_place(trainer: Any) -> None:
    """Give loaders the place in the data that a checkpoint has, if Lightning has not.

    It does so when it sets the data up. Had the model it done before the checkpoint was read, by asking for
    ``trainer.estimated_stepping_batches`` in ``configure_optimizers`` for one, then it never does, and the epoch
    would begin anew.
    """
    if trainer is None:
        return
    loop = trainer.fit_loop
    fetcher = loop._data_fetcher
    if loop.restarting and loop._combined_loader_states_to_load and fetcher is not None:
        loop._load_combined_loader_states()
        iter(fetcher)


def begin_next_epoch(trainer: Any) -> None:
    """Begin the epoch after one whose last batch a checkpoint was taken behind, if Lightning would not.

    It counts that epoch as over, but enters the next as one that is under way: without ``on_train_epoch_start``, and
    not counted as begun. A checkpoint within an epoch that comes later then looks as if it lay between two, and whoever
    goes on from that trains the epoch anew from its first batch.
    """
    if trainer is None:
        return
    loop, epochs = trainer.fit_loop, trainer.fit_loop.epoch_progress.total
    if loop.restarted_mid_epoch and epochs.processed == epochs.started:
        loop.reset_restart_stage()
