"""Checkpoints of several ranks that are written while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor

from lightning_pfc.checkpoint import save_folder
from lightning_pfc.checkpoint.identities import Identities
from lightning_pfc.checkpoint.publish import remove
from lightning_pfc.checkpoint.split_tree import ClassRows
from lightning_pfc.distributed import Comm


class Saving(Protocol):
    """What is needed of the strategy."""

    @property
    def comm(self) -> Comm:
        """Who the heads talk to."""

    @property
    def is_global_zero(self) -> bool:
        """Whether this is rank 0."""

    def keep_last(self, path: Path, target: Path | None) -> None:
        """Have a second link to the newest checkpoint, see the strategy."""


class BackgroundSaver:
    """Writes checkpoints in a thread, one after the other, through a group that nobody else uses."""

    def __init__(self, strategy: Saving, group: dist.ProcessGroup) -> None:
        self._strategy, self._group = strategy, group
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: list[Future[None]] = []

    def save(
        self,
        path: Path,
        rest: Any,
        tensors: Mapping[str, Tensor | ClassRows],
        info: Mapping[str, Any],
        names: Identities | None,
    ) -> None:
        """Copy the tensors, and have them written; what was handed over before is there by then.

        Raises:
            CheckpointError: if an earlier one could not be written.
        """
        self.wait()  # one copy of the weights waits at a time
        copies: dict[str, Tensor | ClassRows] = {
            key: ClassRows(_copy(item.tensor), item.shard) if isinstance(item, ClassRows) else _copy(item)
            for key, item in tensors.items()
        }
        self._strategy.keep_last(path, None)
        if self._strategy.is_global_zero:
            # ModelCheckpoint links to the checkpoint at once, within a folder that the thread may not have made yet.
            with suppress(OSError):  # which the thread will meet again, and tell every rank
                path.parent.mkdir(parents=True, exist_ok=True)
        self._pending.append(self._thread.submit(self._write, path, rest, copies, info, names))

    def _write(
        self,
        path: Path,
        rest: Any,
        tensors: Mapping[str, Tensor | ClassRows],
        info: Mapping[str, Any],
        names: Identities | None,
    ) -> None:
        save_folder(path, rest, tensors, self._strategy.comm, info, self._group, names)
        self._strategy.keep_last(path, path)

    def remove_later(self, path: Path) -> bool:
        """Have the thread remove a checkpoint once those before it are there; False if nothing is pending."""
        if all(future.done() for future in self._pending):
            return False
        if self._strategy.is_global_zero:
            self._pending.append(self._thread.submit(remove, path))
        return True

    def raise_error(self) -> None:
        """Raise what went wrong in the thread, if it is known by now."""
        done = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        for future in done:
            future.result()

    def wait(self) -> None:
        """Return when all are written.

        Raises:
            CheckpointError: if one could not be.
        """
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def close(self) -> None:
        """End the thread, after what it still has to do."""
        self._thread.shutdown(wait=True)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True) if tensor.device.type != "cpu" else tensor.detach().clone()
