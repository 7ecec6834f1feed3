"""A run that is interrupted again after it went on ends as one that never was, wherever the two moments lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback

from tests.ranks import RankPool
from tests.trainer.world import Resumable, TheirModule, make_trainer

STEPS = 6  # of an epoch
PAIRS = [(6, 9), (6, 12), (3, 9), (3, 6), (7, 11), (12, 15), (12, 13)]


class Killed(Exception):
    """Stands for the end of the process."""


class Ends(Callback):
    """Saves behind a step and ends there, before the epoch's end if that is near; notes what happened."""

    def __init__(self, file: str, step: int) -> None:
        self.file, self.step = file, step
        self.losses: dict[int, float] = {}
        self.begun: list[int] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun.append(trainer.current_epoch)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        assert trainer.global_step not in self.losses
        self.losses[trainer.global_step] = float(outputs["loss"])
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)
            raise Killed


def fit(rank: int, world_size: int, file: str, stop: int, resume: str | None) -> Ends:
    ends = Ends(file, stop)
    trainer = make_trainer(rank, world_size, max_epochs=3, callbacks=[ends])
    loader: Any = Resumable(rank, world_size)
    try:
        trainer.fit(TheirModule(sample_rate=0.5), loader, ckpt_path=resume)
    except Killed:
        assert stop > 0
    return ends


def interrupted_twice(rank: int, world_size: int, folder: str, pairs: list[tuple[int, int]]) -> Any:
    whole = fit(rank, world_size, "", -1, None)
    found = []
    for first, second in pairs:
        files = f"{folder}/{first}-{second}-a.ckpt", f"{folder}/{first}-{second}-b.ckpt"
        starts = [
            fit(rank, world_size, files[0], first, None),
            fit(rank, world_size, files[1], second, files[0]),
            fit(rank, world_size, "", -1, files[1]),
        ]
        losses = [loss for start in starts for loss in start.losses.items()]
        found.append((losses, [epoch for start in starts for epoch in start.begun]))
    return list(whole.losses.items()), whole.begun, found


@pytest.mark.parametrize(("world_size", "pairs"), [(1, PAIRS), (2, PAIRS[:1])])
def test_a_run_interrupted_twice_ends_as_one_that_was_not(
    ranks: RankPool, tmp_path: Path, world_size: int, pairs: list[tuple[int, int]]
) -> None:
    for losses, begun, found in ranks.run(world_size, interrupted_twice, str(tmp_path), pairs, timeout=120):
        assert (len(losses), begun) == (3 * STEPS, [0, 1, 2])
        for pair, (of_all_starts, begun_in_all) in zip(pairs, found, strict=True):
            assert of_all_starts == losses, f"interrupted after steps {pair}"
            assert begun_in_all == begun, f"interrupted after steps {pair}"
