"""A checkpoint appears and disappears whole: it is prepared and taken apart under a name that nobody looks for."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_pfc.checkpoint.archive import check_archive, load_archive
from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.manifest import Manifest, is_checkpoint_folder
from lightning_pfc.storage.makers import is_left_behind, this_host
from lightning_pfc.storage.regular import check_replaceable, open_file

_SAVING, _REMOVING = "saving", "removing"
_OWN = "lightning_pfc"  # as in single.py
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux
_HERE = -100  # AT_FDCWD


def prepare_folder(target: Path) -> Path:
    """Make the hidden folder in which ``target`` is going to be written, beside it; sweep up what died runs left.

    Raises:
        CheckpointError: if it cannot be made.
    """
    folder = prepare_file(target)
    try:
        folder.mkdir()
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}.") from error
    return folder


def prepare_file(target: Path) -> Path:
    """A hidden name beside ``target``, for the file that is going to have its name; sweep up as above.

    Raises:
        CheckpointError: if the folder around it cannot be made.
    """
    try:
        check_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}.") from error
    return _hidden(target, _SAVING)


def publish(folder: Path, target: Path) -> None:
    """Give a finished folder or file its name, in one step, in place of whatever had it; safe against loss of power."""
    sync_folder(folder)
    if os.path.lexists(target):
        if _exchange(folder, target):
            _discard(folder)
        else:  # no such call here: for an instant the name stands for nothing
            old = _hidden(target, _REMOVING)
            os.rename(target, old)
            os.rename(folder, target)
            _delete(old)
    else:
        os.rename(folder, target)
    sync_folder(target.parent)


def give_second_name(source: Path, target: Path) -> bool:
    """Let a finished checkpoint, file or folder, have another name as well, in place of whatever had it: hard links.

    Either may be removed without the other.

    Returns:
        False where this file system has no such links; nothing has changed then.
    """
    made = _hidden(target, _SAVING)
    try:
        if source.is_dir():
            shutil.copytree(source, made, copy_function=os.link)
        else:
            os.link(source, made)
    except OSError:  # shutil.Error is one
        shutil.rmtree(made, ignore_errors=True)
        return False
    publish(made, target)
    return True


def remove(path: Path) -> None:
    """Remove a checkpoint; it vanishes at once, its files a little later. Links lead to the newest one left then."""
    if os.path.lexists(path):
        _lead_links_away(path)
        _discard(path)


def _discard(path: Path) -> None:
    hidden = _hidden(path, _REMOVING)
    os.rename(path, hidden)
    _delete(hidden)


def replace_link(link: Path, target: Path) -> None:
    """Make or change a symbolic link in one step."""
    made = _hidden(link, _SAVING)
    os.symlink(os.path.relpath(target, link.parent), made)
    os.replace(made, link)


def newest(folder: Path, other_than: Sequence[Path] = (), run: str | None = None) -> Path | None:
    """The complete checkpoint folder that was taken last, by global step and then by time.

    Args:
        folder: where they lie.
        other_than: those that are not looked at.
        run: the id of a run, where only its own count.
    """
    found: list[tuple[int, float, Path]] = []
    for path in folder.iterdir():
        if path.is_symlink() or path.name.startswith(".") or path in other_than or not is_checkpoint_folder(path):
            continue
        with contextlib.suppress(CheckpointError, OSError):
            info = Manifest.read(path).info
            if run in (None, info.get("run")):
                found.append((int(info.get("global_step", -1)), path.stat().st_mtime, path))
    return max(found)[2] if found else None


def newest_of_any_kind(folders: Iterable[Path], run: str | None = None) -> Path | None:
    """The complete checkpoint that training can go on from and that was taken last, a folder or a file of Lightning's.

    Damaged ones are passed over, and so are those with weights only, and those of other runs where an id is given.
    """
    found: list[tuple[int, float, Path]] = []
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_symlink() or path.name.startswith("."):
                continue
            with contextlib.suppress(Exception):  # whatever is wrong with it, there may be another one
                step, owner = _step_and_run(path)
                if step >= 0 and run in (None, owner):
                    found.append((step, path.stat().st_mtime, path))
    return max(found)[2] if found else None


def run_of(path: Path) -> str | None:
    """The id of the run that has made a checkpoint; None if it does not say, or cannot be read."""
    with contextlib.suppress(Exception):
        return _step_and_run(path)[1]
    return None


def _step_and_run(path: Path) -> tuple[int, str | None]:
    """-1 for what training cannot go on from."""
    if is_checkpoint_folder(path):
        info = Manifest.read(path).info
        return int(info["global_step"]), info.get("run")
    if path.suffix != ".ckpt" or not path.is_file():
        return -1, None
    with open_file(path) as file:
        check_archive(file, os.fstat(file.fileno()).st_size)
    content = load_archive(path, mmap=True)
    own = content.get(_OWN)
    step = int(content["global_step"]) if "loops" in content else -1
    return step, own.get("run") if isinstance(own, dict) else None


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _lead_links_away(path: Path) -> None:
    """Before a checkpoint goes: a run that ends in the next instant must still find one behind ``last.ckpt``."""
    links = [p for p in path.parent.iterdir() if p.is_symlink() and _points_to(p, path)]
    if not links:
        return
    other = newest(path.parent, other_than=[path], run=run_of(path))
    for link in links:
        if other is not None and _points_to(link, path):  # still: training goes on, and changes links, meanwhile
            replace_link(link, other)


def _points_to(link: Path, path: Path) -> bool:
    try:
        return os.path.normpath(link.parent / os.readlink(link)) == os.path.normpath(path)
    except OSError:  # it is gone
        return False


def _hidden(target: Path, purpose: str) -> Path:
    """A name beside ``target`` that does not contain its name: nobody who looks for checkpoints may take it for one."""
    return target.with_name(f".pfc-{purpose}-{this_host()}-{os.getpid()}-{secrets.token_hex(4)}")


def _sweep(folder: Path) -> None:
    """Delete what dead processes have left half-done: those of this machine at once, those of others after a day."""
    for path in folder.glob(".pfc-*-*-*-*"):
        kind, _, rest = path.name.removeprefix(".pfc-").partition("-")
        *host, pid, _ = rest.split("-")
        if kind in (_SAVING, _REMOVING) and pid.isdigit() and is_left_behind(path, "-".join(host), int(pid)):
            _delete(path)


def _delete(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(call(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0)


def settle_last(guard: Path, last_name: str) -> bool:
    """Drop the guard link beside ``last.ckpt`` once that leads to a checkpoint at least as new.

    Args:
        guard: a link such as ``last-saving.ckpt``, which ``ckpt_path="last"`` finds as well.
        last_name: how the names of last checkpoints begin.

    Returns:
        Whether the guard is gone.
    """
    if not guard.is_symlink():
        return True
    try:
        guarded = guard.stat().st_mtime_ns
    except OSError:
        guard.unlink(missing_ok=True)  # it leads nowhere: nothing is lost
        return True
    for path in guard.parent.glob(f"{last_name}*{guard.suffix}"):
        if path == guard or path.name.startswith("."):
            continue
        with contextlib.suppress(OSError):
            if path.stat().st_mtime_ns >= guarded:
                guard.unlink(missing_ok=True)
                return True
    return False
