"""A start that is refused leaves no run folder: its few files say nothing that the message does not."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lightning_pfc.commands.errors import cause, is_the_users
from lightning_pfc.runs.lock import LOCK, Lock

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_OF_HYDRA = frozenset((".hydra", "pfc-eval.log", "pfc-train.log"))
_OF_A_START = _OF_HYDRA | {LOCK, "config.yaml", "identities", "overrides.yaml", "run.json"}


@contextlib.contextmanager
def no_folder_of_a_refused_start(folder: Path) -> Iterator[None]:
    """Take a run folder away again where the user is refused: one that was not there, of which nobody else makes use.

    Args:
        folder: of the run; not there, or with what Hydra has written into it. With anything else in it, it stays.
    """
    new = not os.path.lexists(folder) or _holds_only(folder, _OF_HYDRA)
    try:
        yield
    except Exception as error:
        began = isinstance(cause(error), FloatingPointError)  # numbers diverged: it was trained
        if new and is_the_users(error) and not began and _is_first_process() and _holds_only(folder, _OF_A_START):
            _remove(folder)
        raise


def _remove(folder: Path) -> None:
    lock = Lock(folder)
    with contextlib.suppress(OSError, ValueError):  # another run has begun there meanwhile: it is its own now
        try:
            lock.take(None)
        except OSError as error:
            if error.errno not in _NO_ROOM:  # for a lock: then no other run can begin there either
                raise
        try:
            for entry in list(folder.iterdir()):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            if folder.resolve() != Path.cwd():
                folder.rmdir()
        finally:
            lock.give_back()


def _holds_only(folder: Path, names: frozenset[str]) -> bool:
    try:
        return folder.is_dir() and not folder.is_symlink() and names.issuperset(os.listdir(folder))
    except OSError:
        return False


def _is_first_process() -> bool:
    return all(os.environ.get(name, "0") in ("", "0") for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
