"""torch.compile of a user's training: the backbone is one graph, the head one call between two."""

from __future__ import annotations

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
