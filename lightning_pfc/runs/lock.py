"""The file that says who is at work in a run folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from lightning_pfc.processes.launching import saying_what_it_waits_for
from lightning_pfc.storage.file_lock import ask_for_lock
from lightning_pfc.storage.makers import is_running, this_host, this_kernel

LOCK = ".run.lock"
_EVERY, _SILENT, _PATIENCE = 20.0, 120.0, 15.0  # seconds: of the pulse, without it, and for a process of ours to end
_MOST = 1 << 16


class Lock:
    """One process at a time has it.

    What the system locks ends with the process. Where hosts do not see each other's locks, or a file system has none,
    the file's age tells; where a file server keeps the lock of a host that has died, its age and the job do.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._file: int | None = None
        self._done = threading.Event()

    def take(self, job: str | None) -> None:
        """Take the lock. One that an earlier start of the same job has is waited for: that is about to end.

        Raises:
            ValueError: naming the job and host that have it, and the way out.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with saying_what_it_waits_for(f"waiting for an earlier start of this job to leave {self.path.parent}"):
            while not self._try(job, time.monotonic() - started):
                time.sleep(0.5)
        threading.Thread(target=self._pulse, daemon=True, name="run lock").start()

    def give_back(self) -> None:
        """Let others have it; harmless if it was never taken."""
        file, self._file = self._file, None
        if file is not None:
            self._done.set()
            with contextlib.suppress(OSError):
                os.ftruncate(file, 0)
            os.close(file)

    def _try(self, job: str | None, waited: float) -> bool:
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0))
        try:
            granted = ask_for_lock(file)
            if not self._is_there(file):
                return False
            holder = _read(file)
            if granted is not False and not self._is_held(file, holder, job, granted is not None):
                me = {"job": job, "host": socket.gethostname(), "pid": os.getpid()}
                me |= {"place": this_host(), "kernel": this_kernel()}  # names of hosts may be the same
                os.ftruncate(file, 0)
                os.lseek(file, 0, os.SEEK_SET)  # not os.pwrite, which Windows lacks
                os.write(file, json.dumps(me).encode())
                self._file, file = file, -1
                return True
            age, own = self._age(file), job is not None and holder.get("job") == job
            if own and not _is_here(holder) and age >= _SILENT:
                self.path.unlink(missing_ok=True)  # its host is gone, and the file server keeps the lock for it
            elif not own or waited > (_PATIENCE if _is_here(holder) else _SILENT + 2 * _EVERY):
                raise ValueError(self._taken(holder, age, granted is False))
            return False
        finally:
            if file >= 0:
                os.close(file)

    def _is_there(self, file: int) -> bool:
        """Whether the file still has its name: who had it may have taken it away with its folder."""
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return False

    def _is_held(self, file: int, holder: dict[str, Any], job: str | None, has_locks: bool) -> bool:
        """Whether somebody has it although the system does not say so."""
        if not holder:
            return False
        if has_locks and holder.get("kernel") == this_kernel():
            return False
        if _is_here(holder):
            if not _may_run(holder.get("pid")):
                return False
        elif job is not None and holder.get("job") == job:  # a job comes back when it has ended
            return False
        return self._age(file) < _SILENT

    def _age(self, file: int) -> float:
        """Seconds since a sign of life, by the clock of the file system; also of a file that claims to be of later."""
        now = time.time()
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=self.path.parent) as probe:
            now = os.fstat(probe.fileno()).st_mtime
        return abs(now - os.fstat(file).st_mtime)

    def _taken(self, holder: dict[str, Any], age: float, locked: bool) -> str:
        if not holder:
            return (
                f"{self.path.parent} is in use by another run, which has begun this moment. Give another output_dir=."
            )
        who = f"job {holder['job']}" if holder.get("job") else "another run"
        host, ends = holder.get("host"), f"; {_SILENT:.0f} s without a sign of life count as its end"
        if locked:
            ends = "" if _is_here(holder) else f"; if host {host} is gone, delete {self.path}"
        return (
            f"{self.path.parent} is in use by {who} on host {host} (process {holder.get('pid')}), which gave a sign of "
            f"life {age:.0f} s ago. Give another output_dir=, or end that run first{ends}."
        )

    def _pulse(self) -> None:
        while not self._done.wait(_EVERY):
            with contextlib.suppress(OSError):
                os.utime(self.path)


def _read(file: int) -> dict[str, Any]:
    try:
        os.lseek(file, 0, os.SEEK_SET)
        found = json.loads(os.read(file, _MOST) or b"null")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and "host" in found else {}


def _is_here(holder: dict[str, Any]) -> bool:
    return holder.get("place") == this_host()


def _may_run(pid: object) -> bool:
    """Of this host; on Windows, where nobody can be asked, yes."""
    return os.name == "nt" or not isinstance(pid, int) or pid <= 0 or is_running(pid)
