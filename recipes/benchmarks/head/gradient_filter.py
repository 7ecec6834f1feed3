"""What `head.gradient_filter` saves and costs, at the start of a real training run and on its way.

All characters of the fonts but those of the test are classes, over 30,000; backbone and head are trained as `pfc-train`
trains them. At the start and after every epoch, on batches of the training stream, the backward pass of the head is run
with and without the filter, taking turns: the median of its seconds, and how far the gradients are from the exact ones,
relative to their length.

Usage: python recipes/benchmarks/head/gradient_filter.py [--tolerance 1e-2,1e-3] [--epochs 6] [OVERRIDES of pfc-train]
For example: python recipes/benchmarks/head/gradient_filter.py model.embedding_dim=512
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_pfc.config import compose
from lightning_pfc.data import IdentityDataModule
from lightning_pfc.heads import PartialFC


class MeasureFilter(L.Callback):
    """Times the head's backward pass at the start, and at the end of every epoch."""

    def __init__(self, tolerances: list[float], batches: int, rounds: int) -> None:
        self.tolerances, self.batches, self.rounds = tolerances, batches, rounds
        self.table = Table(
            "after epoch", "loss", "exact, ms", *(f"filter {t:g}: ms (times faster)" for t in tolerances)
        )
        for tolerance in tolerances:
            self.table.add_column(f"filter {tolerance:g}: error of dx, dW")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the first step."""
        self.measure(trainer, pl_module, 0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After each epoch."""
        self.measure(trainer, pl_module, trainer.current_epoch + 1)

    def measure(self, trainer: L.Trainer, module: Any, epoch: int) -> None:
        """Add a line to the table; leaves the module as it was, with its count of steps."""
        head: PartialFC = module.head
        before = head.step.clone(), head.gradient_filter, head.weight.grad
        batches = iter(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        seconds: dict[float, list[float]] = {tolerance: [] for tolerance in (0.0, *self.tolerances)}
        errors: dict[float, list[tuple[float, float]]] = {tolerance: [] for tolerance in self.tolerances}
        losses = []
        for _ in range(self.batches):
            images, labels = next(batches)[:2]
            with torch.no_grad():
                x = module(images)
            for _ in range(self.rounds):
                exact: tuple[Tensor, Tensor] | None = None
                for tolerance in seconds:
                    head.gradient_filter = tolerance
                    loss, took, gradients = backward(head, x, labels)
                    seconds[tolerance].append(took)
                    if exact is None:
                        exact = gradients
                        losses.append(loss)
                        continue
                    errors[tolerance].append((distance(gradients[0], exact[0]), distance(gradients[1], exact[1])))
        head.step.copy_(before[0])
        head.gradient_filter, head.weight.grad = before[1], before[2]
        plain = median(seconds[0.0])
        faster = [median(seconds[t]) for t in self.tolerances]
        worst = [[max(error[i] for error in errors[t]) for i in (0, 1)] for t in self.tolerances]
        self.table.add_row(
            str(epoch),
            f"{median(losses):.2f}",
            f"{1e3 * plain:.1f}",
            *(f"{1e3 * each:.1f} ({plain / each:.2f})" for each in faster),
            *(f"{dx:.1e}, {dw:.1e}" for dx, dw in worst),
        )
        Console(width=150).print(self.table)


def backward(head: PartialFC, x: Tensor, labels: Tensor) -> tuple[float, float, tuple[Tensor, Tensor]]:
    """Loss, seconds of the backward pass, and the gradients of embeddings and centers."""
    head.weight.grad = None
    x = x.detach().requires_grad_()
    loss = head(x, labels)
    started = time.perf_counter()
    loss.backward()
    took = time.perf_counter() - started
    assert x.grad is not None
    assert head.weight.grad is not None
    gradient = head.weight.grad
    rows = gradient._values() if gradient.is_sparse else gradient
    head.weight.grad = None
    return float(loss), took, (x.grad, rows)


def distance(a: Tensor, b: Tensor) -> float:
    """``|a - b| / |b|``."""
    return float((a - b).norm() / b.norm())


def main() -> None:
    """Train and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tolerance", default="1e-2,1e-3", help="several with commas (default 1e-2,1e-3)")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batches", type=int, default=3, help="batches at each point (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each batch (default 3)")
    parser.add_argument("overrides", nargs="*", help="of pfc-train, such as model.embedding_dim=512")
    options = parser.parse_args()
    config = compose(
        [
            "data.source.train_classes=null",
            *options.overrides,
            f"trainer.max_epochs={options.epochs}",
            "trainer.limit_val_batches=0",
        ]
    )
    L.seed_everything(config.seed, verbose=False)
    data: IdentityDataModule = instantiate(config.data, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    module = instantiate(config.model, num_classes=data.num_classes, input_size=list(data.input_size), _convert_="all")
    print(f"{data.num_classes:,} classes, embeddings of {module.head.embedding_dim} numbers, {module.head.loss}")
    measure = MeasureFilter([float(word) for word in options.tolerance.split(",")], options.batches, options.rounds)
    trainer = instantiate(
        config.trainer, callbacks=[measure], logger=False, enable_checkpointing=False, _convert_="all"
    )
    trainer.fit(module, datamodule=data)


if __name__ == "__main__":
    main()
