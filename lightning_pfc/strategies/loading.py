"""How the strategy loads what any number of ranks saved, and whose rows it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.fabric.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_pfc.checkpoint import CheckpointError, is_checkpoint_folder, load_folder
from lightning_pfc.checkpoint.identities import Identities, in_folder, in_values
from lightning_pfc.checkpoint.manifest import unfinished_folder
from lightning_pfc.checkpoint.publish import newest
from lightning_pfc.checkpoint.reader import CheckpointReader
from lightning_pfc.checkpoint.remote import fetched
from lightning_pfc.checkpoint.save_load import shared_errors
from lightning_pfc.checkpoint.single import OWN, load_file
from lightning_pfc.checkpoint.weights import load_weights
from lightning_pfc.strategies.already_seen import warn_of_seen
from lightning_pfc.strategies.live_tensors import LiveTensors
from lightning_pfc.strategies.moved_rows import find_moves, moved_rows, on_all_ranks
from lightning_pfc.strategies.saving import CheckpointSaving
from lightning_pfc.strategies.whose import check_identities, names_in_loaders

# where the classes come from that a checkpoint is given to; else from those that are fitted
_LOOPS = {TrainerFn.VALIDATING: "validate_loop", TrainerFn.TESTING: "test_loop"}


class CheckpointLoading(CheckpointSaving):
    """The part of :class:`PartialFCStrategy` that loads: a folder or a file, written by any number of ranks."""

    _fall_back = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._match: str | None = None
        self._opened = "the checkpoint"
        self._unmatched: tuple[str, Identities | None] | None = None

    @property
    def fall_back(self) -> bool:
        """Whether a damaged checkpoint is passed over, with a warning, for the newest other one beside it."""
        return self._fall_back

    @fall_back.setter
    def fall_back(self, fall_back: bool) -> None:
        self._fall_back = fall_back

    def _resume_from(self, own: Mapping[str, Any] | None, checkpoint: Mapping[str, Any], same_ranks: bool) -> None:
        """Keep what this package added to a checkpoint, until training goes on from it.

        Args:
            own: what was added; None in a checkpoint that was made without this package.
            checkpoint: all else.
            same_ranks: whether as many ranks wrote it.
        """
        raise NotImplementedError

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

    def _one_before(self, path: Path, tried: list[Path]) -> Path | None:
        found: list[Any] = [None]
        if self.is_global_zero:
            other = newest(path.parent, other_than=tried, run=self._run_id)
            found = [str(other) if other is not None else None]
        if self.world_size > 1:
            dist.broadcast_object_list(found, group_src=0, group=self.comm.agreement.group)
        return Path(found[0]) if found[0] is not None else None

    def _try_load(self, path: Path, weights_only: bool | None) -> tuple[dict[str, Any] | None, CheckpointError | None]:
        try:
            return self._load(path, weights_only), None
        except CheckpointError as error:
            return None, error

    def _load(self, path: Path, weights_only: bool | None) -> dict[str, Any]:
        load = self._load_folder if path.is_dir() else self._load_file
        checkpoint, same_ranks = load(path, True if weights_only is None else weights_only)
        self._resume_from(checkpoint.pop(OWN, None), checkpoint, same_ranks)
        self._opened = str(path)
        return dict(checkpoint)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give the module its weights.

        Raises:
            CheckpointError: on every rank, in one line, if they are of another architecture.
        """
        assert self.lightning_module is not None
        load_weights(self.lightning_module, checkpoint["state_dict"], self._opened, strict=strict)

    def _load_folder(self, path: Path, weights_only: bool) -> tuple[dict[str, Any], bool]:
        if not is_checkpoint_folder(path):
            raise unfinished_folder(path)
        origins = self._match_identities(path, lambda: in_folder(path))
        targets = LiveTensors(self.lightning_module, self._iter_heads(), fitting=self._fitting())
        given = {} if origins is None else self._moved_rows(path, origins, targets)[1]
        checkpoint, manifest, same_ranks = load_folder(path, self.comm, targets, weights_only=weights_only, given=given)
        self._adopt_run(manifest.info)
        return checkpoint, same_ranks

    def _load_file(self, path: Path, weights_only: bool) -> tuple[dict[str, Any], bool]:
        checkpoint = self._read_file(path, weights_only)
        origins = self._match_identities(path, lambda: in_values(checkpoint.get(OWN), str(path)))
        if origins is not None:
            checkpoint = self._with_moved_rows(path, origins)
        return checkpoint, self.world_size == 1

    def _read_file(self, path: Path, weights_only: bool) -> dict[str, Any]:
        if not self._has_plain_files():
            return super().load_checkpoint(path, weights_only=weights_only)
        with shared_errors(self.comm, path):  # each rank compares a part of the checksums
            return load_file(path, weights_only=weights_only, share=(self.comm.rank, self.comm.world_size))

    # -- whose the rows are

    def _match_identities(self, path: Path, stored: Callable[[], Identities | None]) -> Tensor | None:
        """See, on rank 0, whose the centers are. Collective.

        Returns:
            The row that each class of the data has, (C,) int64, where ``match="names"`` finds some in other places.

        Raises:
            CheckpointError: on every rank, naming the first class that is another.
        """
        origins = self._unmatched = None
        asked = self._match != "position" and not self._predicting()
        by_name = self._match == "names" and asked
        with shared_errors(self.comm, path):
            here = self._identities(_LOOPS.get(self._trainer.state.fn, "fit_loop")) if asked else None
            there = stored() if asked and self.is_global_zero else None
            if self.is_global_zero and by_name:
                origins = find_moves(str(path), there, here, dict(self._iter_heads()))
            elif asked and here is None:
                self._unmatched = str(path), there
            elif self.is_global_zero and here is not None:
                if there is None:
                    rank_zero_info(f"{path} does not say whose its classes are: they are taken by their position.")
                check_identities(str(path), there, here)
            warn_of_seen(str(path), there, self._trainer)
        return on_all_ranks(origins, self.comm) if by_name else None

    def process_dataloader(self, dataloader: object) -> object:
        """Compare the names of its data set's classes, where a hook made the loader after the checkpoint was read.

        Collective in that case: one exchange on the CPU.

        Raises:
            CheckpointError: on every rank, naming the first class that is another.
        """
        judging = self._fitting() and not self._trainer.training  # on people of their own, perhaps
        if self._unmatched is not None and not judging:
            path, there = self._unmatched
            with shared_errors(self.comm, Path(path)):
                names = names_in_loaders(dataloader, [head for _, head in self._iter_heads()])
                check_identities(path, there, self._as_identities(names))
        return super().process_dataloader(dataloader)

    def teardown(self) -> None:
        """Forget whose the classes were."""
        self._unmatched = None
        super().teardown()

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
