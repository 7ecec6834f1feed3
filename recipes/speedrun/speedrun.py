"""The speedrun: entries of the log, each beside the entry before it, in turns, with the time of the whole command.

    python speedrun.py --seeds 0 1 2 --log results.jsonl              # every entry that the log lacks
    python speedrun.py --entries today "four epochs" --seeds 0 --log mine.jsonl
    python speedrun.py --table --log results.jsonl

A run is the command ``pfc-train WORDS seed=S`` in a process of its own, from its start to its end: imports, tests and
plots are in the time. Drawing the characters is not, unless ``--new`` gives every run an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

_BEFORE = "choices=none trainer.max_epochs=6"  # what no words at all meant until entry 5
_FAST = "loss.scale=16 trainer.precision=bf16-mixed"
ENTRIES: dict[str, str] = {
    # name: the words of the whole command
    "today": _BEFORE,
    "four epochs": f"{_FAST} trainer.max_epochs=4",
    "quicker steps": f"{_FAST} trainer.max_epochs=4",  # the same words, other code
    "three epochs": "",
    "six epochs": f"{_FAST} trainer.max_epochs=6",
}
FIGURES = ("test/accuracy", "test/tar@far=1e-3", "heldout/accuracy", "heldout/tar@far=1e-3")


def run(words: str, seed: int, new: bool) -> dict[str, Any]:
    """One command; its figures and its seconds, by the clock and of all its processes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lightning_pfc.commands.train", f"output_dir={folder}/run", f"seed={seed}"]
        environment = {**os.environ, **({"PFC_CACHE_DIR": f"{folder}/cache"} if new else {})}
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([*command, *words.split()], check=True, stdout=subprocess.DEVNULL, env=environment)
        after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
        found = json.loads((Path(folder) / "run" / "results.json").read_text())
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": round(seconds, 1),
        "processor": round(processor, 1),
        "steps": found["steps"],
        **{name: found["metrics"].get(name) for name in FIGURES},
    }


def work(arguments: argparse.Namespace) -> None:
    """An entry and the one before it, for each seed: the later ones of a log stand beside their own neighbour."""
    ENTRIES.update({words: words for words in arguments.words})
    chosen = [*(arguments.entries or []), *arguments.words]
    names = [name for name in ENTRIES if not chosen or name in chosen]
    for before, name in zip([None, *names], names, strict=False):
        for seed in arguments.seeds:
            for each in ([before] if before else []) + [name]:
                key = {"entry": each, "seed": seed, "beside": name, "new": arguments.new}  # words: they were shorter
                if any(key.items() <= row.items() for row in read(arguments.log)):
                    continue
                row = {**key, "words": ENTRIES[each], **run(ENTRIES[each], seed, arguments.new)}
                with arguments.log.open("a") as log:
                    log.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)


def read(log: Path) -> list[dict[str, Any]]:
    """What was found so far."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def table(log: Path) -> None:
    """Each entry beside the one before it: medians over the seeds."""
    rows = read(log)
    columns = ["entry", "seeds", "s", "processor s", "s of the entry before"]
    columns += ["accuracy", "TAR 0.1 %", "held out: accuracy", "held out: TAR 0.1 %"]
    print(f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|")
    for name in dict.fromkeys(r["beside"] for r in rows):
        own = [r for r in rows if r["beside"] == name and r["entry"] == name]
        other = [r for r in rows if r["beside"] == name and r["entry"] != name]
        if not own:
            continue
        figures = [", ".join(f"{100 * r[f]:.2f}" for r in own) for f in FIGURES]
        neighbour = f"{np.median([r['seconds'] for r in other]):.0f}" if other else ""
        seconds, processor = (np.median([r[k] for r in own]) for k in ("seconds", "processor"))
        print(f"| {name} | {len(own)} | {seconds:.0f} | {processor:.0f} | {neighbour} | {' | '.join(figures)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--entries", nargs="*", choices=list(ENTRIES), help="those alone, in the order of the log")
    parser.add_argument("--words", nargs="*", default=[], help="further entries, each the words of a run")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--new", action="store_true", help="an empty cache for every run: drawing is in the time")
    parser.add_argument("--log", type=Path, default=Path("results.jsonl"))
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    table(arguments.log) if arguments.table else work(arguments)


if __name__ == "__main__":
    main()
