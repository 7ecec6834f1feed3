"""The console scripts as typed, each in a process of its own; all are forked from one that has imported what they need.

``python -m lightning_pfc.commands.train`` spends seconds in imports before it reads its first word. Here one process
imports what the commands need, once, and is forked for each run: the run has its own process, words, environment,
working folder and output, ends as the interpreter ends, and starts at once. What tests the start itself (imports,
console scripts, launchers, signals) starts an interpreter instead.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.machinery
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_pfc.commands.imports import large_imports

ROOT = Path(__file__).parents[1]
# What commands import when they run, not only when they are imported.
IMPORTS = (
    "torchvision",
    "tensorboard",
    "lightning_pfc.commands.ckpt_work",
    "lightning_pfc.commands.data_work",
    "lightning_pfc.commands.embed",
    "lightning_pfc.commands.eval",
    "lightning_pfc.commands.judging",
    "lightning_pfc.commands.plan_work",
    "lightning_pfc.commands.prediction",
    "lightning_pfc.commands.preflight",
    "lightning_pfc.commands.training",
    "lightning_pfc.plots",
    "lightning_pfc.runs.resuming",
)


class Console:
    """The process that is forked; started by the first run."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    @property
    def pids(self) -> set[int]:
        """The process that stays, for who looks for processes that were left behind."""
        return set() if self._process is None else {self._process.pid}

    def run(
        self,
        module: str,
        *words: str,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 280,
        input: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """``python -m module words``, for a module with a ``main()``.

        Args:
            module: name of the module.
            words: of the command line.
            cwd: folder to run in; the one of this process by default.
            env: all variables of the run; those of this process by default.
            timeout: seconds, after which the run is killed.
            input: what the run reads from its standard input.

        Raises:
            subprocess.TimeoutExpired: the run was killed.
        """
        if sys.platform != "linux":  # elsewhere libraries do not survive a fork
            command = [sys.executable, "-m", module, *words]
            return subprocess.run(
                command, cwd=cwd, env=env, input=input, capture_output=True, text=True, timeout=timeout, check=False
            )
        process = self._started()
        assert process.stdin is not None
        with tempfile.TemporaryDirectory(prefix="console-") as folder:
            given, out, err = (Path(folder, name) for name in ("in", "out", "err"))
            given.write_text(input)
            asked = {
                "module": module,
                "words": words,
                "cwd": str(cwd or os.getcwd()),
                "env": dict(os.environ if env is None else env),
                "in": str(given),
                "out": str(out),
                "err": str(err),
                "seconds": timeout,
            }
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
            code = self._answer()
            stdout, stderr = (path.read_text(errors="replace") for path in (out, err))
        if code is None:
            raise subprocess.TimeoutExpired([module, *words], timeout, stdout, stderr)
        return subprocess.CompletedProcess([module, *words], code, stdout, stderr)

    def _answer(self) -> int | None:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError("the process that runs console scripts has ended.")
        except BaseException:
            self.close()  # a run may be under way: only a new process is in a known state
            raise
        code: int | None = json.loads(line)
        return code

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            where = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
            command = [sys.executable, "-m", "tests.console"]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=where)
            atexit.register(self.close)
        return self._process

    def close(self) -> None:
        """End the process; the next run starts a new one."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.kill()
            process.wait()
            process.stdout.close()


CONSOLE = Console()
run = CONSOLE.run


def _serve() -> Callable[[], Any] | None:
    """Fork for each line that comes, until no more do; the child returns what it is to run."""
    with large_imports():  # runs need not go over it for garbage, nor copy its pages
        for name in IMPORTS:
            importlib.import_module(name)
        importlib.import_module("lightning_pfc.config").compose([])  # the parser of words learns its grammar
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        raise RuntimeError(f"imports started threads, which a fork would lose: {len(threads)}.")
    answers = os.fdopen(os.dup(1), "w")
    while line := sys.stdin.readline():
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            answers.close()
            return _become(asked)
        print(json.dumps(_wait(pid, asked["seconds"])), file=answers, flush=True)
    return None


def _wait(pid: int, seconds: float) -> int | None:
    """The exit status as ``subprocess`` gives it; None for one that had to be killed."""

    def kill(number: int, frame: Any) -> None:
        late.append(pid)
        os.kill(pid, signal.SIGKILL)

    late: list[int] = []
    before = signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return None if late else code


def _become(asked: dict[str, Any]) -> Callable[[], Any]:
    """Make this process the one that was asked for."""
    for target, path, how in (
        (0, asked["in"], os.O_RDONLY),
        (1, asked["out"], os.O_WRONLY | os.O_CREAT),
        (2, asked["err"], os.O_WRONLY | os.O_CREAT),
    ):
        source = os.open(path, how)
        os.dup2(source, target)
        os.close(source)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    module = importlib.import_module(asked["module"])
    sys.argv = [str(module.__file__), *asked["words"]]
    # What asks how this process was started (Lightning, to start more of its kind) hears of the module.
    sys.modules[__name__].__spec__ = importlib.util.find_spec(asked["module"])
    main: Callable[[], Any] = module.main
    return main


if __name__ == "__main__":
    _main = _serve()
    if _main is not None:
        sys.exit(_main())
