"""What computes an exported network: onnxruntime, OpenVINO on the same file, or PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_pfc.deploy.errors import EngineError, ExportError
from lightning_pfc.unreported import import_unreported

Floats = npt.NDArray[np.float32]


class Engine(Protocol):
    """A network that is ready to run; calls from several threads are safe."""

    name: str

    def __call__(self, images: Floats) -> Floats:
        """(b, C, H, W) float32 to (b, D) float32; any b of at least 1."""


class OnnxRuntime:
    """An ONNX file through onnxruntime.

    Args:
        path: the file.
        threads: that one call may use; 0 leaves it to onnxruntime.
        precision: what the file computes in; bfloat16 is refused, onnxruntime has no kernels for it.

    Raises:
        EngineError: onnxruntime is not installed, or does not take the file.
    """

    name = "onnxruntime"

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 0, precision: str = "float32") -> None:
        runtime = import_engine("onnxruntime", "export")
        if precision == "bfloat16":
            raise EngineError("onnxruntime computes nothing in bfloat16: use engine='openvino'")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what is wrong is raised, and said once
        # Threads that wait for work by spinning take the processor from those that decode pictures and answer requests.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._path = path
        try:
            self._session = runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no class
            raise ExportError(f"onnxruntime does not take it: {_first_line(error)}", path) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise ExportError(f"must have one input (b, C, H, W), found {[value.name for value in inputs[:4]]}", path)
        self._input, self._output = inputs[0].name, outputs[0].name
        self.image_shape = tuple(edge if isinstance(edge, int) else None for edge in inputs[0].shape[1:])

    def __call__(self, images: Floats) -> Floats:
        """(b, C, H, W) float32 to (b, D) float32."""
        try:
            found: Floats = self._session.run([self._output], {self._input: np.ascontiguousarray(images)})[0]
        except Exception as error:  # its errors share no class
            raise ExportError(f"onnxruntime cannot compute it: {_first_line(error)}", self._path) from error
        return found


class OpenVino:
    """An ONNX file through OpenVINO, on the processor.

    OpenVINO would choose bfloat16 by itself where the processor has it; here it computes in what was asked for.

    Args:
        path: the file.
        threads: that one call may use; 0 leaves it to OpenVINO.
        precision: ``"bfloat16"`` computes a float32 file in it; all others compute what the file says.

    Raises:
        EngineError: OpenVINO is not installed, or does not take the file.
    """

    name = "openvino"

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 0, precision: str = "float32") -> None:
        runtime = import_engine("openvino", "openvino")
        core = runtime.Core()
        hint = "bf16" if precision == "bfloat16" else "f32"
        if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise EngineError("precision='bfloat16': this processor has no bfloat16; use float32")
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._model = core.compile_model(os.fspath(path), "CPU", settings)
        except Exception as error:
            raise ExportError(f"OpenVINO does not take it: {_first_line(error)}", path) from error
        if len(self._model.inputs) != 1:
            raise ExportError(f"must have one input (b, C, H, W), found {len(self._model.inputs)}", path)
        shape = list(self._model.inputs[0].get_partial_shape())[1:]
        self.image_shape = tuple(edge.get_length() if edge.is_static else None for edge in shape)
        self._path = path

    def __call__(self, images: Floats) -> Floats:
        """(b, C, H, W) float32 to (b, D) float32."""
        request = self._model.create_infer_request()
        try:
            found = request.infer([np.ascontiguousarray(images)])[self._model.output(0)]
        except Exception as error:
            raise ExportError(f"OpenVINO cannot compute it: {_first_line(error)}", self._path) from error
        return np.array(found, dtype=np.float32)


FileEngine: TypeAlias = OnnxRuntime | OpenVino
"""What opens an ONNX file; knows as ``image_shape`` the (C, H, W) that the file takes, None where it takes any."""

ENGINES: dict[str, Callable[..., FileEngine]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def open_engine(name: str, path: str | os.PathLike[str], *, threads: int = 0, precision: str = "float32") -> FileEngine:
    """An engine by its name.

    Raises:
        ValueError: there is none of that name.
        EngineError: it is not installed, or cannot compute in ``precision`` here.
        ExportError: it does not take the file.
    """
    if name not in ENGINES:
        raise ValueError(f"engine={name!r} does not exist; there are {', '.join(sorted(ENGINES))} and torch")
    if threads < 0:
        raise ValueError(f"threads={threads} must be 0 (the engine chooses) or more")
    if not Path(path).is_file():
        raise ExportError("no such model", path)
    return ENGINES[name](path, threads=threads, precision=precision)


def check_network(
    network: FileEngine, image_shape: tuple[int, int, int], width: int, path: str | os.PathLike[str]
) -> None:
    """Whether a network is what its description says: the pictures that it takes, and the embedding of one.

    Raises:
        ExportError: it is another; says what it has.
    """
    if any(have not in (None, said) for have, said in zip(network.image_shape, image_shape, strict=False)):
        raise ExportError(f"takes pictures {network.image_shape}, model.json says {image_shape}; export again", path)
    found = network(np.zeros((1, *image_shape), np.float32))
    if found.shape != (1, width) or found.dtype.kind != "f":
        raise ExportError(
            f"gives {found.dtype} {found.shape} for one picture, model.json says {width} numbers; export again", path
        )


def import_engine(name: str, extra: str) -> Any:
    """Import an engine's package.

    Raises:
        EngineError: it is not installed; says how to get it.
    """
    try:
        return import_unreported(name)
    except ImportError as error:
        raise EngineError(
            f"engine={name!r} is not installed: pip install {name}, or pip install 'lightning-pfc[{extra}]'"
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
