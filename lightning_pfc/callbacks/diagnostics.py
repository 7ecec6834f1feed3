"""State of class centers and samples while a model trains."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_pfc.callbacks.between_steps import log_numbers, stop_clocks
from lightning_pfc.checked import checked
from lightning_pfc.heads.partial_fc import PartialFC, iter_heads
from lightning_pfc.metrics.centers import NORM_RANGE, CenterDiagnostics, Collision, SampleDiagnostics, worst_collisions
from lightning_pfc.plots.classes import plot_counts
from lightning_pfc.storage.whole_files import write_json


@checked
class ClassDiagnostics(Callback):
    """Measures centers and samples of every Partial FC head at the end of training epochs. Works in any Trainer.

    Logged as ``HEAD/mics``, ``HEAD/dead``, ... (see :class:`~lightning_pfc.metrics.centers.CenterDiagnostics`) and
    ``HEAD/apcs``, ``HEAD/amncs``, ... (see :class:`~lightning_pfc.metrics.centers.SampleDiagnostics`); the lengths are
    ``HEAD/center_norm`` and ``HEAD/embedding_norm``. In ``diagnostics/`` of the trainer's root folder,
    ``HEAD-epoch-N.json`` adds the nearest pairs of classes by id and name, ``HEAD-epoch-N.png`` draws the histograms.

    Samples are the embeddings that the head was given in the last training batches, so nothing is computed twice and
    training is not changed. Centers cost ``C^2 D / W`` multiply-adds a time: with millions of classes, measure seldom.

    Args:
        every_n_epochs: How often.
        batches: How many of an epoch's last batches the samples are taken from.
        collision: Cosine above which two centers collide.
        noise_cosine: Where hard samples end and noise begins.
        pairs: How many of the nearest pairs of classes are written.

    Raises:
        ValueError: When a count is below 1, or a cosine is none.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        batches: int = 8,
        collision: float = 0.7,
        noise_cosine: float = 0.4,
        pairs: int = 20,
    ) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("batches", batches), ("pairs", pairs)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        CenterDiagnostics(collision=collision), SampleDiagnostics(noise_cosine=noise_cosine)  # say now what is wrong
        self.every_n_epochs, self.batches, self.pairs = every_n_epochs, batches, pairs
        self.collision, self.noise_cosine = collision, noise_cosine
        self._seen: dict[str, deque[tuple[Tensor, Tensor]]] = {}
        self._hooks: list[RemovableHandle] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to what the heads are given."""
        self._listen(pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the epoch before."""
        for seen in self._seen.values():
            seen.clear()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure, log and draw. A collective: all ranks have had the same batches."""
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        for name, head in iter_heads(pl_module):
            self._measure(trainer, name, head)
        stop_clocks(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop listening."""
        self._unhook()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._unhook()

    def _listen(self, module: L.LightningModule) -> None:
        self._unhook()
        for name, head in iter_heads(module):
            seen = self._seen[name] = deque(maxlen=self.batches)

            def remember(head: PartialFC, args: Any, kwargs: Any, seen: deque[tuple[Tensor, Tensor]] = seen) -> None:
                if head.training and torch.is_grad_enabled():
                    embeddings, labels = [*args, *(kwargs[n] for n in ("embeddings", "labels") if n in kwargs)][:2]
                    seen.append((embeddings.detach(), labels.detach()))

            self._hooks.append(head.register_forward_pre_hook(remember, with_kwargs=True))

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._seen = [], {}

    @torch.no_grad()
    def _measure(self, trainer: L.Trainer, name: str, head: PartialFC) -> None:
        if not head.is_materialized:
            return
        device = head.device
        centers = CenterDiagnostics(collision=self.collision).to(device)
        centers.update(head)
        assert centers.last is not None
        worst = worst_collisions(head, centers.last, self.pairs)
        samples = SampleDiagnostics(noise_cosine=self.noise_cosine).to(device)
        seen = self._seen.get(name, ())
        for embeddings, labels in seen:
            samples.update(head, embeddings, labels)
        found = {("center_norm" if key == "norm" else key): value for key, value in centers.compute().items()}
        if seen:
            found |= {("embedding_norm" if key == "norm" else key): value for key, value in samples.compute().items()}
        with centers.sync_context(), samples.sync_context():
            cosines = {"center to nearest other (MICS)": centers.cosine_histogram.cpu()}
            norms = {"centers": centers.norm_histogram.cpu()}
            if seen:
                cosines["sample to own center (APCS)"] = samples.target_histogram.cpu()
                cosines["sample to nearest other (AMNCS)"] = samples.negative_histogram.cpu()
                norms["embeddings"] = samples.norm_histogram.cpu()
        values = {f"{name}/{key}": float(value) for key, value in found.items()}
        values = {key: value for key, value in values.items() if math.isfinite(value)}  # no mean over no samples
        log_numbers(trainer, values)
        if trainer.is_global_zero:
            self._write(trainer, name, values, worst, cosines, norms, head.num_classes)

    def _write(
        self,
        trainer: L.Trainer,
        name: str,
        values: dict[str, float],
        worst: list[Collision],
        cosines: dict[str, Tensor],
        norms: dict[str, Tensor],
        num_classes: int,
    ) -> None:
        folder = Path(trainer.default_root_dir) / "diagnostics"
        base = f"{name.replace('.', '_')}-epoch-{trainer.current_epoch + 1}"
        nearest = [pair._asdict() for pair in worst]
        if (names := _class_names(trainer, num_classes)) is not None:
            nearest = [pair | {"names": [names[pair["first"]], names[pair["second"]]]} for pair in nearest]
        content = {"step": trainer.global_step, "metrics": values, "nearest": nearest}
        write_json(folder / f"{base}.json", content)
        plot_counts(
            {"cosine": cosines, "length": norms},
            {"cosine": (-1.0, 1.0), "length": NORM_RANGE},
            folder / f"{base}.png",
            title=f"Centers and samples after epoch {trainer.current_epoch + 1} (step {trainer.global_step:,})",
            logarithmic={"length"},
        )


def _class_names(trainer: L.Trainer, num_classes: int) -> Any:
    """What the data module calls the classes of a head, if it has a name for each."""
    names = getattr(getattr(getattr(trainer, "datamodule", None), "data", None), "class_names", None)
    return names if names is not None and len(names) == num_classes else None
