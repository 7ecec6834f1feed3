"""A start that is refused leaves no run folder: its few files say nothing that the message does not."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lightning_pfc.commands.errors import cause, is_the_users

_OF_A_START = frozenset(
    (".hydra", ".run.lock", "config.yaml", "identities", "overrides.yaml", "pfc-eval.log", "pfc-train.log", "run.json")
)


@contextlib.contextmanager
def no_folder_of_a_refused_start(folder: Path) -> Iterator[None]:
    """Take a run folder away again where the user is refused, unless there is more in it than any start writes.

    Args:
        folder: of the run; not there, or with the config that Hydra has written into it.
    """
    new = not os.path.lexists(folder) or _holds_a_start_alone(folder)
    try:
        yield
    except Exception as error:
        began = isinstance(cause(error), FloatingPointError)  # numbers diverged: it was trained
        if new and is_the_users(error) and not began and _is_first_process() and _holds_a_start_alone(folder):
            _remove(folder)
        raise


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for entry in list(folder.iterdir()):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if folder.resolve() != Path.cwd():
            folder.rmdir()


def _holds_a_start_alone(folder: Path) -> bool:
    try:
        return folder.is_dir() and not folder.is_symlink() and _OF_A_START.issuperset(os.listdir(folder))
    except OSError:
        return False


def _is_first_process() -> bool:
    return all(os.environ.get(name, "0") in ("", "0") for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
