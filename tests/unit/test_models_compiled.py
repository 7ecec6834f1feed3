"""Weights have one name, whether a part was compiled or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_pfc import PartialFCModule
from lightning_pfc.checkpoint.network import network_checkpoint
from lightning_pfc.models.backbone import create_backbone


def module() -> PartialFCModule:
    made = PartialFCModule(backbone="resnet10t", num_classes=5, embedding_dim=8, input_size=(3, 32, 32), loss="cosface")
    made.to("cpu")  # gives the head its storage
    return made


def compiled() -> Any:
    made: Any = module()
    made.backbone = torch.compile(made.backbone, backend="eager")
    return made


def test_a_compiled_backbone_saves_names_that_load_everywhere() -> None:
    plain: Any = module()
    other = compiled()
    assert list(other.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(other.state_dict())
    assert torch.equal(plain.backbone.conv1[0].weight, other.backbone._orig_mod.conv1[0].weight)
    third = compiled()
    third.load_state_dict(plain.state_dict())
    assert torch.equal(third.backbone._orig_mod.conv1[0].weight, plain.backbone.conv1[0].weight)


def test_checkpoints_of_before_load_too(tmp_path: Path) -> None:
    source = module()
    old = {name.replace("backbone.", "backbone._orig_mod."): value for name, value in source.state_dict().items()}
    for target in (module(), compiled()):
        target.load_state_dict(old)
        assert all(torch.equal(a, b) for a, b in zip(target.state_dict().values(), old.values(), strict=True))
    content = {"state_dict": old, "hyper_parameters": dict(source.hparams), "pytorch-lightning_version": "2.6.6"}
    torch.save(content, tmp_path / "old.ckpt")
    assert set(network_checkpoint(tmp_path / "old.ckpt")["state_dict"]) == set(source.state_dict())


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("r50", "iresnet50"), ("ir_101", "iresnet100"), ("mbf", "mobilefacenet"), ("vit_t", "face_vit_tiny")],
)
def test_names_of_others_are_answered_with_the_same_network(asked: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"Did you mean {meant}\?"):
        create_backbone(asked)
