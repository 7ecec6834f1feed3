"""The same network in fewer bits: float16 and int8 as files, bfloat16 as a word to the engine."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lightning_pfc.deploy.engines import Floats, import_engine
from lightning_pfc.deploy.errors import ExportError
from lightning_pfc.deploy.onnx_file import quiet

CALIBRATION_PICTURES = 256


def write_int8(float32: Path, target: Path, images: Floats, *, input_name: str) -> None:
    """Quantise an ONNX file: 8-bit weights, one scale per output channel, and activations whose ranges are measured.

    Only kinds of nodes that gain by it are touched; the file has pairs of QuantizeLinear and DequantizeLinear nodes, so
    that onnxruntime, OpenVINO and TensorRT read the same one.

    Args:
        float32: The file to start from.
        target: The file to write.
        images: (n, C, H, W) float32 real pictures, to measure ranges on.
        input_name: Of its input.

    Raises:
        ExportError: onnxruntime cannot quantise it.
        EngineError: onnxruntime is not installed.
    """
    import_engine("onnxruntime", "export")
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        with quiet(), _quiet_root(), tempfile.TemporaryDirectory(dir=target.parent) as folder:
            ready = Path(folder) / "ready.onnx"
            # Folds batch norms into convolutions first: each would else be a rounding of its own.
            quant_pre_process(os.fspath(float32), os.fspath(ready), skip_symbolic_shape=True)
            quantization.quantize_static(
                os.fspath(ready),
                os.fspath(target),
                _reader(images, input_name),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                # Weights of 7 bits: processors without 8-bit dot products (AVX2, AVX-512 without VNNI) add pairs of
                # products in 16 bits, which products of 8 bits overflow, and a file is used on other machines too.
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add"],
            )
    except OSError:
        raise
    except Exception as error:  # its errors share no class
        lines = str(error).splitlines() or [type(error).__name__]
        raise ExportError(f"precision=int8: onnxruntime cannot quantise the network: {lines[0][:300]}") from error


def _reader(images: Floats, input_name: str) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches: Iterator[Floats] = (images[start : start + 16] for start in range(0, len(images), 16))

        def get_next(self) -> dict[str, Floats] | None:
            batch = next(self._batches, None)
            return None if batch is None else {input_name: batch}

    return Reader()


class _quiet_root:
    """onnxruntime's quantiser talks through the root logger."""

    def __enter__(self) -> None:
        self._before: Callable[[logging.LogRecord], Any] | int = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._before if isinstance(self._before, int) else logging.NOTSET)
