"""What a run leaves for people: results.json, a table, and pictures."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lightning_pfc.callbacks.csv_log import read_metrics
from lightning_pfc.metrics.functional import roc_curve
from lightning_pfc.plots import Gap, plot_gap, plot_hardest_pairs, plot_loss, plot_roc, plot_score_histogram

if TYPE_CHECKING:
    from lightning_pfc.validation import PairScores

_VALIDATION = ("/auc", "/rank-1", "/top1")  # shares, one for a set
_PACKAGES = ("lightning-pfc", "torch", "lightning", "timm", "torchmetrics", "hydra-core", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def peak_memory() -> dict[str, int]:
    """Highest memory use so far in bytes: ``host`` of this process, ``device`` of the current CUDA device, if any."""
    found = {"host": _peak_of_process()}
    if torch.cuda.is_available():
        found["device"] = torch.cuda.max_memory_allocated()
    return found


def _peak_of_process() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return _peak_on_windows()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _peak_on_windows() -> int:
    """``PeakWorkingSetSize`` of ``PROCESS_MEMORY_COUNTERS``; 0 where the system does not say."""
    kernel: Any = getattr(ctypes, "windll", None)
    if kernel is None:
        return 0
    # cb and PageFaultCount of 32 bits, then eight sizes, of which the first is the one.
    counters = (ctypes.c_size_t * 9)()
    handle = ctypes.c_void_p(kernel.kernel32.GetCurrentProcess())
    return int(counters[1]) if kernel.kernel32.K32GetProcessMemoryInfo(handle, counters, ctypes.sizeof(counters)) else 0


def print_results(results: Mapping[str, Any], console: Console | None = None) -> None:
    """The summary of a run as a table."""
    console = console or Console()
    table = Table(title=f"Run folder: {results['run_dir']}", title_justify="left", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    intervals = results.get("intervals", {})
    if intervals:
        table.add_column("95 %, by identity", no_wrap=True)
    for name, value in results["metrics"].items():
        if name.startswith(("lr-", "train/samples")):
            continue
        is_share = any(part in name for part in ("/accuracy", "/tar@", "/auc", "/top1", "/top5", "/rank-"))
        low, high = intervals.get(name, (None, None))
        cells = [f"{low:.2%} .. {high:.2%}"] if low is not None and high is not None else []
        table.add_row(name, f"{value:.2%}" if is_share else f"{value:.4g}", *cells)
    table.add_section()
    table.add_row("seconds", f"{results['seconds']:.1f}")
    if results.get("samples_per_second"):
        table.add_row("training samples/s", f"{results['samples_per_second']:,.0f}")
    for where, size in results["peak_memory_bytes"].items():
        table.add_row(f"peak memory, {where}", f"{size / 2**20:,.0f} MiB")
    table.add_row("seed", str(results["seed"]))
    console.print(table)
    for sentence in results.get("words", []):
        console.print(sentence, markup=False, highlight=False)


def draw(
    folder: Path,
    metrics_csv: Path,
    scores: Mapping[str, PairScores],
    sets: Mapping[str, Any],
    gaps: Mapping[str, Gap] | None = None,
) -> list[Path]:
    """Loss and validation, ROC, score histogram, hardest pairs, the gap to trained identities; what there is of them.

    Args:
        folder: where the PNG files go.
        metrics_csv: of the run; may be missing.
        scores: of each verification set.
        sets: the verification sets, with ``images`` and ``pairs``.
        gaps: what was found of trained and of held-out identities, by the name of the figure.

    Returns:
        The files written.
    """
    written: list[Path] = []
    rows = read_metrics(metrics_csv) if metrics_csv.exists() else []
    if losses := _curve(rows, "train/loss"):
        written.append(plot_loss(*losses, folder / "loss.png", validation=_validation(rows)))
    if gaps:
        written.append(plot_gap(gaps, folder / "gap.png"))
    usable = {name: s for name, s in scores.items() if bool(s.same.any()) and not bool(s.same.all())}
    if usable:
        curves = {name: roc_curve(s.score, s.same) for name, s in usable.items()}
        written.append(plot_roc(curves, folder / "roc.png"))
    for name, s in usable.items():
        written.append(plot_score_histogram(s.score, s.same, folder / f"scores_{name}.png"))
        pairs, images = sets[name].pairs, sets[name].images
        written.append(
            plot_hardest_pairs(
                functools.partial(_image, images),
                torch.as_tensor(pairs.first)[s.pair],
                torch.as_tensor(pairs.second)[s.pair],
                s.score,
                s.same,
                folder / f"hardest_pairs_{name}.png",
            )
        )
    return written


def gaps_of(metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]]) -> dict[str, Gap]:
    """Figures that were found of trained identities, too: ``NAME/trained`` beside ``NAME``."""
    found = {}
    for name, trained in metrics.items():
        held_out = name.removesuffix("/trained")
        if held_out != name and held_out in metrics:
            low_high = intervals.get(held_out)
            found[held_out] = Gap(trained, metrics[held_out], (low_high[0], low_high[1]) if low_high else None)
    return found


def _curve(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]] | None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    return ([step for step, _ in points], [value for _, value in points]) if points else None


def _validation(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """Curves of what was measured more than once while training."""
    names = dict.fromkeys(name for row in rows for name in row if name.endswith(_VALIDATION))
    curves = {name: _curve(rows, name) for name in names}
    return {name: curve for name, curve in curves.items() if curve is not None and len(curve[0]) > 1}


def _image(images: Any, position: int) -> torch.Tensor:
    picture: torch.Tensor = images.fetch(np.asarray([position], dtype=np.int64))[0]
    return picture
