"""ONNX files whose weights are packed as 8-bit numbers, unpacked once on opening instead of for every picture.

OpenCV's zoo publishes its detectors so (``..._int8bq.onnx``), in a form that onnxruntime refuses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def unpack(content: bytes) -> bytes:
    """Replace every DequantizeLinear node of a constant by the numbers that it gives.

    Args:
        content: An ONNX file.

    Returns:
        The file without such nodes; the same bytes if it had none, or onnx is not installed.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        return content
    model = onnx.load_model_from_string(content)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    packed = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and all(i in constants for i in n.input)]
    if not packed:
        return content
    for node in packed:
        arrays = [numpy_helper.to_array(constants[name]) for name in node.input]
        given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        values = dequantized(*arrays, axis=int(given.get("axis", 1)), block=int(given.get("block_size", 0)))
        model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        model.graph.node.remove(node)
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    inputs = [value for value in model.graph.input if value.name in read and value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    unpacked: bytes = model.SerializeToString()
    return unpacked


def dequantized(
    values: npt.NDArray[Any], scale: npt.NDArray[Any], zero: npt.NDArray[Any] | None = None, *, axis: int, block: int
) -> npt.NDArray[np.float32]:
    """What DequantizeLinear (ONNX, opset 21) gives: one scale for all, one for each index of an axis, or for blocks.

    Args:
        values: Integers.
        scale: () or (1,); (n,) along ``axis``; or of the rank of ``values``, with blocks along ``axis``.
        zero: Of the shape of ``scale``; None is 0.
        axis: Of the scales.
        block: Size of a block.
    """
    zero = np.zeros_like(scale) if zero is None else zero.astype(np.float32)
    if scale.size > 1 and scale.ndim == 1 and not block:
        shape = [1] * values.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    elif scale.size > 1:
        repeats = block or -(-values.shape[axis] // scale.shape[axis])
        scale, zero = (
            np.repeat(part, repeats, axis=axis).take(range(values.shape[axis]), axis=axis) for part in (scale, zero)
        )
    else:
        scale, zero = scale.reshape(()), zero.reshape(())
    found: npt.NDArray[np.float32] = ((values.astype(np.float32) - zero) * scale).astype(np.float32)
    return found
