"""Runs a function in a process of its own under an audit hook: what did it do that reading a file must not do?

A test names the function by its path and gives it named cases::

    cases = {"link": {"path": str(link)}}
    seen = watch("tests.unit.test_safety:read", cases, readable=[root], warm={"path": str(good)})
    assert seen["link"].offences == []
    assert seen["link"].error == "FormatError"

``warm`` are the arguments of a call on harmless input before the hook is set: it imports what is imported late. From
then on nothing may be opened outside ``readable`` (but Python's own modules), nothing written outside ``writable``, no
connection made, no process started, no library loaded, no code compiled or run that did not come from an installed
module. The hook sees Python's own calls only: for what C libraries open, plant a FIFO (who opens it hangs, and the
test fails by its time limit) or a secret that must not come back.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import resource
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import console

ROOT = Path(__file__).resolve().parents[1]
BOOT = "/proc/sys/kernel/random/boot_id"  # which start of which system, for the names of what is half-made

# Events that change a file system; the places of their paths among the arguments.
CHANGES = {
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.link": (0, 1),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.utime": (0,),
    "os.setxattr": (0,),
    "shutil.copyfile": (1,),
    "shutil.move": (0, 1),
    "shutil.rmtree": (0,),
    "shutil.unpack_archive": (1,),
    "tempfile.mkstemp": (0,),
    "tempfile.mkdtemp": (0,),
}
NEVER = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.startfile",
    "pty.spawn",
    "socket.connect",
    "socket.bind",
    "socket.sendto",
    "socket.getaddrinfo",
    "socket.gethostby",
    "urllib.Request",
    "http.client.",
    "ftplib.",
    "smtplib.",
    "ctypes.",
    "pickle.find_class",
    "cpython.run_",
    "webbrowser.",
)
# What torch compiles whenever a data loader hands out a batch: the type of a function's argument.
HARMLESS = ("torch.classes.profiler._RecordFunction",)
LISTS = ("os.listdir", "os.scandir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Seen:
    """What a call did.

    Attributes:
        offences: what it must not have done, one line each.
        error: name of the exception's class, ``""`` if it returned.
        message: of the exception.
        value: what it returned (as JSON).
        seconds: it took.
        grown: how many MiB the process's peak grew.
    """

    offences: list[str]
    error: str
    message: str
    value: Any
    seconds: float
    grown: float


def watch(
    function: str,
    cases: Mapping[str, Mapping[str, Any]],
    *,
    readable: Sequence[str | Path],
    writable: Sequence[str | Path] = (),
    warm: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    memory: int | None = None,
    timeout: float = 120,
) -> dict[str, Seen]:
    """Calls ``function`` once per case, all in one other process.

    Args:
        function: ``"package.module:name"``; what it returns must be JSON.
        cases: keyword arguments by the name of the case.
        readable: folders and files that may be read.
        writable: folders that may be written (and read).
        warm: keyword arguments of one or several calls before the hook is set; they must not fail.
        memory: bytes of address space that the process may have; None for any.
        timeout: seconds for everything; who hangs is ended with its stack shown.

    Raises:
        AssertionError: the process crashed or hung, or a warming call failed; with what it said.
    """
    task = {
        "function": function,
        "cases": {name: dict(arguments) for name, arguments in cases.items()},
        "readable": [os.path.realpath(path) for path in (*readable, *writable)],
        "writable": [os.path.realpath(path) for path in writable],
        "warm": [dict(warm)] if isinstance(warm, Mapping) else [dict(each) for each in warm],
        "memory": memory,
        "timeout": timeout,
    }
    done = console.run("tests.audit", input=json.dumps(task), timeout=timeout + 60)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"status {done.returncode} after {lines[-1:]}: {done.stderr[-4000:]}"
    return {name: Seen(**found) for name, found in (json.loads(line[1:]) for line in lines if line.startswith("="))}


@dataclass
class Hook:
    """The audit hook; it cannot be taken off again, so it is switched by ``on``."""

    readable: Sequence[str]
    writable: Sequence[str]
    on: bool = False
    offences: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = ("stdlib", "platstdlib", "purelib", "platlib")
        installed = [sysconfig.get_path(name) for name in names] + [entry for entry in sys.path if entry]
        self.program = [os.path.realpath(str(path)) for path in (*installed, ROOT, BOOT)]

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Notes what must not be."""
        if not self.on:
            return
        self.on = False  # looking at it raises events of its own
        try:
            if (offence := self._offence(event, arguments)) is not None:
                self.offences.append(offence)
        finally:
            self.on = True

    def _offence(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        text = f"{event}{tuple(str(argument)[:200] for argument in arguments)}"
        if event == "open":
            return None if self._may_open(arguments[0], arguments[2]) else text
        if event in LISTS:
            path = "." if arguments[0] is None else arguments[0]
            return None if self._inside(path, [*self.readable, *self.program]) else text
        if event in CHANGES:
            return None if all(self._inside(arguments[place], self.writable) for place in CHANGES[event]) else text
        if event == "compile":  # source and name; exec: a code object
            return None if self._is_program(arguments[1]) or any(word in text for word in HARMLESS) else text
        if event == "exec":
            return None if self._is_program(getattr(arguments[0], "co_filename", "")) else text
        return text if event.startswith(NEVER) else None

    def _may_open(self, path: Any, flags: int) -> bool:
        if isinstance(path, int):  # open already
            return True
        if flags & WRITING:
            return self._inside(path, self.writable)
        return self._inside(path, [*self.readable, *self.program])

    def _is_program(self, name: Any) -> bool:
        name = os.fsdecode(name) if name else ""
        return name.startswith("<frozen ") or (os.path.isabs(name) and self._inside(name, self.program))

    @staticmethod
    def _inside(path: Any, folders: Sequence[str]) -> bool:
        if isinstance(path, int):
            return True
        real = os.path.realpath(os.fsdecode(path))
        return any(real == folder or real.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)


def _peak(forget: bool = False) -> float:
    """MiB that this process has held at most; on Linux since it was told to forget, elsewhere ever."""
    try:
        if forget:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)  # macOS counts bytes


def _call(function: Any, arguments: dict[str, Any], hook: Hook) -> dict[str, Any]:
    hook.offences = []
    error = message = ""
    value = None
    before, start = _peak(forget=True), time.perf_counter()
    hook.on = True
    try:
        value = function(**arguments)
    except Exception as caught:
        error, message = type(caught).__name__, str(caught)
    finally:
        hook.on = False
    seconds = time.perf_counter() - start
    found = {"offences": hook.offences, "error": error, "message": message, "value": value}
    return {**found, "seconds": seconds, "grown": _peak() - before}


def main() -> None:
    """The other process: reads its task from standard input, prints a line per case."""
    task = json.load(sys.stdin)
    faulthandler.dump_traceback_later(task["timeout"], exit=True)
    module, name = task["function"].split(":")
    function = getattr(importlib.import_module(module), name)
    for arguments in task["warm"]:
        function(**arguments)
    if task["memory"]:
        resource.setrlimit(resource.RLIMIT_AS, (task["memory"], resource.getrlimit(resource.RLIMIT_AS)[1]))
    hook = Hook(task["readable"], task["writable"])
    sys.addaudithook(hook)
    for case, arguments in task["cases"].items():
        print(f"case {case}", flush=True)
        print("=" + json.dumps([case, _call(function, arguments, hook)]), flush=True)


if __name__ == "__main__":
    main()
