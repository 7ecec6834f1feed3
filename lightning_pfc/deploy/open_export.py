"""The network and the face detector of an export, opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_pfc.deploy.description import ModelDescription
from lightning_pfc.deploy.engines import Engine, check_network, open_engine
from lightning_pfc.deploy.errors import ExportError
from lightning_pfc.deploy.folder import checked_file

if TYPE_CHECKING:
    from lightning_pfc.faces import FaceCutter


def open_cutter(
    folder: Path,
    description: ModelDescription,
    detector: str | os.PathLike[str] | None,
    threads: int,
    max_pixels: int,
) -> FaceCutter:
    """What finds the faces in photos: by the detector given, or by that of the export.

    Raises:
        ExportError: neither is there.
    """
    if detector is None and description.detector is None:
        raise ExportError("has no face detector; give detector=FILE, or export with --detector FILE", folder)
    from lightning_pfc.faces import FaceCutter, open_detector  # OpenCV, which aligned pictures do without

    path = checked_file(folder, str(description.detector), description) if detector is None else Path(detector)
    finder = open_detector(path, threads=threads)
    return FaceCutter(finder, size=description.preprocessing.size[0], max_pixels=max_pixels)


def open_network(folder: Path, description: ModelDescription, engine: str | None, threads: int) -> Engine:
    """The network of an export, computed by an engine, or by the one that the export was made for.

    Raises:
        ValueError: the export has nothing that the engine could compute.
    """
    model = description.model
    name = engine or ("torch" if model.kind == "pt2" else model.engine)
    if name == "torch":
        from lightning_pfc.deploy.torch_engine import TorchEngine  # builds a model of timm, which takes seconds

        return TorchEngine.load(folder, description)
    if model.kind != "onnx":
        raise ValueError(f"engine={name!r}: {folder} holds no ONNX file ({model.file}); use engine='torch'")
    path = checked_file(folder, model.file, description)
    precision = model.precision if model.precision != "bfloat16" or name == "openvino" else "float32"
    network = open_engine(name, path, threads=threads, precision=precision)
    check_network(network, description.preprocessing.image_shape, model.width, path)
    return network
