"""Where derived files live between runs, and how several processes build one without treading on each other."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_pfc.storage.whole_files import errors_of

_log = logging.getLogger(__name__)

CACHE_VARIABLE = "PFC_CACHE_DIR"


def cache_dir(override: str | os.PathLike[str] | None = None) -> Path:
    """The folder for what can be made again: the argument, else ``$PFC_CACHE_DIR``, else the platform's own place.

    Args:
        override: a folder that takes precedence; ``~`` is expanded.
    """
    if override is not None:
        return Path(override).expanduser()
    if value := os.environ.get(CACHE_VARIABLE):
        return Path(value).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "lightning-pfc"


def build_once(target: Path, build: Callable[[Path], None], *, poll: float = 5.0) -> Path:
    """Make the folder ``target`` unless it is there; safe with many processes and nodes on a shared file system.

    A finished folder appears under its name by one rename, so whoever sees it sees all of it. The lock only saves work:
    where a file system has no locks, or after a lock was lost, two builders make the same folder and one of them wins.
    The lock is the kernel's, so a process that dies leaves none behind.

    Args:
        target: the folder to make.
        build: fills a new, empty folder that it is given. It may keep finished parts elsewhere and use them again.
        poll: seconds between two looks while another process builds.

    Raises:
        OSError: if the folder cannot be written; the message names the variable that moves it.
    """
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(target.with_name(target.name + ".lock")), timeout=poll)
    except OSError as error:
        raise _unwritable(target, error) from error
    waited = 0.0
    while not target.exists():
        started = time.monotonic()
        try:
            lock.acquire()
        except Timeout:
            waited += time.monotonic() - started
            _log.info("Waiting for another process that is building %s (%.0f s so far).", target, waited)
            continue
        except (NotImplementedError, OSError) as error:
            if isinstance(error, PermissionError):
                raise _unwritable(target, error) from error
            _log.warning("No file locks at %s (%s): building without one.", target.parent, error)
        try:
            if not target.exists():
                _build(target, build)
        finally:
            lock.release()
    return target


def _build(target: Path, build: Callable[[Path], None]) -> None:
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with errors_of(temporary, target):
            temporary.mkdir(parents=True)
            build(temporary)
            try:
                temporary.rename(target)
            except OSError:
                if not target.exists():  # else: another builder, without a lock, was faster; its folder is as good
                    raise
    except PermissionError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unwritable(target: Path, error: OSError) -> OSError:
    return OSError(
        f"The cache folder {target.parent} cannot be written ({error}). Set cache_dir=..., or the environment variable "
        f"{CACHE_VARIABLE}, to a folder that can."
    )
