"""What pixels an ONNX model takes, as far as its file shows: its first nodes, or ONNX's own metadata of images.

Files of others seldom say whether ``(pixel - mean) / std`` is for the caller or done inside. A network that scales
inside and is given scaled pixels sees one grey, and nothing fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RANGES = {"0 to 255": (0.0, 255.0), "0 to 1": (0.0, 1.0), "-1 to 1": (-1.0, 1.0)}
_SCALING = {"0 to 255": (0.0, 1.0), "0 to 1": (0.0, 255.0), "-1 to 1": (127.5, 127.5)}
_NOMINAL = {"NominalRange_0_255": "0 to 255", "Normalized_0_1": "0 to 1", "Normalized_1_1": "-1 to 1"}
_FORMATS: dict[str, Literal["rgb", "bgr"]] = {"Rgb8": "rgb", "Bgr8": "bgr"}
_RED_FIRST = ((123.675, 116.28, 103.53), (131.1, 103.9, 91.5))  # means of ImageNet and of VGGFace2, red, green, blue
_LARGEST = 1 << 24  # numbers of a constant that is looked at: a mean picture has some


@dataclass(frozen=True)
class Shown:
    """What a file shows.

    Attributes:
        range: of the pixels that it takes, a key of ``RANGES``; None: it shows nothing.
        color: order of the channels; None likewise.
        by: what shows the range, for messages.
    """

    range: str | None = None
    color: Literal["rgb", "bgr"] | None = None
    by: str = ""

    @property
    def scaling(self) -> tuple[float, float] | None:
        """Mean and std that bring pixels in 0 to 255 into the range."""
        return None if self.range is None else _SCALING[self.range]


def shown(metadata: Mapping[str, str], graph: Any, name: str) -> Shown:
    """What a file shows: what its metadata say, else its first nodes.

    Args:
        metadata: of the file.
        graph: of onnx; None where that is not installed.
        name: of the input.
    """
    told, seen = _by_metadata(metadata), Shown() if graph is None else _by_graph(graph, name)
    return Shown(told.range or seen.range, told.color or seen.color, told.by or seen.by)


def _by_metadata(metadata: Mapping[str, str]) -> Shown:
    """What ONNX's own keys for models of images say."""
    found = _NOMINAL.get(metadata.get("Image.NominalPixelRange", ""))
    color = _FORMATS.get(metadata.get("Image.BitmapPixelFormat", ""))
    return Shown(found, color, "Image.NominalPixelRange in its metadata" if found else "")


def _by_graph(graph: Any, name: str) -> Shown:
    """What the first nodes behind an input show: constants that are taken off and multiplied by, statistics, ranges."""
    constants, steps = _Constants(graph), _Steps()
    for node, others in _path(graph, name):
        if node.op_type == "BatchNormalization":
            steps.passed.append(node.op_type)
            return (
                steps.by_values() or steps.by_statistics(*(constants.get(each) for each in node.input[3:5])) or Shown()
            )
        if node.op_type == "QuantizeLinear":
            steps.passed.append(node.op_type)
            return steps.by_values() or steps.by_limits(constants.get(node.input[1])) or Shown()
        if node.op_type in ("Sub", "Add", "Mul", "Div"):
            value = constants.get(others[0]) if others else None
            if value is None or (node.op_type in ("Sub", "Div") and node.input[0] == others[0]):
                break
            steps.add(node.op_type, value)
    return steps.by_values() or Shown()


def _path(graph: Any, name: str) -> Iterator[tuple[Any, list[str]]]:
    """The nodes behind an input one after the other, while they only move or scale numbers; their other inputs."""
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for each in dict.fromkeys(node.input):
            readers.setdefault(each, []).append(node)
    for _ in range(16):
        found = readers.get(name, [])
        if len(found) != 1 or found[0].op_type not in _FOLLOWED:
            return
        yield found[0], [each for each in found[0].input if each != name]
        name = found[0].output[0]


_FOLLOWED = {"Identity", "Cast", "Transpose", "Sub", "Add", "Mul", "Div", "BatchNormalization", "QuantizeLinear"}


