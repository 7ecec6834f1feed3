"""How the strategy saves: through Lightning's own doors, in folders that any number of ranks can read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_pfc.checkpoint import CheckpointError, save_folder
from lightning_pfc.checkpoint.identities import KEY
from lightning_pfc.checkpoint.publish import remove
from lightning_pfc.checkpoint.remote import is_address
from lightning_pfc.checkpoint.rng import random_state
from lightning_pfc.checkpoint.single import OWN, save_file
from lightning_pfc.checkpoint.split_tree import split_tree
from lightning_pfc.distributed import ClassShard
from lightning_pfc.distributed.aside import aside
from lightning_pfc.distributed.class_rows import class_rows, declare_class_rows
from lightning_pfc.optim.row_state import has_entry_per_class
from lightning_pfc.strategies.background_saver import BackgroundSaver
from lightning_pfc.strategies.last_link import LastLink
from lightning_pfc.strategies.live_tensors import MODEL, OPTIMIZERS, declared_state, sharded_indices, unwrapped
from lightning_pfc.strategies.resume_checks import describe_optimizers
from lightning_pfc.strategies.training_options import training_options
from lightning_pfc.strategies.with_heads import WithHeads


class CheckpointSaving(WithHeads):
    """The part of :class:`PartialFCStrategy` that saves.

    Several ranks write a folder, each its own rows; one process writes Lightning's ordinary file.
    """

    _async_save = False
    _has_said_accumulated = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last_link = LastLink()
        self._saver: BackgroundSaver | None = None
        self._configured: list[dict[str, Any]] = []

    # -- what is saved

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state, this rank's rows marked as such.

        Raises:
            ValueError, FloatingPointError: on every rank, if the last batch had a bad value: it must not be saved.
        """
        for _, head in self._iter_heads():
            head.check()
        state: dict[str, Any] = super().lightning_module_state_dict()
        for name, head in self._iter_heads():
            for tensor in head.sharded_tensors():
                if head.shard.world_size > 1:
                    declare_class_rows(state[f"{name}.{tensor}"], head.shard)
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state, this rank's rows marked as such."""
        state: dict[str, Any] = super().optimizer_state(optimizer)
        for index, shard in sharded_indices(optimizer, self._iter_heads()):
            if index in state["state"] and shard.world_size > 1:
                state["state"][index] = declared_state(optimizer, state["state"][index], shard)
        return state

    def setup_optimizers(self, trainer: Any) -> None:
        """Make the optimizers, and keep how they were configured."""
        super().setup_optimizers(trainer)
        self._configured = describe_optimizers(self.optimizers)

    def _own_state(self) -> dict[str, Any]:
        """What this package adds to a checkpoint of Lightning."""
        own: dict[str, Any] = {"random_state": random_state(), "optimizers": self._configured}
        if self._fitting():
            own["training"] = training_options(self._trainer, self._clip)
            self._say_accumulated()
        return own

    def _say_accumulated(self) -> None:
        loop = self._trainer.fit_loop
        if not self._has_said_accumulated and loop.epoch_loop.batch_idx >= 0 and loop._should_accumulate():
            self._has_said_accumulated = True
            rank_zero_warn(
                f"A checkpoint is saved behind batch {loop.epoch_loop.batch_idx} of the epoch, within a step of "
                f"accumulate_grad_batches={self._trainer.accumulate_grad_batches}: gradients are in no checkpoint, so "
                "a run that goes on from it makes that step of the batches that are left. Save behind a step: "
                "ModelCheckpoint(every_n_train_steps=...) does, train_time_interval does not."
            )

    def _shard_of(self, key: str, tensor: Tensor) -> ClassShard | None:
        record = class_rows(tensor)
        if record is not None:
            return record.shard
        # Copies of the weights that callbacks keep (averages) have the names of what they are copies of.
        for name, head in self._iter_heads():
            for own in head.sharded_tensors():
                place = f"{name}.{own}"
                if (key == place or key.endswith(f".{place}")) and tensor.shape[:1] == (head.shard.num_local,):
                    return head.shard
        return None

    def _paths_by_class(self, checkpoint: Mapping[str, Any]) -> list[str]:
        """Where in a checkpoint of one process the tensors with a row per class are."""
        heads = list(self._iter_heads())
        found = [f"{MODEL}{name}.{tensor}" for name, head in heads for tensor in head.sharded_tensors()]
        states = checkpoint.get("optimizer_states", ())
        for number, (optimizer, state) in enumerate(zip(self.optimizers, states, strict=False)):
            for index, shard in sharded_indices(optimizer, self._iter_heads()):
                for key, value in state["state"].get(index, {}).items():
                    if has_entry_per_class(unwrapped(optimizer), key, value, shard.num_local):
                        found.append(f"{OPTIMIZERS}{number}/state/{index}/{key}")
        return found

    # -- where and how

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; collective. It appears under its name when it is complete, or not at all.

        Raises:
            CheckpointError: on every rank, if any rank could not write its part.
        """
        if not self._has_heads():
            super().save_checkpoint(checkpoint, filepath, storage_options=storage_options)
            return
        checkpoint = {**checkpoint, OWN: self._own_state()}
        if self.world_size == 1:
            self._save_file(checkpoint, filepath, storage_options)
        elif storage_options is not None or is_address(filepath):
            raise CheckpointError(
                f"{filepath} cannot be saved: ranks write folders on a file system that all of them see. Use a local "
                "or shared path, without storage_options."
            )
        else:
            self._save_folder(checkpoint, Path(filepath).absolute())

    def _save_file(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any) -> None:
        checkpoint[OWN]["run"] = self.run_id
        checkpoint[OWN]["by_class"] = self._paths_by_class(checkpoint)  # for pfc-ckpt
        if (names := self._identities()) is not None:
            checkpoint[OWN][KEY] = names.as_values()
        if storage_options is not None or is_address(filepath) or not self._has_plain_files():
            super().save_checkpoint(checkpoint, filepath, storage_options=storage_options)
        else:
            save_file(Path(filepath).absolute(), checkpoint)

    def _save_folder(self, checkpoint: dict[str, Any], path: Path) -> None:
        rest, tensors = split_tree(checkpoint, self._shard_of)
        info = {name: checkpoint[name] for name in ("epoch", "global_step", "pytorch-lightning_version")}
        info["run"] = self.run_id
        if self._saver is not None:
            self._saver.save(path, rest, tensors, info, self._identities())
        else:
            self.keep_last(path, None)
            save_folder(path, rest, tensors, self.comm, info, identities=self._identities())
            self.keep_last(path, path)

    def _has_plain_files(self) -> bool:
        """Whether the user has not given a plugin of their own for files."""
        return type(self.checkpoint_io) is TorchCheckpointIO

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Remove a checkpoint, after those that are still being written."""
        path = Path(filepath).absolute()
        if self._saver is not None and self._saver.remove_later(path):
            return
        if path.is_dir() and not path.is_symlink():
            if self.is_global_zero:
                remove(path)
        else:
            super().remove_checkpoint(filepath)

    def keep_last(self, path: Path, target: Path | None) -> None:
        """Have a second link to the newest checkpoint for as long as ``last.ckpt`` may be missing or lead nowhere.

        Args:
            path: what is being saved.
            target: where the link leads; None: to the newest checkpoint that is there, if any.
        """
        if self.is_global_zero and self._trainer is not None:
            self._last_link.keep(self._trainer, path, target, self.run_id)

    # -- while training goes on

    def wait_for_checkpoints(self) -> None:
        """Return when all checkpoints are written; at once unless they are saved asynchronously.

        Raises:
            CheckpointError: if one of them could not be written.
        """
        if self._saver is not None:
            self._saver.wait()

    def _start_saver(self) -> None:
        """Called once the process group is up; collective."""
        if self._async_save and self.world_size > 1 and self._saver is None:
            timeout = self.comm.agreement.timeout
            group = aside(lambda: dist.new_group(backend="gloo", timeout=timeout))
            if not isinstance(group, int):  # what torch gives to those outside of a group
                self._saver = BackgroundSaver(self, group)

    def _stop_saver(self) -> None:
        if self._saver is not None:
            self._saver.close()
            self._saver = None
