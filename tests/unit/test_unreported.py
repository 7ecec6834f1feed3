"""No engine that we open leaves a number in the home folder, looks for a host or opens a connection."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import sys
asked = []
sys.addaudithook(lambda event, args: asked.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
name, path = sys.argv[1:]
if name == "detector":
    from lightning_pfc.faces.detectors import open_detector
    try:
        open_detector(path)
    except ValueError as error:
        assert "neither YuNet nor SCRFD" in str(error), error
elif name == "embedder":
    from lightning_pfc.evaluation.onnx_embedder import OnnxEmbedder
    OnnxEmbedder(path, mean=0.5, std=0.5, channels="rgb")
elif name.startswith("plain "):
    __import__(name.removeprefix("plain "))
else:
    from lightning_pfc.deploy.engines import open_engine
    import numpy as np
    open_engine(name, path)(np.zeros((1, 3, 8, 8), np.float32))
assert not asked, asked
"""
_SAID = ("ORT_DISABLE_TELEMETRY", "CI", "TF_BUILD", "JENKINS_URL", "GITHUB_ACTIONS", "XDG_CACHE_HOME")


def small_network(path: Path) -> Path:
    onnx = pytest.importorskip("onnx")
    value, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("GlobalAveragePool", ["data"], ["pooled"]),
            onnx.helper.make_node("Flatten", ["pooled"], ["out"]),
        ],
        "mean of each colour",
        [value("data", kind, ["b", 3, 8, 8])],
        [value("out", kind, ["b", 3])],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def left_in_home(name: str, model: Path, home: Path) -> list[str]:
    """What a process that opens a model has left in its home folder."""
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in _SAID}
    environment |= {"HOME": str(home), "USERPROFILE": str(home)}
    command = [sys.executable, "-c", _PROGRAM, name, str(model)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or name.startswith("plain "), done.stderr
    found = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
    return [path for path in found if "matplotlib" not in path]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "embedder", "detector"])
def test_an_engine_leaves_nothing_and_asks_nobody(name: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino" if name == "openvino" else "onnxruntime")
    assert left_in_home(name, small_network(tmp_path / "m.onnx"), tmp_path / "home") == []


@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
def test_what_they_leave_by_themselves_would_be_seen(library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    if not left_in_home(f"plain {library}", tmp_path / "m.onnx", tmp_path / "home"):
        pytest.skip(f"this version of {library} keeps no number")
