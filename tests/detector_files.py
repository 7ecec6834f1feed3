"""Face detectors as ONNX files that find planted faces: a white cell of 8 pixels on a darker photo is one.

The box reaches 56 pixels around the upper left corner of the cell, and the five points lie in it as in a picture that
is aligned already: so the aligned face is a piece of the photo, unchanged.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lightning_pfc.data.curation.alignment import TEMPLATE

EDGE, HALF = 640, 56
POINTS = (TEMPLATE - HALF).astype(np.float32)  # from the corner of the cell


def plant(size: tuple[int, int], *cells: tuple[int, int], seed: int = 0) -> np.ndarray:
    """(h, w, 3) uint8: noise with a white cell at each (x, y), which are multiples of 8."""
    photo = np.random.default_rng(seed).integers(0, 120, (*size, 3), dtype=np.uint8)
    for x, y in cells:
        photo[y : y + 8, x : x + 8] = 255
    return photo


def write_scrfd(path: Path, points: bool = True, *, reverse: bool = False) -> Path:
    """Outputs as InsightFace's: scores, boxes and points of strides 8, 16 and 32, two anchors to a cell."""
    outputs: dict[str, list] = {"score": [], "box": [], "point": []}
    graph = _Graph()
    for stride in (8, 16, 32):
        score = graph.pooled(stride, scale=1.0 if stride == 8 else 0.0, shift=0.0 if stride == 8 else -1.0)
        pair = graph.node("Concat", [score, score], axis=2)
        outputs["score"].append(graph.output(graph.reshaped(pair, [-1, 1]), 2))
        count = 2 * (EDGE // stride) ** 2
        outputs["box"].append(graph.output(graph.constant(np.full((count, 4), HALF / stride)), 2))
        rows = np.repeat((POINTS / stride).reshape(1, 10), count, axis=0)
        outputs["point"].append(graph.output(graph.constant(rows), 2))
    wanted = outputs["score"] + outputs["box"] + (outputs["point"] if points else [])
    return graph.write(path, wanted[::-1] if reverse else wanted)


def write_yunet(path: Path) -> Path:
    """Outputs as OpenCV's: class, objectness, box and points of strides 8, 16 and 32."""
    graph, outputs = _Graph(), []
    for stride in (8, 16, 32):
        score = graph.pooled(stride, scale=1 / 255 if stride == 8 else 0.0)
        count = (EDGE // stride) ** 2
        outputs.append(graph.output(score, 3, f"cls_{stride}"))
        outputs.append(graph.output(graph.constant(np.ones((1, count, 1))), 3, f"obj_{stride}"))
        box = np.tile(np.array([0, 0, *[np.log(2 * HALF / stride)] * 2]), (1, count, 1))
        outputs.append(graph.output(graph.constant(box), 3, f"bbox_{stride}"))
        rows = np.tile((POINTS / stride).reshape(1, 1, 10), (1, count, 1))
        outputs.append(graph.output(graph.constant(rows), 3, f"kps_{stride}"))
    return graph.write(path, outputs)


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], **attributes: object) -> str:
        name = f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, values: np.ndarray) -> str:
        name = f"weight{len(self.weights)}"
        dtype = np.int64 if values.dtype.kind == "i" else np.float32
        self.weights.append(numpy_helper.from_array(values.astype(dtype), name))
        return name

    def reshaped(self, value: str, shape: list[int]) -> str:
        return self.node("Reshape", [value, self.constant(np.array(shape))])

    def pooled(self, stride: int, *, scale: float, shift: float = 0.0) -> str:
        """(1, n, 1): means of the first channel over the cells, row by row."""
        channel = self.node("Slice", ["images", *(self.constant(np.array([n])) for n in (0, 1, 1))])
        mean = self.node("AveragePool", [channel], kernel_shape=[stride] * 2, strides=[stride] * 2)
        scaled = self.node("Mul", [mean, self.constant(np.array(scale))])
        return self.reshaped(self.node("Add", [scaled, self.constant(np.array(shift))]), [1, -1, 1])

    def output(self, value: str, rank: int, name: str = "") -> onnx.ValueInfoProto:
        name = name or f"out_{value}"
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)

    def write(self, path: Path, outputs: list[onnx.ValueInfoProto]) -> Path:
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, EDGE, EDGE])
        graph = helper.make_graph(self.nodes, "detector", [images], outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)
        return path
