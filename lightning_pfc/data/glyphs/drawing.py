"""Processes that draw parts of a font set side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any


def draw_all(jobs: Sequence[dict[str, Any]], workers: int, parts: Path) -> Generator[int, None, None]:
    """Draw, and tell how many pictures each finished job has; no process is left when this ends, however it does.

    Args:
        jobs: as ``draw.py`` reads them.
        workers: processes, at most.
        parts: folder of the results, for the message.

    Raises:
        RuntimeError: a process failed.
    """
    # Largest first, dealt out in turn: the processes end at about the same time.
    todo = sorted(jobs, key=lambda job: (job["start"] - job["stop"], job["target"]))
    workers = max(1, min(workers, len(todo)))
    done: Queue[str] = Queue()
    processes: list[subprocess.Popen[str]] = []
    try:
        for share in [todo[w::workers] for w in range(workers)] if todo else []:
            processes.append(_start())
            Thread(target=_feed, args=(processes[-1], share), daemon=True).start()
            Thread(target=_listen, args=(processes[-1], done), daemon=True).start()
        size_of = {job["target"]: job["stop"] - job["start"] for job in todo}
        while size_of:
            finished = _next(done)
            if finished is None:
                _raise_if_failed(processes, parts)
            else:
                yield size_of.pop(finished, 0)
    finally:
        _end(processes)


def _start() -> subprocess.Popen[str]:
    script = Path(__file__).with_name("draw.py")
    return subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _next(done: Queue[str]) -> str | None:
    try:
        return done.get(timeout=0.2)
    except Empty:
        return None


def _feed(process: subprocess.Popen[str], share: list[dict[str, Any]]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write("".join(json.dumps(job) + "\n" for job in share))
        process.stdin.close()
    except (BrokenPipeError, ValueError):
        pass  # the process has died; its exit status tells


def _listen(process: subprocess.Popen[str], done: Queue[str]) -> None:
    assert process.stdout is not None
    try:
        for line in process.stdout:
            done.put(line.strip())
    except ValueError:
        pass  # closed by the parent, which is leaving


def _raise_if_failed(processes: Sequence[subprocess.Popen[str]], parts: Path) -> None:
    for process in processes:
        if process.poll() not in (None, 0):
            assert process.stderr is not None
            raise RuntimeError(
                f"A process that draws glyphs ended with status {process.returncode}; finished parts are kept in "
                f"{parts}, so the next run goes on from there. It said:\n{process.stderr.read().strip()[-2000:]}"
            )
