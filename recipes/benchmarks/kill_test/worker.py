"""One rank of a run that is going to be killed: trains, saves often, resumes from whatever is last."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn

from lightning_pfc import PartialFC, PartialFCStrategy
from lightning_pfc.losses import ArcFace
from lightning_pfc.optim import SparseSGD

CLASSES, DIM, WIDTH, BATCH = 1003, 32, 24, 16


class Batches:
    """An endless stream of batches that knows where it is: batch ``i`` depends on ``i`` and the rank only."""

    def __init__(self, rank: int, steps: int) -> None:
        self.rank, self.steps, self.done = rank, steps, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while self.done < self.steps:
            generator = torch.Generator().manual_seed(self.done * 64 + self.rank)
            batch = (
                torch.randn(BATCH, WIDTH, generator=generator),
                torch.randint(CLASSES, (BATCH,), generator=generator),
            )
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where it is."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go there."""
        self.done = state["done"]


class Model(L.LightningModule):
    """A small network with dropout, so that random state matters, and a sampled head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, DIM))
        self.head = PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss=ArcFace(scale=16.0), sample_rate=0.3)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One step."""
        return self.head(self.backbone(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Frozen rows and momentum: every row has a history of its own."""
        return SparseSGD(self.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-4)


class Diary(Callback):
    """Tells the killer what it needs: the step that was resumed from, each step, each save that has returned."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Where this start begins."""
        self.note(trainer, start=trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """One more step."""
        self.note(trainer, step=trainer.global_step)

    def note(self, trainer: L.Trainer, **facts: int) -> None:
        """Append a line, on rank 0."""
        if trainer.is_global_zero:
            with open(self.path, "a") as file:
                file.write(json.dumps(facts) + "\n")


class Saves(ModelCheckpoint):
    """Lightning's own callback; only the diary learns when a save has returned, which is when it must never be lost."""

    diary: Diary

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if not trainer.strategy._async_save:  # type: ignore[attr-defined]
            self.diary.note(trainer, saved=trainer.global_step)


def fingerprint(trainer: L.Trainer, module: L.LightningModule) -> str:
    """Of every weight and every row of the optimizer that this rank has."""
    digest = hashlib.sha256()
    for value in module.state_dict().values():
        digest.update(value.contiguous().numpy().tobytes())
    for state in trainer.optimizers[0].state_dict()["state"].values():
        for key in sorted(state):
            if isinstance(state[key], Tensor):
                digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def run(folder: Path, rank: int, ranks: int, port: int, steps: int, asynchronous: bool) -> None:
    """Be one rank, as torchrun would start it; what it prints goes to a file in the folder."""
    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "kill_test",
        }
    )
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    diary = Diary(folder / "diary.jsonl")
    saves = Saves(
        folder / "checkpoints",
        filename="{step}",
        monitor="step",
        mode="max",
        save_top_k=2,
        save_last="link",
        every_n_train_steps=3,
    )
    saves.diary = diary
    torch.manual_seed(100 + rank)
    module = Model()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=PartialFCStrategy(async_save=asynchronous),
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[saves, diary],
    )
    trainer.fit(module, Batches(rank, steps), ckpt_path="last")
    (folder / f"end-{rank}.txt").write_text(fingerprint(trainer, module))
