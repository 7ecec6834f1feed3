"""torch.compile of a user's whole training with inductor on a CPU: half a minute, most of it a C++ compiler's."""

from __future__ import annotations

import os
import re
import shutil
import sys

import pytest
import torch

from tests.unit.test_compiled import Model


def _has_compiler() -> bool:
    found = os.environ.get("CXX", "g++"), "clang++"
    return any(shutil.which(name) is not None for name in found)


@pytest.mark.skipif(not _has_compiler(), reason="inductor needs a C++ compiler, g++ or clang++")
@pytest.mark.skipif(sys.platform == "win32", reason="inductor's C++ is not set up on Windows")
def test_a_whole_step_with_inductor(tmp_path, monkeypatch):
    """The backbone is one compiled graph with all of its layers; the head one break; the steps are the same."""
    from torch._dynamo.utils import counters
    from torch._inductor.compile_fx import compile_fx

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    monkeypatch.setenv("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", "")  # inductor sets it, and leaves it
    monkeypatch.setattr(torch._inductor.config, "cpp_cache_precompile_headers", False, raising=False)  # takes longest
    torch._dynamo.reset()
    counters.clear()
    layers: list[int] = []

    def inductor(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        names = [str(node.target) for node in graph.graph.nodes if node.op in ("call_function", "call_module")]
        layers.append(sum("linear" in name for name in names))
        return compile_fx(graph, inputs)

    found = []
    for compiles in (False, True):
        torch.manual_seed(0)
        model = Model(0.5, "arcface")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = torch.compile(model, backend=inductor) if compiles else model
        images, labels = torch.randn(6, 12), torch.arange(6)
        for _ in range(3):
            loss = run(images, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    assert found[3:] == pytest.approx(found[:3], rel=1e-5)
    assert len(set(found[:3])) == 3
    assert [count for count in layers if count] == [2], "both layers in one graph"
    places = {re.search(r"function `?<function ([\w.]+)", text)[1] for text in counters["graph_break"]}
    assert places == {"PartialFC.loss_output"}
    assert counters["inductor"], "nothing was compiled by inductor"
    torch._dynamo.reset()
