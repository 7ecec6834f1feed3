"""``python -m lightning_pfc.kernels --compile 80 90 100 --out DIR``: the kernels' machine code, made without a GPU.

Writes ``DIR/NAME.sm_NN.cubin`` for every kernel and chip and prints what each uses. Ends with 0 if all compile and none
uses stack, spills registers or needs more shared memory than the chip has; with 1 otherwise; with 2 where the command
cannot run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from lightning_pfc.kernels.library import has_triton, interpreted
from lightning_pfc.kernels.tiles import CHIPS


def main(arguments: list[str] | None = None) -> int:
    """Run the command; gives its exit code."""
    options = _parser().parse_args(arguments)
    problem = _problem(options)
    if problem is not None:
        print(problem, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".kernels-", dir=options.out) as work, _triton_cache(work):
        good = _compile_all(sorted(set(options.compile)), Path(work), options.out)
    return 0 if good else 1


@contextmanager
def _triton_cache(folder: str) -> Iterator[None]:
    """An empty cache of Triton's: what is printed was compiled now."""
    name = "TRITON_CACHE_DIR"
    before = os.environ.get(name)
    os.environ[name] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lightning_pfc.kernels", description="Compile the kernels.")
    parser.add_argument(
        "--compile",
        type=int,
        nargs="+",
        required=True,
        metavar="CHIP",
        help=f"compute capabilities times ten: of {', '.join(map(str, CHIPS))}",
    )
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where the .cubin files go")
    return parser


def _problem(options: argparse.Namespace) -> str | None:
    unknown = [chip for chip in options.compile if chip not in CHIPS]
    if unknown:
        return f"--compile {unknown[0]} is not a chip that the kernels are made for; use {', '.join(map(str, CHIPS))}."
    if options.out.exists() and not options.out.is_dir():
        return f"--out {options.out} is a file; give a folder."
    if not has_triton():
        return "Triton is not installed; pip install triton (Linux)."
    if interpreted():
        return "TRITON_INTERPRET=1 is set, and interpreted kernels are not compiled; unset it."
    return None


def _compile_all(chips: list[int], work: Path, out: Path) -> bool:
    from lightning_pfc.kernels.cases import compile_cases

    _CASES.clear()
    _CASES.extend((name, launch, chip) for chip in chips for name, launch in compile_cases(chip))
    width = max(len(name) for name, _, _ in _CASES)
    faults = 0
    # forked, so that the compiler is loaded once and the cases need not travel
    with ProcessPoolExecutor(_cores(), multiprocessing.get_context("fork")) as pool:
        jobs = [pool.submit(_compile, number, str(work)) for number in range(len(_CASES))]
        for (name, _, chip), job in zip(_CASES, jobs, strict=True):
            line, found, file = job.result()
            faults += bool(found)
            if file is not None:
                os.replace(file, out / file.name)
            print(
                f"{name:{width}}  sm_{chip:<3}  {'; '.join([line, *found]) if line else '; '.join(found)}", flush=True
            )
    kernels = len({name for name, _, _ in _CASES})
    print(f"{kernels} kernels for {', '.join(f'sm_{chip}' for chip in chips)} in {out}, {faults} with faults")
    return not faults


_CASES: list[tuple[str, object, int]] = []


def _compile(number: int, work: str) -> tuple[str, list[str], Path | None]:
    """One case, in a process of the pool: what it uses, its faults, its file."""
    from lightning_pfc.kernels.compiling import compile_kernel

    name, launch, chip = _CASES[number]
    try:
        made = compile_kernel(name, launch, chip, Path(work))  # type: ignore[arg-type]
    except RuntimeError as error:
        return "", [" ".join(str(error).split())], None
    uses = (
        f"registers {made.registers:3}  stack {made.stack}  spills {made.spills}  shared {made.shared:5}  "
        f"matrix instructions {made.matrix}"
    )
    return uses, made.faults, made.file


def _cores() -> int:
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


if __name__ == "__main__":
    sys.exit(main())
