"""How the strategy saves and loads: through Lightning's own doors, in folders that any number of ranks can read."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from lightning_pfc.checkpoint import CheckpointError, is_checkpoint_folder, load_folder, save_folder
from lightning_pfc.checkpoint.identities import KEY, Identities, in_folder, in_values
from lightning_pfc.checkpoint.publish import newest, remove, replace_link, settle_last
from lightning_pfc.checkpoint.reader import CheckpointReader
from lightning_pfc.checkpoint.remote import fetched, is_address
from lightning_pfc.checkpoint.rng import random_state, restore_random_state
from lightning_pfc.checkpoint.save_load import shared_errors
from lightning_pfc.checkpoint.single import OWN, load_file, save_file
from lightning_pfc.checkpoint.split_tree import split_tree
from lightning_pfc.distributed import ClassShard, Comm
from lightning_pfc.distributed.class_rows import class_rows, declare_class_rows
from lightning_pfc.heads.partial_fc import PartialFC, iter_heads
from lightning_pfc.optim.row_state import has_entry_per_class
from lightning_pfc.strategies.background_saver import BackgroundSaver
from lightning_pfc.strategies.live_tensors import (
    MODEL,
    OPTIMIZERS,
    LiveTensors,
    declared_state,
    sharded_indices,
    take_out_of_file,
    unwrapped,
)
from lightning_pfc.strategies.moved_rows import find_moves, moved_rows, on_all_ranks
from lightning_pfc.strategies.resumed import (
    Differences,
    check_same_groups,
    check_same_optimizers,
    describe_optimizers,
    differing_hyper_parameters,
    sentence,
)
from lightning_pfc.strategies.training_options import differing_options, training_options
from lightning_pfc.strategies.whose import check_identities, names_of_data


class CheckpointFolders(DDPStrategy):
    """The part of :class:`PartialFCStrategy` that saves and loads.

    Several ranks write a folder, each its own rows; one process writes Lightning's ordinary file. Either is read by any
    number of ranks. A model without a head has Lightning's ordinary checkpoints.
    """

    _async_save = False
    _fall_back = False
    _clip: Literal["global", "backbone"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._random_state: dict[str, Any] | None = None
        self._random_state_after_start = False
        self._guards: dict[Path, str] = {}
        self._saver: BackgroundSaver | None = None
        self._configured: list[dict[str, Any]] = []
        self._loaded_records: Any = None
        self._loaded_training: Any = None
        self._match: str | None = None
        self._run_id: str | None = None
        self._names: tuple[Any, Identities] | None = None

    @property
    def fall_back(self) -> bool:
        """Whether a damaged checkpoint is passed over, with a warning, for the newest other one beside it."""
        return self._fall_back

    @fall_back.setter
    def fall_back(self, fall_back: bool) -> None:
        self._fall_back = fall_back

    @property
    def run_id(self) -> str:
        """Of the run, which every checkpoint keeps: given, or that of the checkpoint it goes on from, or a new one."""
        if self._run_id is None:
            self._run_id = secrets.token_hex(8)
        return self._run_id

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self._run_id = run_id

    @property
    def comm(self) -> Comm:
        """Who the heads talk to."""
        raise NotImplementedError

    def _is_set_up(self) -> bool:
        raise NotImplementedError

    def _iter_heads(self) -> Iterator[tuple[str, PartialFC]]:
        return iter_heads(self.lightning_module) if self.lightning_module is not None else iter(())

    def _attach_heads(self) -> None:
        raise NotImplementedError

    def _has_heads(self) -> bool:
        return next(self._iter_heads(), None) is not None

    # -- saving

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

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; collective. It appears under its name when it is complete, or not at all.

        Raises:
            CheckpointError: on every rank, if any rank could not write its part.
        """
        if not self._has_heads():
            super().save_checkpoint(checkpoint, filepath, storage_options=storage_options)
            return
        own: dict[str, Any] = {"random_state": random_state(), "optimizers": self._configured}
        if self._fitting():
            own["training"] = training_options(self._trainer, self._clip)
        checkpoint = {**checkpoint, OWN: own}
        if self.world_size == 1:
            checkpoint[OWN]["run"] = self.run_id
            checkpoint[OWN]["by_class"] = self._paths_by_class(checkpoint)  # for pfc-ckpt
            if (names := self._identities()) is not None:
                checkpoint[OWN][KEY] = names.as_values()
            if storage_options is not None or is_address(filepath) or not self._has_plain_files():
                super().save_checkpoint(checkpoint, filepath, storage_options=storage_options)
            else:
                save_file(Path(filepath).absolute(), checkpoint)
            return
        if storage_options is not None or is_address(filepath):
            raise CheckpointError(
                f"{filepath} cannot be saved: ranks write folders on a file system that all of them see. Use a local "
                "or shared path, without storage_options."
            )
        path = Path(filepath).absolute()
        rest, tensors = split_tree(checkpoint, self._shard_of)
        info = {name: checkpoint[name] for name in ("epoch", "global_step", "pytorch-lightning_version")}
        info["run"] = self.run_id
        if self._saver is not None:
            self._saver.save(path, rest, tensors, info, self._identities())
        else:
            self.keep_last(path, None)
            save_folder(path, rest, tensors, self.comm, info, identities=self._identities())
            self.keep_last(path, path)

    def _identities(self) -> Identities | None:
        """The names of the classes, found once; whoever writes a file of them is the only one to go through them."""
        trainer = self._trainer
        names = names_of_data(trainer, [head for _, head in self._iter_heads()])
        if names is None:
            return None
        if self._names is None or self._names[0] is not names:
            self._names = names, Identities.of(names)
        return self._names[1]

    @property
    def _trainer(self) -> Any:
        return getattr(self.lightning_module, "_trainer", None)

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

    def keep_last(self, path: Path, target: Path | None) -> None:
        """Have a second link to the newest checkpoint for as long as ``last.ckpt`` may be missing or lead nowhere.

        Args:
            path: what is being saved.
            target: where the link leads; None: to the newest checkpoint that is there, if any.
        """
        trainer = self._trainer
        if not self.is_global_zero or trainer is None:
            return
        for callback in trainer.checkpoint_callbacks:
            if not isinstance(callback, ModelCheckpoint) or not callback.save_last or callback.dirpath is None:
                continue
            name = callback.CHECKPOINT_NAME_LAST
            if "{" in name or Path(callback.dirpath).absolute() != path.parent or not path.parent.is_dir():
                continue
            leads_to = target or newest(path.parent, run=self.run_id)
            if leads_to is not None:
                guard = path.parent / f"{name}-saving{callback.FILE_EXTENSION}"
                replace_link(guard, leads_to)
                self._guards[guard] = name

    def _settle_last(self) -> None:
        for guard, name in list(self._guards.items()):  # to which a thread that writes may add meanwhile
            if settle_last(guard, name):
                self._guards.pop(guard, None)

    # -- loading

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """False: in the same order as under DDP, before ``on_fit_start``; the heads know their rows by then."""
        return False

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a folder or a file, written by any number of ranks. Collective; never runs code from it by default.

        Raises:
            CheckpointError: on every rank, naming the damaged file; with ``fall_back`` only if no other one is left.
        """
        self.wait_for_checkpoints()
        if not self._is_set_up():  # a checkpoint that somebody looks at, such as Lightning's own connector
            with fetched(checkpoint_path) as path:
                return load_file(path, weights_only=True if weights_only is None else weights_only)
        self._attach_heads()  # those that configure_model made
        with fetched(checkpoint_path) as path:
            return self._load_or_fall_back(path, weights_only)

    def _load_or_fall_back(self, path: Path, weights_only: bool | None) -> dict[str, Any]:
        tried: list[Path] = []
        found: dict[str, Any] | None = None
        while found is None:
            found, error = self._try_load(path, weights_only)
            if error is None:
                continue
            tried += [path, path.resolve()]
            other = self._one_before(path, tried) if self._fall_back else None
            if other is None:
                raise error
            rank_zero_warn(f"{error} Falling back to {other}.")
            path = other
        return found

    def _try_load(self, path: Path, weights_only: bool | None) -> tuple[dict[str, Any] | None, CheckpointError | None]:
        try:
            return self._load(path, weights_only), None
        except CheckpointError as error:
            return None, error

    def _load(self, path: Path, weights_only: bool | None) -> dict[str, Any]:
        weights_only = True if weights_only is None else weights_only
        if not path.is_dir():
            checkpoint = self._load_file(path, weights_only)
            origins = self._match_identities(path, lambda: in_values(checkpoint.get(OWN), str(path)))
            if origins is not None:
                checkpoint = self._with_moved_rows(path, origins)
            own = self.world_size == 1
        else:
            if not is_checkpoint_folder(path):
                raise CheckpointError(
                    f"{path} is a folder without manifest.json: it is not a checkpoint of this package, or not a "
                    "complete one. Resume from another checkpoint."
                )
            origins = self._match_identities(path, lambda: in_folder(path))
            targets = LiveTensors(self.lightning_module, self._iter_heads(), fitting=self._fitting())
            given = {} if origins is None else self._moved_rows(path, origins, targets)[1]
            loaded, manifest, own = load_folder(path, self.comm, targets, weights_only=weights_only, given=given)
            checkpoint = loaded
            self._adopt_run(manifest.info)
        added = checkpoint.pop(OWN, None)
        self._loaded_records = None if added is None else added.get("optimizers")
        self._loaded_training = None if added is None else added.get("training")
        self._adopt_run(added or {})
        if added is not None and "random_state" in added and own and self._fitting():
            self._random_state = added["random_state"]
            progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
            self._random_state_after_start = not progress.get("is_last_batch", True)
        return dict(checkpoint)

    def _load_file(self, path: Path, weights_only: bool) -> dict[str, Any]:
        if not self._has_plain_files():
            return super().load_checkpoint(path, weights_only=weights_only)
        with shared_errors(self.comm, path):  # each rank compares a part of the checksums
            return load_file(path, weights_only=weights_only, share=(self.comm.rank, self.comm.world_size))

    def _match_identities(self, path: Path, stored: Callable[[], Identities | None]) -> Tensor | None:
        """See, on rank 0, whose the centers are. Collective.

        Returns:
            The row that each class of the data has, (C,) int64, where ``match="names"`` finds some in other places.

        Raises:
            CheckpointError: on every rank, naming the first class that is another.
        """
        origins = None
        by_name = self._match == "names" and not self._predicting()
        with shared_errors(self.comm, path):
            here = self._identities() if self._match != "position" and not self._predicting() else None
            if self.is_global_zero and by_name:
                origins = find_moves(str(path), stored(), here, dict(self._iter_heads()))
            elif self.is_global_zero and here is not None:
                there = stored()
                if there is None:
                    rank_zero_info(f"{path} does not say whose its classes are: they are taken by their position.")
                check_identities(str(path), there, here)
        return on_all_ranks(origins, self.comm) if by_name else None

    def _moved_rows(
        self, path: Path, origins: Tensor, targets: LiveTensors
    ) -> tuple[CheckpointReader, dict[str, Tensor]]:
        with shared_errors(self.comm, path):
            source = CheckpointReader(path, check=False)
            wanted = filter(targets.wants, source.tensors)
            return source, moved_rows(source, origins, dict(self._iter_heads()), targets.live, wanted)

    def _with_moved_rows(self, path: Path, origins: Tensor) -> dict[str, Any]:
        """The file of one process, with this rank's rows by name in it."""
        source, moved = self._moved_rows(
            path, origins, LiveTensors(self.lightning_module, self._iter_heads(), fitting=self._fitting())
        )
        return source.joined({key: moved.get(key, source.whole(key)) for key in source.tensors})

    def _adopt_run(self, facts: Mapping[str, Any]) -> None:
        if self._run_id is None and self._fitting() and isinstance(facts.get("run"), str):
            self._run_id = facts["run"]

    def _predicting(self) -> bool:
        trainer = self._trainer
        return trainer is None or trainer.state.fn == TrainerFn.PREDICTING

    def _one_before(self, path: Path, tried: list[Path]) -> Path | None:
        found: list[Any] = [None]
        if self.is_global_zero:
            other = newest(path.parent, other_than=tried, run=self._run_id)
            found = [str(other) if other is not None else None]
        if self.world_size > 1:
            dist.broadcast_object_list(found, group_src=0, group=self.comm.agreement.group)
        return Path(found[0]) if found[0] is not None else None

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
            for index, shard in sharded_indices(optimizer, self._iter_heads()):
                values = state["state"].get(index, {})
                for key, value in values.items():
                    if shard.world_size > 1 and has_entry_per_class(
                        unwrapped(optimizer), key, value, shard.num_classes
                    ):
                        values[key] = value[shard.start : shard.stop].clone()
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

    def setup_optimizers(self, trainer: Any) -> None:
        """Make the optimizers, and keep how they were configured."""
        super().setup_optimizers(trainer)
        self._configured = describe_optimizers(self.optimizers)

    def _fitting(self) -> bool:
        trainer = self._trainer
        return trainer is not None and trainer.state.fn == TrainerFn.FITTING

    # -- what happens between

    def on_train_start(self) -> None:
        """Random state of a checkpoint that was taken between two epochs."""
        super().on_train_start()
        self._put_loaders_in_place()
        self._say_training_options()
        if self._random_state is not None and not self._random_state_after_start:
            self._restore_random_state()

    def _put_loaders_in_place(self) -> None:
        """Give loaders the place in the data that a checkpoint has, if Lightning has not.

        It does so when it sets the data up. Had the model it done before the checkpoint was read, by asking for
        ``trainer.estimated_stepping_batches`` in ``configure_optimizers`` for one, then it never does, and the epoch
        would begin anew.
        """
        trainer = self._trainer
        if trainer is None:
            return
        loop = trainer.fit_loop
        fetcher = loop._data_fetcher
        if loop.restarting and loop._combined_loader_states_to_load and fetcher is not None:
            loop._load_combined_loader_states()
            iter(fetcher)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Random state of a checkpoint that was taken within an epoch: the data loader has drawn its own by now."""
        super().on_train_batch_start(batch, batch_idx)
        if self._random_state is not None:
            self._restore_random_state()
        if self._guards:
            self._settle_last()
        if self._saver is not None:
            self._saver.raise_error()

    def _restore_random_state(self) -> None:
        if self._random_state is not None:
            restore_random_state(self._random_state)
        self._random_state = None

    def on_train_end(self) -> None:
        """Nothing is left half-written when ``fit`` returns."""
        super().on_train_end()
        self.wait_for_checkpoints()
        self._settle_last()

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
            group = dist.new_group(backend="gloo", timeout=timeout)
            if not isinstance(group, int):  # what torch gives to those outside of a group
                self._saver = BackgroundSaver(self, group)

    def _stop_saver(self) -> None:
        if self._saver is not None:
            self._saver.close()
            self._saver = None
