"""Protocols and diagnostics while a model trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_only

from lightning_pfc.heads.partial_fc import iter_heads
from lightning_pfc.metrics.centers import NORM_RANGE, CenterDiagnostics, SampleDiagnostics
from lightning_pfc.plots.classes import plot_counts
from lightning_pfc.protocols.embedders import TorchEmbedder
from lightning_pfc.protocols.peers import Peers
from lightning_pfc.protocols.report import as_json, metrics_of, write_results
from lightning_pfc.protocols.suite import Settings, Suite


class EvaluateProtocols(Callback):
    """Runs evaluation protocols every so many optimizer steps, and at the end of training.

    Every rank embeds its part of the images, so no rank waits for another one's whole evaluation. The numbers are
    logged under ``SET/NAME`` and written, with their intervals, to ``protocols/step-N.json`` in the trainer's root
    folder.

    Args:
        protocols: Name of a set to a file or a mapping, as for ``pfc-eval``.
        every_n_steps: Optimizer steps between evaluations.
        settings: What the protocols share; None makes no intervals and is the default otherwise.

    Raises:
        ValueError: Without protocols, or when ``every_n_steps`` is below 1.
    """

    def __init__(
        self, protocols: Mapping[str, Any], every_n_steps: int = 2000, settings: Settings | None = None
    ) -> None:
        if not protocols:
            raise ValueError("protocols is empty; name at least one set")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1")
        self.protocols = dict(protocols)
        self.every_n_steps = every_n_steps
        self.settings = settings or Settings(replicates=0)
        self._last_step = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate when enough steps have passed; accumulated batches are one step."""
        if trainer.global_step - self._last_step >= self.every_n_steps:
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the final weights."""
        if trainer.global_step > self._last_step:
            self._evaluate(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """When the last evaluation was."""
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._last_step = int(state_dict["last_step"])

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step
        input_size = getattr(pl_module, "input_size", None)
        if input_size is None:
            raise ValueError(f"{type(pl_module).__name__} has no input_size (C, H, W), which the protocols need")
        embedder = TorchEmbedder(pl_module, input_size, device=pl_module.device)
        suite = Suite(embedder, self.settings, Peers.current())
        results = [suite.run(name, protocol) for name, protocol in self.protocols.items()]
        for logger in trainer.loggers:
            logger.log_metrics(metrics_of(results), step=trainer.global_step)
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / "protocols"
            write_results(folder / f"step-{trainer.global_step}.json", as_json(results))
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in metrics_of(results).items()})


class ClassDiagnostics(Callback):
    """Logs the state of centers and samples of every Partial FC head at the end of a training epoch.

    Names: ``HEAD/mics``, ``HEAD/dead``, ... as in :class:`~lightning_pfc.metrics.centers.CenterDiagnostics`, and
    ``HEAD/apcs``, ``HEAD/amncs``, ... as in :class:`~lightning_pfc.metrics.centers.SampleDiagnostics`, from the last
    batches of the epoch in training mode. A picture of both goes to ``plots/HEAD-classes.png`` in the trainer's root
    folder. Time: the centers cost ``C^2 D / W`` multiply-adds a time, so for millions of classes choose few epochs.

    Args:
        every_n_epochs: How often.
        batches: How many batches of the epoch's end the samples are taken from.
        collision: See ``CenterDiagnostics``.
        noise_cosine: See ``SampleDiagnostics``.

    Raises:
        ValueError: When a count is below 1.
    """

    def __init__(
        self, every_n_epochs: int = 1, batches: int = 8, collision: float = 0.7, noise_cosine: float = 0.4
    ) -> None:
        if every_n_epochs < 1 or batches < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs} and batches={batches} must be at least 1")
        self.every_n_epochs, self.batches = every_n_epochs, batches
        self.collision, self.noise_cosine = collision, noise_cosine
        self._samples: dict[str, SampleDiagnostics] = {}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the epoch before."""
        self._samples = {}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the last batches of the epoch, for modules whose batches are (images, labels)."""
        left = float(trainer.num_training_batches) - 1 - batch_idx
        if not self._is_due(trainer) or left >= self.batches:
            return
        for name, head in iter_heads(pl_module):
            sample = self._samples.setdefault(
                name, SampleDiagnostics(noise_cosine=self.noise_cosine).to(head.weight.device)
            )
            sample.update(head, pl_module(batch[0]), batch[1])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the centers, log and draw."""
        if not self._is_due(trainer):
            return
        for name, head in iter_heads(pl_module):
            centers = CenterDiagnostics(collision=self.collision).to(head.weight.device)
            centers.update(head)
            sample = self._samples.get(name)
            found = {**(sample.compute() if sample is not None else {})}
            found = {("embedding_norm" if key == "norm" else key): value for key, value in found.items()}
            found |= {("center_norm" if key == "norm" else key): value for key, value in centers.compute().items()}
            for key, value in found.items():
                pl_module.log(f"{name}/{key}", value.float(), on_step=False, on_epoch=True, rank_zero_only=False)
            with centers.sync_context():
                counts = [centers.cosine_histogram.clone(), centers.norm_histogram.clone()]
            more = None
            if sample is not None:
                with sample.sync_context():
                    more = [
                        sample.target_histogram.clone(),
                        sample.negative_histogram.clone(),
                        sample.norm_histogram.clone(),
                    ]
            _draw(Path(trainer.default_root_dir) / "plots" / f"{name.replace('.', '_')}-classes.png", counts, more)

    def _is_due(self, trainer: L.Trainer) -> bool:
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0


@rank_zero_only
def _draw(path: Path, counts: list[torch.Tensor], samples: list[torch.Tensor] | None) -> None:
    cosines = {"center to nearest other (MICS)": counts[0]}
    norms = {"centers": counts[1]}
    if samples is not None:
        cosines |= {"sample to own center (APCS)": samples[0], "sample to nearest other (AMNCS)": samples[1]}
        norms["embeddings"] = samples[2]
    plot_counts(
        {"cosine": cosines, "length": norms},
        {"cosine": (-1.0, 1.0), "length": NORM_RANGE},
        path,
        title="Centers and samples",
        logarithmic=frozenset({"length"}),
    )
