"""The summary of a model counts what is there."""

from __future__ import annotations

import torch
from torch import nn

from lightning_pfc import PartialFC
from lightning_pfc.callbacks.summary import describe


def test_centers_in_bfloat16_count_two_bytes_a_number() -> None:
    module = nn.ModuleDict(
        {
            "backbone": nn.Linear(10, 100, bias=False),
            "head": PartialFC(embedding_dim=100, num_classes=50_000, loss="CosFace", dtype=torch.bfloat16),
        }
    )
    module["backbone"].requires_grad_(False)
    module.to("cpu")  # gives the head its storage
    lines = [line.split() for line in describe(module).splitlines()]
    assert lines == [
        ["part", "type", "parameters", "MB"],
        ["backbone", "Linear", "1,000", "0.0"],
        ["head", "PartialFC", "5,000,000", "10.0"],
        ["all", "5,001,000", "10.0"],
        ["trained", "5,000,000", "10.0"],
    ]
