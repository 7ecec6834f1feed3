"""How the strategy saves, loads and goes on: through Lightning's own doors, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_pfc.optim.row_state import has_entry_per_class
from lightning_pfc.strategies.live_tensors import sharded_indices, take_out_of_file, unwrapped
from lightning_pfc.strategies.loading import CheckpointLoading
from lightning_pfc.strategies.resume_checks import (
    Differences,
    check_same_groups,
    check_same_optimizers,
    differing_hyper_parameters,
    sentence,
)
from lightning_pfc.strategies.resumed_epoch_end import end_what_was_begun, step_monitoring_schedules
from lightning_pfc.strategies.resumed_place import ResumedRandomState, begin_next_epoch, put_loaders_in_place
from lightning_pfc.strategies.training_options import differing_options, training_options


class CheckpointFolders(CheckpointLoading):
    """The part of :class:`PartialFCStrategy` that goes on from what was saved.

    Several ranks write a folder, each its own rows; one process writes Lightning's ordinary file. Either is read by any
    number of ranks. A model without a head has Lightning's ordinary checkpoints.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._random_state = ResumedRandomState()
        self._loaded_records: Any = None
        self._loaded_training: Any = None

    def _resume_from(self, own: Mapping[str, Any] | None, checkpoint: Mapping[str, Any], same_ranks: bool) -> None:
        own = own or {}
        self._loaded_records = own.get("optimizers")
        self._loaded_training = own.get("training")
        self._adopt_run(own)
        if "random_state" in own and same_ranks and self._fitting():
            self._random_state.take(own["random_state"], checkpoint)

    # -- optimizers and options

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore the optimizers; of the rows of an ordinary file, which holds all, each rank takes its own.

        Options that are configured in another way than they were come into force, and are said.

        Raises:
            CheckpointError: on every rank, if they are others than those of the checkpoint.
        """
        states = checkpoint["optimizer_states"]
        check_same_optimizers(checkpoint, self._loaded_records, self.optimizers)
        differences = Differences(self._loaded_records, states, self._configured)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            self._take_own_rows(optimizer, state)
            take_out_of_file(optimizer, state)
        check_same_groups(states, self.optimizers)
        options = [[dict(group) for group in optimizer.param_groups] for optimizer in self.optimizers]
        super().load_optimizer_state_dict(checkpoint)
        for optimizer, groups in zip(self.optimizers, options, strict=True):
            for group, configured in zip(optimizer.param_groups, groups, strict=False):
                for key in configured.keys() - group.keys():  # which the row-sparse form, or an older one, has not
                    group[key] = configured[key]
        differences.bring_into_force(self.optimizers)
        numbers = {id(optimizer): number for number, optimizer in enumerate(self.optimizers)}
        driven = [numbers.get(id(config.scheduler.optimizer), -1) for config in self.lr_scheduler_configs]
        differences.change_schedules(checkpoint.get("lr_schedulers", ()), driven)
        self._say_differences(checkpoint, differences.said)

    def _take_own_rows(self, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        for index, shard in sharded_indices(optimizer, self._iter_heads()):
            values = state["state"].get(index, {})
            for key, value in values.items():
                if shard.world_size > 1 and has_entry_per_class(unwrapped(optimizer), key, value, shard.num_classes):
                    values[key] = value[shard.start : shard.stop].clone()

    def _say_differences(self, checkpoint: Mapping[str, Any], of_optimizers: list[str]) -> None:
        module = self.lightning_module
        stored = checkpoint.get("hyper_parameters")
        if module is None or not isinstance(stored, Mapping):
            stored, module = {}, None
        said = of_optimizers + differing_hyper_parameters(stored, {} if module is None else dict(module.hparams))
        data, theirs = self._data_hyper_parameters(), checkpoint.get("datamodule_hyper_parameters")
        if data and isinstance(theirs, Mapping):
            said += [f"data {each}" for each in differing_hyper_parameters(theirs, data)]
        if said:
            rank_zero_warn(sentence(said))

    def _data_hyper_parameters(self) -> dict[str, Any]:
        data = getattr(self._trainer, "datamodule", None)
        return dict(data.hparams) if data is not None else {}

    def _say_training_options(self) -> None:
        """Once there are loaders, which know their batch."""
        before, self._loaded_training = self._loaded_training, None
        if before is not None and self._fitting():
            now = training_options(self._trainer, self._clip)
            if said := differing_options(before, now):
                rank_zero_warn(sentence(said))

    # -- the place in the run

    def on_train_start(self) -> None:
        """Random state of a checkpoint that was taken between two epochs, and what was to follow its last batch."""
        super().on_train_start()
        put_loaders_in_place(self._trainer)
        self._say_training_options()
        self._random_state.restore_at_start()
        end_what_was_begun(self._trainer, self._random_state)
        step_monitoring_schedules(self._trainer)
        begin_next_epoch(self._trainer)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Random state of a checkpoint that was taken within an epoch: the data loader has drawn its own by now."""
        super().on_train_batch_start(batch, batch_idx)
        self._random_state.restore()
        if self._last_link:
            self._last_link.settle()
        if self._saver is not None:
            self._saver.raise_error()

    def on_train_end(self) -> None:
        """Nothing is left half-written when ``fit`` returns."""
        super().on_train_end()
        self.wait_for_checkpoints()
        self._last_link.settle()
