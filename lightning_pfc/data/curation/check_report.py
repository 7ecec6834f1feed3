"""What is said of a data set that was looked through: as text, as a picture, and as plain numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.curation.check import Report


def histogram(per_class: npt.NDArray[np.int64], *, width: int = 40) -> str:
    """Images per class as text: classes in bins that double in width, with bars."""
    top = int(per_class.max()).bit_length()
    edges = [1 << k for k in range(top + 1)]
    counts = [int(((per_class >= low) & (per_class < high)).sum()) for low, high in pairwise(edges)]
    most = max(counts)
    lines = []
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        bar = "#" * max(round(width * count / most), 1 if count else 0)
        span = f"{low}" if high == low + 1 else f"{low}-{high - 1}"
        lines.append(f"{span:>15} images: {count:>9} classes {bar}")
    return "\n".join(lines)


def describe(report: Report, *, most: int = 10) -> str:
    """The report as text for people; at most ``most`` lines of each kind of trouble."""
    per_class = report.per_class
    lines = [
        f"{report.source}",
        f"  images           {report.num_images}",
        f"  classes          {report.num_classes} (identities {report.label_range[0]} to {report.label_range[1]}"
        + (")" if report.contiguous else ", not 0 ... C-1)"),
        f"  images per class {int(per_class.min())} to {int(per_class.max())}, median {float(np.median(per_class)):g}; "
        f"{int((per_class == 1).sum())} classes with one image",
        "  sizes            " + ", ".join(f"{w}x{h}: {n}" for (h, w), n in report.sizes.most_common(5)),
        histogram(per_class),
        f"  broken images    {len(report.broken)}",
        *(f"    {reason}" for _, _, reason in report.broken[:most]),
        *_seen(report, most),
        f"  duplicates       {len(report.duplicates)} pictures occur more than once, "
        f"{len(report.conflicts)} of them in different classes",
        *(f"    {_listed(report, group)}" for group in report.duplicates[:most]),
    ]
    if report.overlap or report.shared_identities:
        lines += [
            f"  OVERLAP          {len(report.overlap)} images and {len(report.shared_identities)} identities "
            "occur in the other set as well",
            *(f"    {report.locate(here)} is image {there} of the other set" for here, there in report.overlap[:most]),
        ]
    return "\n".join(lines)


def _seen(report: Report, most: int) -> list[str]:
    """Lines about turned and empty pictures, where there are any."""
    lines = []
    if report.orientations:
        tags = ", ".join(f"{tag}: {count}" for tag, count in sorted(report.orientations.items()))
        total = sum(report.orientations.values())
        lines.append(f"  turned           {total} by their EXIF tag ({tags}), as every reader here turns them")
    if report.transparent:
        lines.append(
            f"  transparent      {report.transparent} pictures are so somewhere: compared by the colours below; "
            "data.source.background=white lays them over white"
        )
    if report.constant:
        lines.append(f"  constant         {len(report.constant)} pictures have the same value everywhere")
        lines += [f"    {report.locate(place)}" for place in report.constant[:most]]
    return lines


def _listed(report: Report, group: list[int], most: int = 4) -> str:
    more = f" and {len(group) - most} more" if len(group) > most else ""
    return " = ".join(report.locate(place) for place in group[:most]) + more


def plot_histogram(report: Report, path: str) -> None:
    """Draws images per class as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    top = int(report.per_class.max())
    bins = np.arange(0.5, top + 1.5) if top <= 60 else np.geomspace(0.5, top + 0.5, 50)
    axes.hist(report.per_class, bins=bins.tolist(), color="#3b6ea5")
    if top > 60:
        axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(xlabel="images of a class", ylabel="classes")
    axes.set_title(f"{report.num_images:,} images of {report.num_classes:,} classes")
    figure.savefig(path, dpi=120, format="png")


def summary(report: Report) -> dict[str, Any]:
    """The report as plain numbers and lists, for JSON."""
    return {
        "source": report.source,
        "images": report.num_images,
        "classes": report.num_classes,
        "label_range": list(report.label_range),
        "contiguous": report.contiguous,
        "images_per_class": {
            "min": int(report.per_class.min()),
            "median": float(np.median(report.per_class)),
            "max": int(report.per_class.max()),
            "histogram": np.bincount(report.per_class).tolist(),
        },
        "sizes": {f"{width}x{height}": count for (height, width), count in report.sizes.items()},
        "broken": [{"image": place, "place": where, "reason": reason} for place, where, reason in report.broken],
        "orientations": {str(tag): count for tag, count in sorted(report.orientations.items())},
        "transparent": report.transparent,
        "constant": report.constant,
        "duplicates": report.duplicates,
        "duplicate_places": [[report.locate(place) for place in group] for group in report.duplicates],
        "duplicates_across_classes": report.conflicts,
        "overlap": [list(pair) for pair in report.overlap],
        "shared_identities": report.shared_identities,
    }
