"""Feeds damaged files to every reader of data: none may crash, hang, fill the memory, run or open anything else.

    python recipes/benchmarks/fuzz/fuzz.py --count 100000                # inputs for each reader; an hour or two
    python recipes/benchmarks/fuzz/fuzz.py recordio bin --count 1000 --seed 7

A damaged file is a valid one with bytes flipped, overwritten with telling values or lengths, cut out, doubled, or cut
off; a pickle also has instructions spliced in. An input that opens is read to its last image. It must be read, or
refused with a FormatError that names the file. Each reader runs in a process of its own, under an audit hook (nothing
opened but the input, nothing run, no connection) and a bound on its memory; a crash or a hang fails the run, with the
number of the input. Exit status 0 if there was none of that; slowest input and growth of the memory are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from readers import TARGETS  # noqa: E402

SLOWEST = 5.0  # seconds that an input may take
MOST = 512  # MiB that a process may grow by
HANG = 60  # seconds after which a process that says nothing is ended


def run(target: str, count: int, seed: int) -> dict[str, Any]:
    """Feeds inputs to a reader in this process; what was found, after ten wrong inputs at the latest."""
    from lightning_pfc.data.errors import FormatError
    from tests.audit import Hook

    warnings.simplefilter("ignore")  # Pillow warns of what it then refuses
    read, refused, worst, wrong = 0, 0, 0.0, []
    # In memory where there is such a folder: the disk is not what is tested.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        feed = TARGETS[target](Path(folder))
        for number in range(50):  # whatever is imported when it is first used
            _quietly(feed, random.Random(f"warm/{target}/{number}"))
        hook = Hook([os.path.realpath(folder)], [os.path.realpath(folder)])
        sys.addaudithook(hook)
        before = _peak(forget=True)
        bound = _now() + (4 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (bound, resource.getrlimit(resource.RLIMIT_AS)[1]))
        for number in range(count):
            if number % 64 == 0:
                print(f"at input {number} of {target}", flush=True)
                faulthandler.dump_traceback_later(HANG, exit=True)
            reason, start = "", time.perf_counter()
            hook.offences, hook.on = [], True
            try:
                feed(random.Random(f"{seed}/{target}/{number}"))
                read += 1
            except FormatError as error:
                refused += 1
                reason = "" if "fuzz" in str(error) else f"the error names no file: {error}"
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
            finally:
                hook.on = False
            took = time.perf_counter() - start
            worst = max(worst, took)
            reason = reason or (f"it did {hook.offences[0]}" if hook.offences else "")
            reason = reason or (f"it took {took:.1f} s" if took > SLOWEST else "")
            if reason:
                wrong.append(f"input {number} of seed {seed}: {reason}")
                if len(wrong) == 10:
                    break
        faulthandler.cancel_dump_traceback_later()
    grown = _peak() - before
    if grown > MOST:
        wrong.append(f"the process grew by {grown:.0f} MiB")
    return {"read": read, "refused": refused, "worst": worst, "grown": grown, "wrong": wrong}


def _quietly(feed: Any, rng: random.Random) -> None:
    from lightning_pfc.data.errors import FormatError

    with contextlib.suppress(FormatError):
        feed(rng)


def _status(line: str) -> int:
    return int(Path("/proc/self/status").read_text().split(line)[1].split()[0])


def _peak(forget: bool = False) -> float:
    """MiB that this process has held at most."""
    if not os.path.isdir("/proc/self"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmHWM:") / 1024


def _now() -> int:
    return _status("VmSize:") * 1024 if os.path.isdir("/proc/self") else 8 << 30


def run_apart(targets: Sequence[str], count: int, seed: int) -> list[str]:
    """Feeds inputs to readers in another process, prints a line about each, and returns what was wrong."""
    command = [sys.executable, __file__, "--child", *targets, "--count", str(count), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wrong, at = [], "before the first input"
    for line in done.stdout.splitlines():
        if not line.startswith("{"):
            at = line
            continue
        found = json.loads(line)
        print(
            f"{found['reader']:<12}{count:>8} inputs: {found['read']} read, {found['refused']} refused, "
            f"{len(found['wrong'])} wrong; slowest {found['worst'] * 1000:.0f} ms, memory +{found['grown']:.0f} MiB",
            flush=True,
        )
        wrong += [f"{found['reader']}, {each}" for each in found["wrong"]]
    if done.returncode:
        wrong.append(f"the process ended with status {done.returncode} {at}: {done.stderr[-2000:]}")
    return wrong


def main() -> int:
    """Runs the readers that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="READER", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--count", type=int, default=100_000, help="inputs for each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", action="store_true", help="all in one process, which saves starting others")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"unknown readers {sorted(unknown)}; there are {', '.join(TARGETS)}")
    targets = options.targets or list(TARGETS)
    if options.child:
        for target in targets:
            print(json.dumps({"reader": target, **run(target, options.count, options.seed)}), flush=True)
        return 0
    groups = [targets] if options.together else [[target] for target in targets]
    wrong = [line for group in groups for line in run_apart(group, options.count, options.seed)]
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
