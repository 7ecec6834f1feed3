"""Whether the head holds on this GPU what it promises: 18 tests, ten minutes, no data, one line each.

python recipes/gpu/accept.py                 # on a machine with a GPU
python recipes/gpu/accept.py --tests 0-8,10  # some of them
python recipes/gpu/accept.py --fake          # without a GPU: goes through the code of every test, measures nothing

Every line says what must be, what is aimed at and what was measured, and ends as "ran: met", "ran: short" or "not run".
Ends with 0 if all tests ran and were met (with --fake: if all were gone through), with 1 otherwise, with 2 for a wrong
argument. After every test accept.txt has the lines until then and accept.json the figures; accept.png where there are
times to draw.

On a GPU the tests run in a process of their own. Each has a share of the time, and what it leaves is there for those
after it: one that takes longer, crashes or leaves an error on the GPU falls short, and the others go on.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import torch
from acceptance.apart import AGAIN, Teller, deadlines, run_apart
from acceptance.bench import Bench
from acceptance.table import CHECKS, MUST_AIM
from acceptance.verdict import MET, NOT_RUN, SHORT, Check, Line, NotRun, judge, plain

from lightning_pfc.planning.work import WorkLog

SECONDS = 600.0
OUT_FILE, TEXT_FILE = "accept.json", "accept.txt"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; gives its exit code."""
    options = _parser().parse_args(arguments)
    try:
        checks = chosen(options.tests)
        _check_folders(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not options.fake and options.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here, and nothing was run; --fake goes through the tests without one.", file=sys.stderr)
        return 1
    device = "meta" if options.fake else options.device
    bench = Bench(device, small=options.small or options.device == "cpu", peer=options.peer, seconds=options.seconds)
    if options.tell:
        return tell(checks, bench)
    lines: list[Line] = []
    said = [f"# {describe(bench)}"]
    print(said[0], flush=True)
    for line in _lines(checks, bench, options):
        lines.append(line)
        said.append(line.text(predicted=bench.fake))
        print(said[-1], flush=True)
        write(options.out, bench, lines, said)
    good = all(line.walked if bench.fake else line.verdict == MET for line in lines)
    counts = {word: sum(line.verdict == word for line in lines) for word in (MET, SHORT, NOT_RUN)}
    said.append("# " + ", ".join(f"{count} {word}" for word, count in counts.items()) + f"; {options.out / OUT_FILE}")
    print(said[-1])
    write(options.out, bench, lines, said)
    times = next((line.figures for line in lines if line.check.number == 8 and line.figures), None)
    if times:
        draw(options.out / "accept.png", times, "predicted for an H200" if bench.fake else describe(bench))
    return 0 if good else 1


def _lines(checks: Sequence[Check], bench: Bench, options: argparse.Namespace) -> Iterator[Line]:
    if bench.device.type != "cuda":
        return (run_check(check, bench) for check in checks)
    return run_apart(checks, functools.partial(_command, options), bench.left)


def _command(options: argparse.Namespace, checks: Sequence[Check], seconds: float) -> list[str]:
    """The process that runs some tests and tells of them."""
    words = [sys.executable, str(Path(__file__).resolve()), "--tell", "--seconds", f"{seconds:.1f}"]
    words += ["--tests", ",".join(str(check.number) for check in checks), "--device", options.device]
    words += ["--small"] if options.small else []
    return words + (["--peer", str(options.peer)] if options.peer is not None else [])


def tell(checks: Sequence[Check], bench: Bench) -> int:
    """Run tests for another process, and tell it of figures as they come and of each line; gives the exit code."""
    start, ends = time.monotonic(), deadlines(checks, bench.left)
    with os.fdopen(os.dup(1), "w") as out:
        teller = Teller(out)
        for check in checks:
            bench.listens = functools.partial(teller.figures, check)
            teller.line(run_check(check, bench, start + ends[check.number]))
            if not bench.works:
                return AGAIN
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="accept.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tests", default="0-17", metavar="LIST", help="which tests, such as 0-8,10,16 (default: all)")
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where results go (default: here)")
    parser.add_argument("--peer", type=Path, metavar="FOLDER", help="with InsightFace's partial_fc_v2.py and losses.py")
    parser.add_argument("--fake", action="store_true", help="go through the tests without a GPU and measure nothing")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: small sizes, to try the tests")
    parser.add_argument("--small", action="store_true", help="small sizes; the figures then mean nothing")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that all tests may take (default: 600)")
    parser.add_argument("--tell", action="store_true", help=argparse.SUPPRESS)
    return parser


