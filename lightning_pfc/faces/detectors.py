"""Face detectors from ONNX files that others publish: YuNet as OpenCV ships it, SCRFD as InsightFace does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.errors import FormatError, missing_library
from lightning_pfc.data.onnx_files import mended
from lightning_pfc.faces.boxes import Floats, Pixels, cells, fit_in, thin_out
from lightning_pfc.faces.unpacking import unpack
from lightning_pfc.unreported import import_unreported

STRIDES = (8, 16, 32)
SIZE = (640, 640)


@dataclass(frozen=True)
class Face:
    """A face that was found.

    Attributes:
        box: (4,) left, top, right, bottom in pixels of the photo.
        points: (5, 2) x and y of eyes, nose tip and corners of the mouth, the left ones first, as seen.
        score: Of the detector, in [0, 1].
    """

    box: npt.NDArray[np.float32]
    points: npt.NDArray[np.float32]
    score: float

    @property
    def area(self) -> float:
        """Of the box, in pixels."""
        return float(max(self.box[2] - self.box[0], 0) * max(self.box[3] - self.box[1], 0))


class Detector(Protocol):
    """Finds faces in a photo."""

    kind: str

    def __call__(self, image: Pixels) -> list[Face]:
        """(H, W, 3) uint8 RGB to the faces in it, the surest first; none is an empty list."""


def open_detector(path: str | os.PathLike[str], *, least_score: float | None = None, threads: int = 0) -> Detector:
    """A detector from an ONNX file, told apart by its outputs.

    Args:
        path: The file.
        least_score: Faces of a lower score are none; None takes 0.7 for YuNet, 0.5 for SCRFD.
        threads: That one call may use; 0 leaves it to onnxruntime.

    Returns:
        The detector; calls from several threads are safe.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: it is no detector of these kinds, or one without the five points.
        MissingLibraryError: onnxruntime or OpenCV is not installed.
        ValueError: ``least_score`` is out of range.
    """
    if least_score is not None and not 0 <= least_score < 1:
        raise ValueError(f"least_score={least_score} must lie in [0, 1)")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such detector: {path}; give an ONNX file of YuNet or SCRFD")
    network = _Network(path, threads)
    if set(network.outputs) >= {f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in STRIDES}:
        return YuNet(network, least_score)
    if len(network.outputs) == 9:
        return Scrfd(network, least_score)
    if len(network.outputs) == 6:
        raise FormatError("it is an SCRFD without the five points; use one with them (its name has 'kps')", path=path)
    raise FormatError(
        f"it is neither YuNet nor SCRFD: {len(network.outputs)} outputs, {', '.join(network.outputs[:4])}", path=path
    )


class _Network:
    def __init__(self, path: str | os.PathLike[str], threads: int) -> None:
        try:
            onnxruntime = import_unreported("onnxruntime")
        except ImportError as error:
            raise missing_library("onnxruntime", "A face detector") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it shares a service's processors
        content = mended(path).model  # refuses weights that lie elsewhere
        content = Path(content).read_bytes() if isinstance(content, str) else content
        try:
            self._session = onnxruntime.InferenceSession(unpack(content), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no class
            raise FormatError(
                f"not a model that onnxruntime opens: {str(error).splitlines()[0][:200]}", path=path
            ) from error
        [images] = self._session.get_inputs()[:1]
        if len(self._session.get_inputs()) != 1 or len(images.shape) != 4:
            raise FormatError(f"the input of a detector is (1, 3, H, W), this one has {images.shape}", path=path)
        self.path = path
        self.outputs: list[str] = [output.name for output in self._session.get_outputs()]
        self._input = images.name
        fixed = all(isinstance(n, int) for n in images.shape[2:])
        self.size: tuple[int, int] = (int(images.shape[2]), int(images.shape[3])) if fixed else SIZE

    def run(self, images: Floats) -> dict[str, Any]:
        found = self._session.run(None, {self._input: np.ascontiguousarray(images)})
        return dict(zip(self.outputs, found, strict=True))


class _Detector:
    """A photo to faces; a kind says how pixels become input, and outputs boxes."""

    kind: str
    overlap: float
    usual_score: float

    def __init__(self, network: _Network, least_score: float | None) -> None:
        self._network = network
        self.least_score = self.usual_score if least_score is None else least_score
        self._cv2 = _cv2()

    def __call__(self, image: Pixels) -> list[Face]:
        """See :class:`Detector`."""
        canvas, scale = fit_in(image, self._network.size, self._cv2)
        boxes, points, scores = self._found(canvas)
        sure = scores >= self.least_score
        boxes, points, scores = boxes[sure], points[sure], scores[sure]
        kept = thin_out(boxes, scores, self.overlap)
        return [Face(boxes[i] / scale, points[i] / scale, float(scores[i])) for i in kept.tolist()]

    def _found(self, canvas: Pixels) -> tuple[Floats, Floats, Floats]:
        raise NotImplementedError


class YuNet(_Detector):
    """YuNet (Wu et al., Machine Intelligence Research 2023): pixels of 0 to 255 as BGR; one guess for each cell."""

    kind = "yunet"
    overlap = 0.3
    usual_score = 0.7

    def _found(self, canvas: Pixels) -> tuple[Floats, Floats, Floats]:
        outputs = self._network.run(canvas[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32))
        boxes, points, scores = [], [], []
        for stride in STRIDES:
            corner = cells(stride, self._network.size)
            both = [outputs[f"{kind}_{stride}"].reshape(-1).clip(0, 1) for kind in ("cls", "obj")]
            scores.append(np.sqrt(both[0] * both[1]))
            guess = outputs[f"bbox_{stride}"].reshape(-1, 4)
            center = corner + guess[:, :2] * stride
            half = np.exp(guess[:, 2:]) * (stride / 2)
            boxes.append(np.concatenate([center - half, center + half], axis=1))
            points.append(corner[:, None] + outputs[f"kps_{stride}"].reshape(-1, 5, 2) * stride)
        return np.concatenate(boxes), np.concatenate(points), np.concatenate(scores)


class Scrfd(_Detector):
    """SCRFD (Guo et al., arXiv:2105.04714): RGB, (pixel - 127.5) / 128; distances from the corner of each cell."""

    kind = "scrfd"
    overlap = 0.4
    usual_score = 0.5

    def _found(self, canvas: Pixels) -> tuple[Floats, Floats, Floats]:
        images = (canvas.transpose(2, 0, 1)[None].astype(np.float32) - 127.5) / 128.0
        outputs = list(self._network.run(images).values())
        boxes, points, scores = [], [], []
        for stride, score, distance, keypoint in zip(STRIDES, *_in_threes(outputs, self._network.path), strict=True):
            places = (self._network.size[0] // stride) * (self._network.size[1] // stride)
            score = score.reshape(-1)
            corner = cells(stride, self._network.size, per_cell=len(score) // places)
            edge = distance.reshape(-1, 4) * stride
            boxes.append(np.concatenate([corner - edge[:, :2], corner + edge[:, 2:]], axis=1))
            points.append(corner[:, None] + keypoint.reshape(-1, 5, 2) * stride)
            scores.append(score)
        return np.concatenate(boxes), np.concatenate(points), np.concatenate(scores)


def _in_threes(
    outputs: Sequence[Any], path: str | os.PathLike[str]
) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """Scores, boxes and points, of the finest stride first; told apart by their sizes, whatever stands first."""
    found = sorted(outputs, key=lambda each: (each.shape[-1:], -each.size))
    if [each.shape[-1:] for each in found] != [(size,) for size in (1, 1, 1, 4, 4, 4, 10, 10, 10)]:
        raise FormatError(
            f"it is no SCRFD: nine outputs of sizes {[each.shape for each in found]}, where (n, 1), (n, 4) and (n, 10) "
            "are three times each",
            path=path,
        )
    return found[:3], found[3:6], found[6:]


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise missing_library("opencv-python-headless", "Finding faces") from error
    return cv2
