"""The progress bar: what it shows, and how often the training loss is read for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch.utils.data import DataLoader, TensorDataset

from lightning_pfc import PartialFCModule
from lightning_pfc.callbacks import ProgressBar, Throughput

STEPS = 9


class Watched(torch.Tensor):
    """A number that writes down when it is read; on a GPU the host waits for that."""

    read: ClassVar[list[int]] = []

    def item(self) -> Any:
        Watched.read.append(1)
        return super().item()


@pytest.fixture(autouse=True)
def _unread() -> Iterator[None]:
    Watched.read.clear()
    yield
    Watched.read.clear()


class Module(PartialFCModule):
    def training_loss(self, embeddings: torch.Tensor, batch: Any) -> torch.Tensor:
        return super().training_loss(embeddings, batch).as_subclass(Watched)  # type: ignore[return-value]


def fit(tmp_path: Any, *callbacks: L.Callback) -> tuple[L.Trainer, int]:
    """The trainer, and how many numbers were read in its steps for what logs nothing."""
    L.seed_everything(0, verbose=False)
    module = Module(backbone="test_resnet", num_classes=10, embedding_dim=8)
    pictures, people = torch.randn(STEPS * 4, 3, 32, 32), torch.randint(0, 10, (STEPS * 4,))
    data = DataLoader(TensorDataset(pictures, people), batch_size=4)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=list(callbacks), log_every_n_steps=1, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer, len(Watched.read)


def test_the_loss_is_read_when_it_is_looked_at_and_not_after_every_step(tmp_path, capsys):
    bar = ProgressBar(seconds=1e9)
    bar.clock = lambda: 0.0  # time stands still: it is looked at once, and at the end
    trainer, reads = fit(tmp_path, bar, Throughput())
    # the first step, the last line, the end of the epoch
    assert reads == 3
    last = f"{float(trainer.callback_metrics['train/loss']):.4g}"
    assert f"step {STEPS}/{STEPS}  train/loss {last}  train/samples_per_second" in capsys.readouterr().out
    assert bar.get_metrics(trainer, trainer.lightning_module)["train/loss"] == trainer.callback_metrics["train/loss"]


def test_it_follows_the_clock(tmp_path):
    bar = ProgressBar(seconds=1e9)
    ticks = iter(range(10_000))
    bar.clock = lambda: next(ticks) * bar.read_every  # every look is half a second later
    _, reads = fit(tmp_path, bar)
    assert reads >= STEPS


def test_other_bars_have_the_loss_from_lightning_which_reads_it_after_every_step(tmp_path):
    trainer, reads = fit(tmp_path, TQDMProgressBar())
    assert trainer.progress_bar_metrics["train/loss"] == trainer.callback_metrics["train/loss"]
    assert reads >= 2 * STEPS


def test_a_loss_that_somebody_logged_for_the_bar_is_shown_once(tmp_path, capsys):
    class Own(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = self.layer(batch[0]).square().mean()
            self.log("train/loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    bar = ProgressBar()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[bar],
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Own(), DataLoader(TensorDataset(torch.ones(4, 4)), batch_size=2))
    assert capsys.readouterr().out.count("step 2/2  train/loss") == 1
