"""What an export can be told, and what cannot be had together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_pfc.deploy.description import Precision
from lightning_pfc.deploy.errors import ExportError
from lightning_pfc.deploy.pack import PACKS
from lightning_pfc.deploy.samples import MOST_PICTURES


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What ``pfc-export`` can be told.

    Attributes:
        flip: the network adds the embedding of the mirror image.
        normalize: the network gives embeddings of length one.
        format: ``"onnx"`` or ``"pt2"``.
        precision: what the network computes in.
        engine: that the model is for; a reduced precision is tried in it.
        max_loss: how much of the true accept rate at FAR 0.1 % a reduced precision may cost.
        pictures: of each verification set, at most, that figures are measured on.
        centers: write the class centers too.
        fit: what is done to pictures of another size; None takes what the run was trained with, and ``"crop"`` where it
            was trained on pictures of one size.
        images: a folder of pictures to check on, in place of those of the run.
        detector: an ONNX file that finds faces in photos.
        pack: ``"insightface"`` makes sure that InsightFace's package loads the folder.
        license: what the model card says.
        replace: put it in the place of an export that is there.
    """

    flip: bool = False
    normalize: bool = False
    format: Literal["onnx", "pt2"] = "onnx"
    precision: Precision = "float32"
    engine: str = "onnxruntime"
    max_loss: float = 0.002
    pictures: int = MOST_PICTURES
    centers: bool = False
    fit: str | None = None
    images: str | os.PathLike[str] | None = None
    detector: str | os.PathLike[str] | None = None
    pack: str | None = None
    license: str = "unknown"
    replace: bool = False


def check_options(options: ExportOptions) -> None:
    """Raises ExportError where a word has no such value, or two do not go together."""
    if options.pack not in (None, *PACKS):
        raise ExportError(f"pack={options.pack!r} does not exist; there is {', '.join(PACKS)}")
    if options.detector is not None and not Path(options.detector).is_file():
        raise ExportError(f"detector={os.fspath(options.detector)}: no such file")
    if options.precision != "float32" and options.format != "onnx":
        raise ExportError(f"precision={options.precision} is for ONNX files; leave --format {options.format} out")
    if options.precision == "bfloat16" and options.engine != "openvino":
        raise ExportError(f"precision=bfloat16: {options.engine} computes nothing in it; use --engine openvino")
    if options.pictures < 1:
        raise ExportError(f"pictures={options.pictures} must be at least 1")
    if not 0 <= options.max_loss < 1:
        raise ExportError(f"max_loss={options.max_loss:g} is a share, from 0 to less than 1")
