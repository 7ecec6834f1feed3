"""A network as an ONNX file, by PyTorch's own exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_pfc.deploy.engines import import_engine
from lightning_pfc.deploy.errors import ExportError
from lightning_pfc.storage.whole_files import write_whole

OPSET = 20
LARGEST = 1_900_000_000  # bytes of weights in the file itself: protobuf ends at 2 GiB


def write_onnx(
    network: nn.Module,
    input_shape: tuple[int, int, int],
    path: Path,
    *,
    input_name: str,
    output_name: str,
    metadata: Mapping[str, str],
) -> None:
    """Trace a network and write it, for batches of any size.

    Args:
        network: (b, C, H, W) float32 -> (b, D) float32, in evaluation mode.
        input_shape: (C, H, W).
        path: the file to write; the weights of a very large network lie beside it, as NAME.data.
        input_name: of the tensor of images.
        output_name: of the tensor of embeddings.
        metadata: names and texts to keep in the file.

    Raises:
        ExportError: PyTorch cannot express the network; names its type.
        EngineError: onnx or onnxscript is not installed.
    """
    import_engine("onnx", "export")
    import_engine("onnxscript", "export")
    images = torch.zeros((2, *input_shape))
    try:
        with quiet():
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[input_name],
                output_names=[output_name],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever its passes raise
        raise ExportError(f"the network cannot be exported to ONNX: {_reason(error)}") from error
    assert program is not None
    _strip(program.model)
    program.model.metadata_props.update(metadata)
    large = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()) > LARGEST
    program.save(os.fspath(path), external_data=large)


def write_pt2(network: nn.Module, input_shape: tuple[int, int, int], path: Path) -> None:
    """Trace a network and write it with ``torch.export.save``, for batches of any size.

    Raises:
        ExportError: PyTorch cannot express the network.
        OSError: it cannot be written.
    """
    images = torch.zeros((2, *input_shape))
    try:
        with quiet():
            program = torch.export.export(
                network, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False
            )
            made = io.BytesIO()  # PyTorch's own writer ends the process where the disk is full
            torch.export.save(program, made)
        with write_whole(path) as file:
            file.write(made.getbuffer())
    except OSError:
        raise
    except Exception as error:
        raise ExportError(f"the network cannot be exported by torch.export: {_reason(error)}") from error


def _strip(model: Any) -> None:
    """Take out what the exporter notes of this machine: the lines of source code, with their paths."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes() if hasattr(graph, "all_nodes") else graph:
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            value.metadata_props.clear()
        graph.metadata_props.clear()
    model.metadata_props.clear()


def _reason(error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:300]}" if lines else type(cause).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's own remarks, which are not for users of this package."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
