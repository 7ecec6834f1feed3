"""torch.compile of a user's training: the backbone is one graph, the head one call between two."""

from __future__ import annotations

import os
import shutil
import sys

import pytest
import torch
from torch import nn

from lightning_pfc import PartialFC

pytest.importorskip("torch._dynamo")


class Model(nn.Module):
    def __init__(self, rate: float, loss: str) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))
        self.head = PartialFC(embedding_dim=8, num_classes=40, loss=loss, sample_rate=rate, device="cpu")

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.head(self.backbone(images), labels)
        return loss * 1.0


@pytest.mark.parametrize(("rate", "loss"), [(1.0, "cosface"), (0.3, "arcface"), (0.3, "adaface")])
def test_one_break_at_the_head_and_none_in_the_backbone(rate, loss):
    model = Model(rate, loss)
    images, labels = torch.randn(6, 12), torch.arange(6)
    explained = torch._dynamo.explain(model)(images, labels)
    assert explained.graph_break_count <= 1
    assert explained.graph_count == 2
    assert torch._dynamo.explain(model.backbone)(images).graph_break_count == 0


def test_a_compiled_training_takes_the_steps_of_one_that_is_not():
    found = []
    for compiles in (False, True):
        torch.manual_seed(0)
        model = Model(0.5, "cosface")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(images: torch.Tensor, labels: torch.Tensor, model=model, optimizer=optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(images, labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        run = torch.compile(step, backend="aot_eager") if compiles else step
        images, labels = torch.randn(6, 12), torch.arange(6)
        found.append([run(images, labels).item() for _ in range(4)])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


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
    assert sum(counters["graph_break"].values()) == 1
    assert counters["inductor"], "nothing was compiled by inductor"
    torch._dynamo.reset()
