"""What InsightFace's package asks of the models that it loads, and the file of a face detector beside one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.deploy.engines import import_engine
from lightning_pfc.deploy.errors import ExportError

DETECTOR = "detector.onnx"
PACKS = ("insightface",)
_OTHER_MODELS = (96, 192)  # edges of the attribute and landmark models, which the package takes such a file for
_LOOKED_AT = 8  # nodes whose names tell the package that a file scales pixels itself


def check_insightface(preprocessing: Preprocessing, format: str) -> None:
    """See that a model can be one of InsightFace's recognisers.

    Raises:
        ExportError: it cannot; says all that is in the way.
    """
    channels, height, width = preprocessing.image_shape
    wrong = []
    if format != "onnx":
        wrong.append(f"it loads ONNX files, not --format {format}")
    if channels != 3 or preprocessing.color != "rgb":
        wrong.append(f"pictures have three channels in the order RGB, here {channels} ({preprocessing.color})")
    if height != width or height < 112 or height % 16 or height in _OTHER_MODELS:
        wrong.append(
            f"pictures are square, of 112 pixels or more, a multiple of 16 and not 192, here {width} x {height}"
        )
    if preprocessing.mean != (127.5,) or preprocessing.std != (127.5,):
        wrong.append(f"mean and std are 127.5, here {preprocessing.mean} and {preprocessing.std}")
    if wrong:
        raise ExportError(f"pack=insightface: its package would not load this model: {'; '.join(wrong)}")


def rename_first_nodes(path: Path) -> int:
    """Give names to the first nodes of an ONNX file that tell nothing of scaling; returns how many.

    The package takes a model that begins with a subtraction and a product, by the names of the nodes, for one that
    scales pixels itself.
    """
    onnx: Any = import_engine("onnx", "export")
    model = onnx.load_model(os.fspath(path), load_external_data=False)
    found = [node for node in model.graph.node[:_LOOKED_AT] if node.name.startswith(("Sub", "Mul", "_minus", "_mul"))]
    for node in found:
        node.name = f"node_{node.name}"
    if found:
        path.write_bytes(model.SerializeToString())
    return len(found)


def copy_detector(source: str | os.PathLike[str], folder: Path, *, pack: str | None) -> str:
    """Put a face detector beside the model, after opening it.

    Args:
        source: an ONNX file, YuNet or SCRFD.
        folder: of the export.
        pack: as the option; InsightFace's package loads SCRFD alone.

    Returns:
        The name of the file there.

    Raises:
        ExportError: it is no detector, keeps weights in other files, or is not of the kind that the pack needs.
    """
    from lightning_pfc.faces import open_detector

    target = folder / DETECTOR
    try:
        kind = open_detector(source).kind
        shutil.copyfile(source, target)
        open_detector(target)  # alone in its folder
    except (FileNotFoundError, ValueError) as error:
        raise ExportError(f"detector={os.fspath(source)}: {error}") from error
    if pack == "insightface" and kind != "scrfd":
        raise ExportError(f"pack=insightface: its package loads SCRFD detectors, and {os.fspath(source)} is {kind}")
    return DETECTOR
