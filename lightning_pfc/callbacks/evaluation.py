"""The protocols of ``pfc-eval`` while a model trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_pfc.callbacks.between_steps import log_numbers, stop_clocks
from lightning_pfc.callbacks.ranks import comm_of
from lightning_pfc.checked import checked
from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.evaluation.embedders import evaluating, preprocessing_of
from lightning_pfc.evaluation.peers import Peers
from lightning_pfc.evaluation.protocol_config import check_protocol, missing_files
from lightning_pfc.evaluation.protocols import Evaluator
from lightning_pfc.evaluation.report import ProtocolResult, as_json, metrics_of
from lightning_pfc.evaluation.settings import EvaluationSettings
from lightning_pfc.storage.whole_files import write_json


@checked
class EvaluateProtocols(Callback):
    """Runs any protocols of ``pfc-eval`` every so many optimizer steps, and at the end of training.

    Every rank embeds its share of the pictures, all at the same time; what follows (one gather of the embeddings, and
    counting) takes every rank the same seconds at most, so none waits for another one's evaluation. The forward pass
    runs in the trainer's precision, in evaluation mode. Training goes on exactly as without: random state, running
    statistics and gradients are left alone.

    The numbers go to the loggers and to ``trainer.callback_metrics`` as ``SET/NAME`` (so ``ModelCheckpoint(monitor=
    "lfw/accuracy", every_n_train_steps=...)`` can follow them), and with intervals, if there are any, to
    ``protocols/step-N.json`` in the trainer's root folder. Works in any Trainer, for modules that map images
    (b, C, H, W) to embeddings and have an ``input_size`` (C, H, W).

    Args:
        protocols: Name of a set to a file, or to a mapping with ``type`` and its arguments, as for ``pfc-eval``.
        every_n_steps: Optimizer steps between evaluations.
        at_end: Evaluate the final weights too.
        settings: What the protocols share; None takes the defaults but makes no intervals, which take a while.

    Raises:
        ValueError: For a protocol that does not exist or has wrong arguments; when ``every_n_steps`` is below 1; at the
            start of ``fit``, without any protocol.
    """

    def __init__(
        self,
        protocols: Mapping[str, Any] | None = None,
        every_n_steps: int = 2000,
        at_end: bool = True,
        settings: EvaluationSettings | None = None,
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1")
        self.protocols = dict(protocols or {})
        for name, protocol in self.protocols.items():
            check_protocol(name, protocol)
        self.every_n_steps, self.at_end = every_n_steps, at_end
        self.settings = settings or EvaluationSettings(replicates=0)
        self._last_step = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse to train with nothing to evaluate.

        Raises:
            ValueError: Without protocols.
        """
        if stage == "fit" and not self.protocols:
            raise ValueError(
                "protocols is empty; name at least one set, as in '+callbacks.evaluation.protocols.lfw=lfw.bin'"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See on every rank that the files are there, before the first step and not after thousands.

        Raises:
            FileNotFoundError: On every rank, when a rank misses one.
        """
        missing = [f"protocols.{n}: {path}" for n, p in self.protocols.items() for path in missing_files(n, p)]
        error = FileNotFoundError(f"no such file or folder: {', '.join(missing)}") if missing else None
        comm_of(trainer).agreement.exchange("EvaluateProtocols", error=error)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate when enough steps have passed; accumulated batches are one step."""
        if trainer.global_step - self._last_step >= self.every_n_steps:
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the final weights."""
        if self.at_end and trainer.global_step > self._last_step:
            self._evaluate(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """When the last evaluation was."""
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._last_step = int(state_dict["last_step"])

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step
        with isolate_rng():  # data loaders draw seeds
            evaluator = Evaluator(_InTraining(trainer, pl_module), self.settings, Peers.current())
            results: list[ProtocolResult] = [evaluator.run(name, protocol) for name, protocol in self.protocols.items()]
        found = metrics_of(results)
        log_numbers(trainer, found)
        if trainer.is_global_zero:
            content = {"step": trainer.global_step, **as_json(results)}
            write_json(Path(trainer.default_root_dir) / "protocols" / f"step-{trainer.global_step}.json", content)
        stop_clocks(trainer, pl_module)


class _InTraining:
    """The module of a running trainer as an embedder."""

    def __init__(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        size = getattr(module, "input_size", None)
        if size is None:
            raise ValueError(f"{type(module).__name__} has no input_size (C, H, W), which the protocols need")
        self.input_size = (int(size[0]), int(size[1]), int(size[2]))
        self.module, self.precision = module, trainer.precision_plugin
        known = getattr(module, "preprocessing", None)
        if isinstance(known, Preprocessing):
            self.preprocessing = known
        self._tensor = preprocessing_of(self).tensor

    def __call__(self, pictures: Tensor) -> Tensor:
        with evaluating(self.module), torch.no_grad(), self.precision.forward_context():
            images = self.precision.convert_input(self._tensor(pictures.to(self.module.device)))
            embeddings: Tensor = self.module(images)
            return embeddings.float().cpu()