class _Constants:
    """The numbers of a graph that no input changes."""

    def __init__(self, graph: Any) -> None:
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            for each in node.attribute if node.op_type == "Constant" else ():
                if each.name == "value":
                    self._tensors[node.output[0]] = each.t

    def get(self, name: str) -> Floats | None:
        """One of them, a number or one per channel; None if it is none, or lies in another file."""
        tensor = self._tensors.get(name)
        if tensor is None or tensor.data_location == 1 or np.prod([*tensor.dims, 1.0]) > _LARGEST:
            return None
        from onnx import numpy_helper

        found = np.asarray(numpy_helper.to_array(tensor), np.float64)
        if found.ndim >= 3 and found.size > found.shape[-3]:  # a mean picture (C, H, W); or (H, W, C)
            channels_last = found.shape[-1] in (1, 3)
            found = found.reshape(-1, found.shape[-1]).mean(0) if channels_last else found.mean((-2, -1))
        return found.reshape(-1) if found.size in (1, 3) and np.isfinite(found).all() else None


class _Steps:
    """``scale * pixel + shift``, of all steps so far, a number or one per channel."""

    def __init__(self) -> None:
        self.scale, self.shift = np.ones(1), np.zeros(1)
        self.passed: list[str] = []

    def add(self, kind: str, value: Floats) -> None:
        """One more step."""
        self.passed.append(kind)
        if kind in ("Mul", "Div"):
            factor = value if kind == "Mul" else 1.0 / np.where(value == 0, np.nan, value)
            self.scale, self.shift = self.scale * factor, self.shift * factor
        else:
            self.shift = self.shift + (value if kind == "Add" else -value)

    def by_values(self) -> Shown | None:
        """The range that the steps bring to where networks compute, if it is only one; None: the steps do not tell."""
        scale, shift = float(self.scale.mean()), float(self.shift.mean())
        if not self.passed or not np.isfinite([scale, shift]).all():
            return None
        fitting = [name for name, ends in RANGES.items() if _usual(*sorted(scale * end + shift for end in ends))]
        return self._shown(fitting[0]) if len(fitting) == 1 else None

    def by_statistics(self, mean: Floats | None, variance: Floats | None) -> Shown | None:
        """The range that a first batch normalisation has met in training."""
        if mean is None or variance is None or not np.isfinite(self.scale).all() or not self.scale.all():
            return None
        center = float(((mean - self.shift) / self.scale).mean())
        spread = float((np.sqrt(np.abs(variance)) / np.abs(self.scale)).mean())
        fitting = [
            name
            for name, (low, high) in RANGES.items()
            if low + 0.1 * (high - low) < center < high - 0.1 * (high - low) and 0.16 < spread / (high - low) < 0.42
        ]
        return self._shown(fitting[0]) if len(fitting) == 1 else None

    def by_limits(self, step: Floats | None) -> Shown | None:
        """The range that a first quantisation to 8 bits was measured on, with all of its 256 steps."""
        if step is None or step.size != 1 or not self.scale.all():
            return None
        width = 255 * float(step[0]) / float(np.abs(self.scale).mean())
        fitting = [name for name, (low, high) in RANGES.items() if 0.9 < width / (high - low) < 1.1]
        return self._shown(fitting[0]) if len(fitting) == 1 else None

    def _shown(self, range: str) -> Shown:
        found = Shown(range, None, f"its first nodes ({', '.join(self.passed)})")
        if not self.scale.all() or max(self.scale.size, self.shift.size) != 3:
            return found
        mean, std = _SCALING[range]
        middle = np.broadcast_to(-self.shift / self.scale, 3) * std + mean
        for known in _RED_FIRST:
            if np.abs(middle - known).max() < 3:
                return replace(found, color="rgb")
            if np.abs(middle - known[::-1]).max() < 3:
                return replace(found, color="bgr")
        return found


def _usual(low: float, high: float) -> bool:
    """Whether networks compute with numbers from ``low`` to ``high``: about zero, from zero on, or whole pixels."""
    width = high - low
    about_zero = 0.9 < width < 6 and abs(low + high) < 0.4 * width
    from_zero = 0.9 < width < 2.1 and abs(low) < 0.02 * width
    pixels = 200 < width < 300 and -160 < low < 5
    return about_zero or from_zero or pixels
