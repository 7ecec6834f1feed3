"""Checkpoints at addresses: read where they are, files and folders, by one rank and by two."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import torch
from torch import Tensor

from lightning_pfc.checkpoint import CheckpointError
from tests.ranks import RankPool
from tests.trainer.world import TheirModule, make_loader, make_trainer


def _trained(rank: int, world_size: int, steps: int, save: str | None = None, resume: str | None = None) -> Tensor:
    torch.manual_seed(0)
    module = TheirModule(sample_rate=0.5)
    trainer = make_trainer(rank, world_size, max_steps=steps)
    trainer.fit(module, make_loader(rank, world_size), ckpt_path=resume)
    if save is not None:
        trainer.save_checkpoint(save)
    return module.head.weight.detach().clone()


def in_memory(rank: int, world_size: int, local: str) -> tuple[Tensor, Tensor]:
    address = "memory://runs/half.ckpt"
    _trained(rank, world_size, 2, save=local)
    _trained(rank, world_size, 2, save=address)
    resumed = _trained(rank, world_size, 4, resume=address)
    with fsspec.open(address, "rb") as file:
        data = file.read()
    with fsspec.open(address, "wb") as file:
        file.write(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"memory://runs/half.ckpt"):
        _trained(rank, world_size, 4, resume=address)
    with pytest.raises(FileNotFoundError, match=r"memory://runs/none.ckpt does not exist"):
        _trained(rank, world_size, 4, resume="memory://runs/none.ckpt")
    return resumed, _trained(rank, world_size, 4, resume=local)


def folder(rank: int, world_size: int, local: str) -> tuple[Tensor, Tensor]:
    _trained(rank, world_size, 2, save=local)
    return tuple(_trained(rank, world_size, 4, resume=place) for place in (f"file://{local}", local))  # type: ignore[return-value]


def test_a_file_at_an_address_is_resumed(ranks: RankPool, tmp_path: Path) -> None:
    there, here = ranks.run(1, in_memory, str(tmp_path / "half.ckpt"))[0]
    torch.testing.assert_close(there, here, rtol=0, atol=0)


def test_a_folder_at_an_address_is_resumed(ranks: RankPool, tmp_path: Path) -> None:
    for there, here in ranks.run(2, folder, str(tmp_path / "half.ckpt")):
        torch.testing.assert_close(there, here, rtol=0, atol=0)


def test_a_checkpoint_may_be_looked_at_before_there_are_ranks(ranks: RankPool, tmp_path: Path) -> None:
    """As Lightning's own connector does where callbacks are restored without a fit."""
    ranks.run(1, in_memory, str(tmp_path / "half.ckpt"))
    trainer = make_trainer(0, 1)
    trainer._checkpoint_connector.resume_start(str(tmp_path / "half.ckpt"))
    assert trainer._checkpoint_connector._loaded_checkpoint["global_step"] == 2
