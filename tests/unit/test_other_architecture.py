"""Whoever opens a checkpoint of another architecture is told so in one line, and which tensor it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lightning_pfc import PartialFCModule
from lightning_pfc.checkpoint import CheckpointError


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = PartialFCModule(
        backbone="glyphnet", num_classes=3, embedding_dim=8, input_size=(1, 32, 32), loss="cosface", neck="linear"
    )
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module.to("cpu"))  # its centers are made
    made = tmp_path_factory.mktemp("other") / "model.ckpt"
    trainer.save_checkpoint(made)
    return made


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "a backbone": ({"backbone": "resnet18"}, r"not in it, backbone\.\S+ first; .* are not in the model, backbone\."),
    "a neck": ({"neck": "bn"}, r"not in it, neck\.\S+ first"),
    "widths": (
        {"backbone_options": {"widths": [33, 64, 128, 256]}},
        r"shape \(32, 1, 3, 3\), and glyphnet as .* \(33, 1,",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_architecture_by_the_users_word(case: str, path: Path) -> None:
    words, expected = OTHERS[case]
    with pytest.raises(CheckpointError, match=expected) as caught:
        PartialFCModule.load_from_checkpoint(path, **words)
    said = str(caught.value)
    assert said.startswith(str(path))
    assert "\n" not in said
