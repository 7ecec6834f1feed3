"""What turns pictures into embeddings, whatever the user has of a model: an export, a run, or an ONNX file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from lightning_pfc.data.pictures.decoding import MAX_PIXELS
from lightning_pfc.deploy.description import FILE, ModelDescription, ModelFile
from lightning_pfc.deploy.engines import Floats
from lightning_pfc.deploy.errors import ExportError
from lightning_pfc.deploy.output import Output
from lightning_pfc.deploy.pictures import Picture, Pixels, prepare
from lightning_pfc.deploy.recogniser import Recogniser
from lightning_pfc.deploy.vectors import unit
from lightning_pfc.runs.network import fingerprint_of
from lightning_pfc.storage.whole_files import sha256

if TYPE_CHECKING:
    from lightning_pfc.evaluation.embedders import OnnxEmbedder, TorchEmbedder

_TIMM = "timm:"


class PictureEmbedder(Protocol):
    """Pictures in, embeddings out; calls of ``prepare`` from several threads are safe.

    Attributes:
        width: D; 0 where only the first batch tells.
        model_id: changes with anything that changes embeddings.
        alignment_size: edge of the aligned faces that it takes.
        detector: its own face detector, if it has one.
    """

    width: int
    model_id: str
    alignment_size: int
    detector: Path | None

    def prepare(self, picture: Picture) -> Pixels:
        """(H, W, C) uint8."""

    def embed_pixels(self, pixels: Pixels) -> Floats:
        """(b, H, W, C) uint8 to (b, D) float32."""


def open_embedder(
    path: str | os.PathLike[str],
    *,
    engine: str | None = None,
    flip: bool = False,
    normalize: bool = False,
    fit: str | None = None,
    threads: int = 0,
    max_pixels: int = MAX_PIXELS,
    onnx: Mapping[str, Any] | None = None,
) -> PictureEmbedder:
    """Open a model.

    Args:
        path: folder of an export, folder of a run (its last checkpoint, in PyTorch), an ONNX file, or ``timm:NAME``, a
            network of timm with its published weights, which timm fetches.
        engine: as :meth:`Recogniser.load`; for exports.
        flip: add the embedding of the mirror image.
        normalize: give length one.
        fit: what is done to pictures of another size.
        threads: that the engine may use; 0 leaves it to the engine.
        max_pixels: bound of what is decoded, as :meth:`Recogniser.load`.
        onnx: what an ONNX file alone leaves open: words of :class:`~lightning_pfc.evaluation.OnnxEmbedder`.

    Raises:
        ExportError: it is none of these, or damaged.
        EngineError, ValueError: as :meth:`Recogniser.load`.
    """
    place = Path(path)
    if onnx and not (place.is_file() and place.suffix.lower() == ".onnx"):
        name, value = next(iter(onnx.items()))
        raise ValueError(f"{name}={value!r} is for an ONNX file alone; {path} says such things itself: leave it out")
    if os.fspath(path).startswith(_TIMM):
        if engine not in (None, "torch"):
            raise ValueError(f"engine={engine!r}: a network of timm is computed by torch")
        return _of_timm(
            os.fspath(path).removeprefix(_TIMM), flip=flip, normalize=normalize, fit=fit, max_pixels=max_pixels
        )
    if place.is_dir() and (place / FILE).is_file():
        return _Exported(
            Recogniser.load(
                place, engine, flip=flip, normalize=normalize, fit=fit, threads=threads, max_pixels=max_pixels
            )
        )
    if engine not in (None, "torch") and not place.is_file():
        raise ValueError(f"engine={engine!r} is for exports; make one of the run first: pfc-export {place}")
    if place.is_dir():
        if not (place / "checkpoints").is_dir():
            raise ExportError(
                f"has neither {FILE}, as an export, nor checkpoints, as a run; give one of the two", place
            )
        return _Exported(_of_run(place, flip=flip, normalize=normalize, fit=fit, max_pixels=max_pixels))
    if not place.is_file():
        raise ExportError("is not there; give an export, a run folder, or an ONNX file", place)
    if place.suffix.lower() != ".onnx":
        raise ExportError("is no model; give an export, a run folder, or an ONNX file (NAME.onnx)", place)
    if engine not in (None, "onnxruntime"):
        raise ValueError(f"engine={engine!r}: an ONNX file alone is computed by onnxruntime")
    return _of_onnx(place, dict(onnx or {}), threads, flip=flip, normalize=normalize, fit=fit, max_pixels=max_pixels)


def _of_onnx(
    place: Path,
    words: dict[str, Any],
    threads: int,
    *,
    flip: bool,
    normalize: bool,
    fit: str | None,
    max_pixels: int,
) -> PictureEmbedder:
    from lightning_pfc.evaluation.onnx_embedder import OnnxEmbedder

    network = OnnxEmbedder(place, threads=threads, **words)
    identity = " ".join([sha256(place), *(str(words[name]) for name in ("input", "output", "layout") if name in words)])
    return _Network(network, identity, flip=flip, normalize=normalize, fit=fit, max_pixels=max_pixels)


def _of_run(folder: Path, *, flip: bool, normalize: bool, fit: str | None, max_pixels: int) -> Recogniser:
    from lightning_pfc.deploy.torch_engine import TorchEngine
    from lightning_pfc.runs.run_folder import Run

    run = Run(folder)
    wanted = fit or ("crop" if run.preprocessing.fit == "exact" else None)
    fingerprint = run.network.fingerprint()
    description = ModelDescription(
        model=ModelFile(file="", engine="torch", width=run.network.config.embedding_dim),
        preprocessing=run.preprocessing.changed(fit=wanted),
        weights=fingerprint,
        thresholds=run.thresholds,
    )
    engine = TorchEngine(Output(run.network))
    return Recogniser(engine, description, folder, flip=flip, normalize=normalize, max_pixels=max_pixels)


class _Exported:
    def __init__(self, recogniser: Recogniser) -> None:
        self.recogniser = recogniser
        self.width = recogniser.width
        self.model_id = f"{recogniser.model_id} {recogniser.normalize} {recogniser.max_pixels}"
        self.alignment_size = recogniser.input_shape[1]
        about, folder = recogniser.description, recogniser.folder
        self.detector = None if about.detector is None or folder is None else folder / about.detector

    def prepare(self, picture: Picture) -> Pixels:
        """See :class:`PictureEmbedder`."""
        return self.recogniser.prepare(picture)

    def embed_pixels(self, pixels: Pixels) -> Floats:
        """See :class:`PictureEmbedder`."""
        return self.recogniser.embed_pixels(pixels)


def _of_timm(name: str, *, flip: bool, normalize: bool, fit: str | None, max_pixels: int) -> PictureEmbedder:
    from lightning_pfc.evaluation.embedders import timm_embedder

    try:
        network = timm_embedder(name, pretrained=True)
    except (RuntimeError, OSError, ValueError) as error:  # unknown, without weights, or without a network
        raise ExportError(f"timm does not give it with weights: {error}", Path(name)) from error
    identity = f"timm {name} {fingerprint_of(network.module.state_dict())}"
    return _Network(network, identity, flip=flip, normalize=normalize, fit=fit, max_pixels=max_pixels)


class _Network:
    """A network of anybody, by the conventions that it states; mirror images only when they are asked for."""

    def __init__(
        self,
        network: OnnxEmbedder | TorchEmbedder,
        identity: str,
        *,
        flip: bool,
        normalize: bool,
        fit: str | None,
        max_pixels: int,
    ) -> None:
        self._network = network
        self._preprocessing = network.preprocessing.changed(fit=fit)
        self._flip, self._normalize, self._max_pixels = flip, normalize, max_pixels
        self.width = 0
        self.model_id = f"{identity} {flip} {normalize} {max_pixels} {self._preprocessing.to_config()}"
        self.alignment_size = self._preprocessing.size[0]
        self.detector: Path | None = None

    def prepare(self, picture: Picture) -> Pixels:
        """See :class:`PictureEmbedder`."""
        return prepare(picture, self._preprocessing, max_pixels=self._max_pixels)

    def embed_pixels(self, pixels: Pixels) -> Floats:
        """See :class:`PictureEmbedder`."""
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        rows: Floats = self._network(images).numpy()
        if self._flip:
            rows = (rows.astype(np.float64) + self._network(images.flip(-1)).numpy()).astype(np.float32)
        return unit(rows) if self._normalize else rows
