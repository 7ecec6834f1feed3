"""What was still to come when a checkpoint was taken behind a batch: validation, and the end of the epoch."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.trainer.call import _call_lightning_module_hook

from lightning_pfc.strategies.resumed_place import ResumedRandomState

_SKIP = "increment_progress_to_evaluation_end"
"""How Lightning passes over a validation: it counts its batches as done, and draws a random number for its loader."""


def end_what_was_begun(trainer: Any, random_state: ResumedRandomState) -> None:
    """Validate and end the epoch, where a checkpoint was taken behind a batch that both would have followed.

    Lightning takes them for done: the epoch is neither validated nor reported, and early stopping, a schedule by a
    monitored value and the choice of the best checkpoint pass it over. Nothing for other checkpoints. Collectives:
    those of a validation.

    Args:
        trainer: with its loops reset, before the first batch; None: nothing is done.
        random_state: that of the checkpoint; a validation has it too.
    """
    if trainer is None:
        return
    loop, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop
    vars(batches.val_loop).pop(_SKIP, None)
    if not batches.restarted_on_train_batch_end:
        return
    progress = loop.epoch_progress
    ends = loop.restarted_mid_epoch and progress.total.processed == progress.total.started
    if ends:  # Lightning has counted it as over
        _count(progress, -1)
    if trainer._val_check_time_interval is None and batches._should_check_val_fx(loop._data_fetcher):
        with random_state.in_force():
            _validate(trainer)
    if ends:
        batches._batches_that_stepped += 1  # the step under which things are logged
        loop._restarting = False
        loop.on_advance_end()
        batches._batches_that_stepped -= 1  # it counts that one itself, later


def _validate(trainer: Any) -> None:
    """As the loop of an epoch does."""
    batches, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
    first = connector._first_loop_iter
    trainer.validating = True
    _call_lightning_module_hook(trainer, "on_validation_model_zero_grad")
    batches.val_loop.restarting = False
    batches.val_loop.run()
    setattr(batches.val_loop, _SKIP, lambda: None)
    trainer.training = True
    connector._first_loop_iter = first
    batches.update_lr_schedulers("step", update_plateau_schedulers=True)


def step_monitoring_schedules(trainer: Any) -> None:
    """Have schedules by a monitored value see the epoch of the checkpoint, and the one that goes on.

    Lightning steps them behind the hooks of an epoch's end, in which checkpoints are saved, and leaves them out in the
    first epoch after a resume, since it does not know the value. It is in the checkpoint
    (:class:`lightning_pfc.strategies.epoch_sums.EpochSums`).
    """
    if trainer is None:
        return
    loop, known = trainer.fit_loop, trainer.callback_metrics
    monitored = [c.monitor for c in trainer.strategy.lr_scheduler_configs if c.reduce_on_plateau]
    if not monitored or any(name not in known for name in monitored):
        if not loop.epoch_loop.batch_progress.is_last_batch:
            # An epoch under way will have the values at its end; and at the end of one in which it was restarted,
            # Lightning steps no schedule of epochs at all.
            loop._restarting = False
        return
    if loop.resumed_on_epoch_end or loop.restarted_on_epoch_end:
        loop.epoch_progress.current.completed -= 1
        loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        loop.epoch_progress.current.completed += 1
    loop._restarting = False


def _count(progress: Any, by: int) -> None:
    for each in (progress.total, progress.current):
        each.processed += by
        each.completed += by