def chosen(words: str) -> list[Check]:
    """The tests of a list such as ``0-8,10``.

    Raises:
        ValueError: for one that is no number of a test.
    """
    numbers: set[int] = set()
    for word in words.split(","):
        first, dash, last = word.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise ValueError(
                f"--tests {words}: {word.strip()!r} is no test; use numbers from 0 to 17, such as 0-8,10,16."
            )
        numbers |= set(range(int(first), int(last or first) + 1))
    unknown = sorted(numbers - {check.number for check in CHECKS})
    if unknown:
        raise ValueError(
            f"--tests {words}: there is no test {unknown[0]}; use numbers from 0 to 17, such as 0-8,10,16."
        )
    return [check for check in CHECKS if check.number in numbers]


def _check_folders(options: argparse.Namespace) -> None:
    if options.peer is not None and not options.peer.is_dir():
        raise ValueError(f"--peer {options.peer} is no folder; give the one with partial_fc_v2.py and losses.py.")
    if options.fake and options.device == "cpu":
        raise ValueError("--fake has no device; leave out --device or --fake.")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {options.out} cannot be made: {error.strerror}; give another folder.") from None
    if not os.access(options.out, os.W_OK):
        raise ValueError(f"--out {options.out} cannot be written to; give another folder.")


def run_check(check: Check, bench: Bench, end: float | None = None) -> Line:
    """Run one test, or go through it, by ``end`` on the monotonic clock; nothing that it raises gets out."""
    line, start = Line(check), time.monotonic()
    if check.gpu_only and bench.device.type == "cpu":
        line.notes.append(check.gpu_only)
        return line
    bench.start(end)
    if bench.left <= 0:
        line.notes.append("the time for all tests is over")
        return line
    reasons: list[str] = []
    log = WorkLog() if bench.fake else None
    try:
        with bench.counting(), quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if log is None:
                check.run(bench)
            else:
                with log:
                    check.run(bench)
    except NotRun as reason:
        line.notes.append(str(reason))
        return line
    except Exception as error:
        reasons = [f"{type(error).__name__}: {error}"]
    finally:
        line.seconds = time.monotonic() - start
    if log is None:
        line.figures = dict(bench.figures)
        reasons = reasons or judge(check, line.figures, bench.work)
        line.verdict = SHORT if reasons else MET
    else:
        line.figures = dict(bench.figures) if check.predicts else {}
        reasons = reasons or ([] if log.works and bench.work else ["nothing was computed"])
        line.walked = not reasons
    line.notes += reasons + bench.notes
    return line


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what libraries write, on either channel, off the screen: one line a test is all there is."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for channel, before in enumerate(kept, 1):
            os.dup2(before, channel)
            os.close(before)
        os.close(nowhere)


def describe(bench: Bench) -> str:
    """What the tests run on."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    if bench.fake:
        return f"no device: the tests are gone through and nothing is measured; {versions}"
    if bench.device.type == "cpu":
        return f"a CPU, at small sizes: this shows that the tests run, and says nothing of a GPU; {versions}"
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return f"{', '.join(names)}; {versions}" + ("; small sizes, whose figures mean nothing" if bench.small else "")


def write(folder: Path, bench: Bench, lines: list[Line], said: list[str]) -> None:
    """``accept.json`` and ``accept.txt``, each whole or as it was."""
    record: dict[str, Any] = {"on": plain(describe(bench)), "fake": bench.fake, "small": bench.small}
    record["time"] = time.strftime("%Y-%m-%d %H:%M:%S")
    record["tests"] = [line.record() for line in lines]
    for name, text in ((OUT_FILE, json.dumps(record, indent=1)), (TEXT_FILE, "\n".join(said))):
        part = folder / (name + ".part")
        part.write_text(text + "\n")
        os.replace(part, folder / name)


def draw(path: Path, times: dict[str, float], title: str) -> None:
    """Milliseconds of a step beside what must be and what is aimed at."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for rate, axis in zip((1.0, 0.1), axes, strict=True):
        batches = sorted(batch for r, batch in MUST_AIM if r == rate)
        for place, word in enumerate(("must", "aim")):
            axis.plot(batches, [MUST_AIM[rate, b][place] for b in batches], "--", label=word)
        there = [b for b in batches if f"ms_r{rate:g}_B{b}" in times]
        axis.plot(there, [times[f"ms_r{rate:g}_B{b}"] for b in there], "o-", label="a step")
        axis.set(title=f"rate {rate:g}", xlabel="batch", ylabel="milliseconds", xscale="log", yscale="log")
        axis.legend()
    figure.suptitle(title, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and with it the process of the tests
    sys.exit(main())
