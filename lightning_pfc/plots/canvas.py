"""One look for all pictures, and one way to write them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from lightning_pfc.storage.whole_files import write_whole

Array = npt.NDArray[np.float64]

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
GENUINE, IMPOSTOR, INK, FAINT = "#0072B2", "#D55E00", "#222222", "#8a8a8a"


def new_figure(width: float = 7.2, height: float = 4.6) -> Figure:
    """A figure of its own, drawn by Agg, outside pyplot's list of figures; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Title, labels, a light grid and no box around it."""
    axes.set_title(title, loc="left", fontsize=12, color=INK)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def write(figure: Figure, path: str | os.PathLike[str], dpi: int = 130) -> Path:
    """Write a PNG whole or not at all, making its folder if need be.

    Raises:
        ValueError: When ``path`` does not end in ``.png``.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path={str(path)!r} must end in .png; other formats are not written")
    with write_whole(path) as file:
        figure.savefig(file, format="png", dpi=dpi)
    return path


def as_array(values: object, name: str) -> Array:
    """One-dimensional numbers (list, array or tensor) as float64.

    Raises:
        ValueError: When they are not one-dimensional or there are none.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must be a sequence of at least one number, got shape {array.shape}")
    return array
