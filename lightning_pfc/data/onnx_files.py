"""ONNX files of others, looked at before an engine opens them; without torch, for those who only serve."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning_pfc.data.errors import FormatError, missing_library, reading
from lightning_pfc.storage.enclosure import Enclosure
from lightning_pfc.storage.regular import check_regular, read_regular

_MAX_MODEL = 1 << 32  # bytes of a file; its format holds 2^31


class Mended(NamedTuple):
    """A model for an engine.

    Attributes:
        model: the path, or the bytes without the weights among the inputs.
        packed: whether only weights are quantised.
        graph: of onnx; None where that is not installed.
    """

    model: bytes | str
    packed: bool
    graph: Any


def mended(path: str | os.PathLike[str]) -> Mended:
    """A model that onnxruntime may open.

    Raises:
        FormatError: the file is no model, or names a file outside its folder.
        MissingLibraryError: it may name other files, and onnx is not there to tell which.
    """
    with reading(path, "an ONNX model"):
        content = read_regular(path, _MAX_MODEL)
    try:
        import onnx
    except ImportError as error:
        if b"location" in content:  # every tensor that lies in another file has this word beside it
            raise missing_library("onnx", f"{path} may keep weights in other files; to see where they lie") from error
        return Mended(os.fspath(path), False, None)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of protobuf, which is not named here
        raise FormatError(f"not an ONNX model: {error}", path=path) from error
    elsewhere = list(dict.fromkeys(_other_files(model.graph)))
    for name in elsewhere:
        _check_inside(Path(path), name)
    weights = {tensor.name for tensor in model.graph.initializer}
    kinds = {node.op_type for node in model.graph.node}
    packed = "DequantizeLinear" in kinds and "QuantizeLinear" not in kinds
    # Quantised models list the unpacked weights' old names too, which no node reads any more.
    read = {name for node in model.graph.node for name in node.input}
    kept = [value for value in model.graph.input if value.name not in weights and value.name in read]
    if len(kept) == len(model.graph.input) or elsewhere:
        return Mended(os.fspath(path), packed, model.graph)
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return Mended(model.SerializeToString(), packed, model.graph)


def _other_files(graph: Any) -> Iterator[str]:
    """The files that tensors of a graph, and of graphs within it, lie in."""
    sparse = [part for each in graph.sparse_initializer for part in (each.values, each.indices)]
    for tensor in (*graph.initializer, *sparse):
        yield from _location(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            for tensor in (attribute.t, *attribute.tensors):
                yield from _location(tensor)
            for inner in (attribute.g, *attribute.graphs):
                yield from _other_files(inner)


def _location(tensor: Any) -> Iterator[str]:
    if tensor.data_location == 1:  # EXTERNAL
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")


def _check_inside(model: Path, name: str) -> None:
    with reading(model, f"a model whose weights in {name!r} lie beside it"):
        if os.path.isabs(name):
            raise FormatError(f"it keeps weights in {name!r}, outside its own folder", path=model)
        check_regular(Enclosure(model.resolve().parent).real(name))
