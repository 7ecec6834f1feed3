"""Kills random ranks of real runs at random moments, and counts what was lost: it must be nothing.

    python recipes/benchmarks/kill_test/kill_test.py --kills 200

A run of several processes trains, saves every third step, keeps the best two and a link to the last. At a random moment
one of its ranks gets SIGKILL: in a step, while a checkpoint is written, published, linked or deleted. The others must
end by themselves. Then the same command is started again with ``ckpt_path="last"``. A run that was killed and resumed
until it was done must end with the bits of the run that was left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import worker

CONTEXT = multiprocessing.get_context("forkserver")


@dataclass
class Count:
    """What is printed at the end."""

    runs: int = 0
    starts: int = 0
    kills: int = 0
    kills_while_saving: int = 0
    lost: int = 0
    differ: int = 0
    slowest_end: float = 0.0
    notes: list[str] = field(default_factory=list)


def start(folder: Path, options: argparse.Namespace) -> list[Any]:
    """The ranks of one run: real processes, forked from a server that has imported everything already."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(options.ranks):
        arguments = (folder, rank, options.ranks, port, options.steps, options.asynchronous)
        processes.append(CONTEXT.Process(target=worker.run, args=arguments))
        processes[-1].start()
    return processes


def diary(folder: Path) -> list[dict[str, int]]:
    """What rank 0 has written so far."""
    path = folder / "diary.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the last line of a process that was killed
            found.append(json.loads(line))
    return found


def end(processes: list[Any], patience: float) -> bool:
    """Wait for all; True if they ended by themselves."""
    deadline = time.monotonic() + patience
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    return not late


def killed_run(folder: Path, options: argparse.Namespace, rng: random.Random, count: Count, seconds: float) -> None:
    """One run, killed again and again until ``options.kills_per_run`` kills are done, then left alone."""
    folder.mkdir()
    checkpoints = folder / "checkpoints"
    newest_saved = 0
    for attempt in range(options.kills_per_run + 1):
        seen = len(diary(folder))
        processes = start(folder, options)
        count.starts += 1
        began = time.monotonic()
        while (
            not any("start" in entry for entry in diary(folder)[seen:]) and time.monotonic() - began < options.patience
        ):
            if any(process.exitcode not in (None, 0) for process in processes):
                break
            time.sleep(0.01)
        entries = diary(folder)[seen:]
        resumed = next((entry["start"] for entry in entries if "start" in entry), None)
        if resumed is None:
            end(processes, 1)
            count.lost += 1
            count.notes.append(f"{folder.name}: start {attempt} found no usable checkpoint; see {folder}/rank-0.log")
            return
        if resumed < newest_saved:
            count.lost += 1
            count.notes.append(f"{folder.name}: step {newest_saved} was saved, but the run went on from {resumed}")
        if attempt < options.kills_per_run:
            # Half of the kills at any moment, half as soon as a hidden, unfinished checkpoint is there.
            if rng.random() < 0.5:
                time.sleep(rng.random() * seconds)
            else:
                wait_for_save(checkpoints, rng, seconds)
            victim = rng.choice(processes)
            saving = unfinished(checkpoints)
            if victim.is_alive():
                victim.kill()
                count.kills += 1
                count.kills_while_saving += saving
            fell = time.monotonic()
            if not end(processes, options.patience):
                count.notes.append(f"{folder.name}: the other ranks did not end within {options.patience:g} s")
            count.slowest_end = max(count.slowest_end, time.monotonic() - fell)
        elif not end(processes, 600):
            count.notes.append(f"{folder.name}: the last start did not finish")
        saved = [entry["saved"] for entry in diary(folder) if "saved" in entry]
        newest_saved = max(saved, default=0)
        if done(folder, options.ranks):
            return


def unfinished(checkpoints: Path) -> bool:
    """Whether a checkpoint is being written or taken apart right now."""
    return checkpoints.is_dir() and any(path.name.startswith(".") for path in checkpoints.iterdir())


def wait_for_save(checkpoints: Path, rng: random.Random, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    before = {path.name for path in checkpoints.iterdir()} if checkpoints.is_dir() else set()
    while time.monotonic() < deadline:
        now = {path.name for path in checkpoints.iterdir()} if checkpoints.is_dir() else set()
        if any(name.startswith(".") for name in now - before):
            time.sleep(rng.random() * 0.03)
            return


def done(folder: Path, ranks: int) -> bool:
    """Whether every rank has written how it ended."""
    return all((folder / f"end-{rank}.txt").exists() for rank in range(ranks))


def result(folder: Path, ranks: int) -> list[str]:
    """How the ranks ended."""
    return [(folder / f"end-{rank}.txt").read_text() for rank in range(ranks)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--kills-per-run", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=120.0, help="seconds to start, and to end after a kill")
    parser.add_argument("--asynchronous", action="store_true", help="checkpoints are written while training goes on")
    parser.add_argument("--keep", type=Path, help="a folder for the runs; default: one that is deleted if all is well")
    options = parser.parse_args()
    here = str(Path(__file__).parent)  # where the server that imports `worker` has to look
    python_path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    os.environ.update({"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": python_path})
    CONTEXT.set_forkserver_preload(["worker"])
    root = options.keep or Path(tempfile.mkdtemp(prefix="kill-test-"))
    root.mkdir(exist_ok=True)
    count = Count()
    rng = random.Random(options.seed)

    reference = root / "left-alone"
    reference.mkdir()
    processes = start(reference, options)
    if not end(processes, 600) or not done(reference, options.ranks):
        print(f"the run that was left alone failed; see {reference}/rank-0.log")
        return 1
    expected = result(reference, options.ranks)
    began = time.monotonic()

    def say() -> None:
        print(
            f"\r{time.monotonic() - began:5.0f} s  runs {count.runs}  kills {count.kills} "
            f"({count.kills_while_saving} while saving)  lost {count.lost}  differ {count.differ}",
            end="",
            flush=True,
        )

    while count.kills < options.kills:
        folder = root / f"run-{count.runs:04d}"
        count.runs += 1
        killed_run(folder, options, rng, count, options.steps * 0.008)
        if done(folder, options.ranks):
            if result(folder, options.ranks) != expected:
                count.differ += 1
                count.notes.append(f"{folder.name}: ended with other bits than the run that was left alone")
            elif options.keep is None:
                shutil.rmtree(folder)
        else:
            count.notes.append(f"{folder.name}: did not finish")
        say()
    print()
    for note in count.notes:
        print(note)
    print(f"runs               {count.runs}")
    print(f"starts             {count.starts}")
    print(f"kills              {count.kills} ({count.kills_while_saving} while a checkpoint was written or deleted)")
    print(f"checkpoints lost   {count.lost}")
    print(f"resumes that differ {count.differ}")
    print(f"slowest end of the other ranks {count.slowest_end:.1f} s")
    good = not count.lost and not count.differ and not count.notes
    if good and options.keep is None:
        shutil.rmtree(root)
    else:
        print(f"the runs are in {root}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
