"""One rank on one of two hosts: trains slowly, saves often, goes on from the last checkpoint."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from lightning_pfc.commands.imports import large_imports

with large_imports():
    import lightning as L
    import torch
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, TensorDataset

    from lightning_pfc import PartialFC
    from lightning_pfc.callbacks import Watchdog
    from lightning_pfc.losses import CosFace

STEPS = 60


class Model(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(5, 6)
        self.head = PartialFC(embedding_dim=6, num_classes=11, loss=CosFace(scale=8.0))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        time.sleep(0.05)
        return self.head(self.backbone(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Say(Callback):
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        print(f"start {trainer.global_step}", flush=True)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        print(f"step {trainer.global_step}", flush=True)


def main(folder: Path) -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 5), torch.randint(11, (64,)))
    saves = ModelCheckpoint(folder / "checkpoints", save_last="link", every_n_train_steps=5, filename="{step}")
    trainer = L.Trainer(
        strategy="pfc",
        accelerator="cpu",
        devices=1,
        num_nodes=2,
        max_steps=STEPS,
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saves, Say(), Watchdog(silent_after=4.0, interval=0.5, patience=2.0)],
    )
    trainer.fit(Model(), DataLoader(data, batch_size=4), ckpt_path="last")
    print(f"end {trainer.global_step}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
