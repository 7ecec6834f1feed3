"""Fine-tuning: what of a backbone is trained, when, with whose batch statistics, and how far it may go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lightning_pfc.checked import checked
from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.ignored import warn_ignored
from lightning_pfc.models.layers import layers_of
from lightning_pfc.transfer.distillation import Listening, Teacher
from lightning_pfc.transfer.l2_sp import StartingPoint
from lightning_pfc.transfer.lora import Adapters, Lora, merge_adapters

BatchNorms = Literal["keep", "train"]
_BATCH_NORMS = (None, "keep", "train")


@checked
class FineTune(Callback):
    """Says what of ``module.backbone`` is trained. Neck and head always are.

    What is frozen does not move by a bit: it has no gradient, and neither dropout nor drop path acts in it. What is
    frozen to the end is in no optimizer; what is frozen for some epochs is in it from the beginning, so that groups,
    schedules and checkpoints are those of a run without. Rates are the optimizer's: ``backbone_lr_scale`` and
    ``layer_decay`` of :func:`~lightning_pfc.optim.factory.create_optimizer`.

    Must come after :class:`~lightning_pfc.transfer.InitFrom`. On any number of ranks, with ``strategy="pfc"``.

    Args:
        frozen_epochs: how long; 0 freezes nothing, None freezes to the end.
        trained_blocks: only so many of the last layers, as timm counts them, are not frozen; None: no layer.
        batch_norm: of the backbone. "keep": they use the statistics that they came with, and do not change them.
            "train": they use those of the batch, and follow them, even where weights are frozen. None: those that are
            frozen keep theirs, others follow.
        l2_sp: alpha of L2-SP, the pull of the backbone to the weights that the run began with; 0: none. It needs a copy
            of them in memory and in checkpoints, and is logged as ``train/l2_sp``.
        distill: weight of the distillation of features to those of the backbone that the run began with, see
            :mod:`~lightning_pfc.transfer.distillation`; 0: none. It needs a copy of it in memory and in checkpoints and
            one more forward a step, and is logged as ``train/distill``.
        lora: small matrices beside layers of a backbone that is frozen to the end (``frozen_epochs=None``) are trained:
            :class:`~lightning_pfc.transfer.Lora`, or its fields as a mapping; None: none. Checkpoints have the merged
            weights, and a second copy of those layers to go on.

    Raises:
        ValueError: for values out of range, and words that contradict each other.
        MissingLibraryError: for ``lora`` without peft.
    """

    def __init__(
        self,
        *,
        frozen_epochs: int | None = 0,
        trained_blocks: int | None = None,
        batch_norm: BatchNorms | None = None,
        l2_sp: float = 0.0,
        distill: float = 0.0,
        lora: Lora | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if frozen_epochs is not None and (not isinstance(frozen_epochs, int) or frozen_epochs < 0):
            raise ValueError(f"frozen_epochs={frozen_epochs!r} must be 0 or more epochs, or None: to the end.")
        if trained_blocks is not None and (not isinstance(trained_blocks, int) or trained_blocks < 1):
            raise ValueError(f"trained_blocks={trained_blocks!r} must be at least 1, or None: none of the layers.")
        if trained_blocks is not None and frozen_epochs == 0:
            raise ValueError(
                f"trained_blocks={trained_blocks} says what is not frozen, and frozen_epochs=0 freezes nothing. Give "
                "frozen_epochs, or leave trained_blocks out."
            )
        if batch_norm not in _BATCH_NORMS:
            raise ValueError(f"batch_norm={batch_norm!r} must be 'keep', 'train' or None.")
        all_frozen = frozen_epochs is None and trained_blocks is None
        for name, weight, does in (("l2_sp", l2_sp, "pulls"), ("distill", distill, "keeps")):
            if not weight >= 0:
                raise ValueError(f"{name}={weight!r} must be 0 or more.")
            if weight and all_frozen and (name == "l2_sp" or lora is None):
                raise ValueError(
                    f"{name}={weight} {does} what moves, and frozen_epochs=None freezes the whole backbone. Give "
                    f"frozen_epochs or trained_blocks, or leave {name} out."
                )
        self.lora = Lora(**lora) if isinstance(lora, Mapping) else lora
        if lora is not None and (frozen_epochs is not None or trained_blocks is not None):
            raise ValueError(
                f"lora trains matrices beside layers that are frozen to the end: give frozen_epochs=None and no "
                f"trained_blocks, not frozen_epochs={frozen_epochs} and trained_blocks={trained_blocks}."
            )
        self.frozen_epochs, self.trained_blocks = frozen_epochs, trained_blocks
        self.batch_norm, self.l2_sp = batch_norm, l2_sp
        self._frozen: list[nn.Parameter] = []
        self._start: StartingPoint | None = None
        self.distill = distill
        self._teacher_weights: dict[str, Any] | None = None  # of a checkpoint
        self._teacher: Teacher | None = None
        self._listening: Listening | None = None
        self._adapters: Adapters | None = None

    # --- what is trained ----------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find what is to be frozen; what is so to the end is frozen before an optimizer is made."""
        if stage != "fit":
            return
        backbone = _backbone(pl_module)
        self._frozen = [] if self.frozen_epochs == 0 else self._to_freeze(backbone)
        if self.frozen_epochs is None:
            self._set_frozen(True)
            self._tell("are frozen to the end")
        if self.lora is not None:
            self._adapt(trainer, backbone, self.lora)
        if self.batch_norm is not None and not any(isinstance(each, _BatchNorm) for each in backbone.modules()):
            warn_ignored(f"finetune.batch_norm={self.batch_norm}", f"{type(backbone).__name__} has no batch norm.")
        if self.frozen_epochs:
            last = trainer.max_epochs
            if last is not None and 0 < last <= self.frozen_epochs:
                rank_zero_info(
                    f"finetune.frozen_epochs={self.frozen_epochs}: with trainer.max_epochs={last} the backbone is "
                    "frozen to the end."
                )

    def _adapt(self, trainer: L.Trainer, backbone: nn.Module, lora: Lora) -> None:
        if any(isinstance(each, WeightAveraging) for each in trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError(
                "finetune.lora: averages of weights (callbacks=ema) would be of merged ones, from which no run can go "
                "on. Leave one of the two out."
            )
        if self._adapters is not None:  # of a fit that an error has ended
            self._adapters.merge()
        self._adapters = Adapters(backbone, lora)
        rank_zero_info(
            f"finetune.lora: {self._adapters.numel:,} numbers are trained beside {len(self._adapters.layers)} layers "
            f"of the backbone ({','.join(lora.layers)}), of rank {lora.rank}."
        )

    def _to_freeze(self, backbone: nn.Module) -> list[nn.Parameter]:
        named = {name: param for name, param in backbone.named_parameters() if param.requires_grad}
        if self.trained_blocks is None:
            return list(named.values())
        layers = layers_of(backbone)
        count = max(layers.values()) + 1
        if self.trained_blocks >= count:
            raise ValueError(
                f"finetune.trained_blocks={self.trained_blocks}: {type(backbone).__name__} has {count} layers, so that "
                f"nothing would be frozen. Give at most {count - 1}, or leave finetune= out."
            )
        return [param for name, param in named.items() if layers[name] < count - self.trained_blocks]

    def _set_frozen(self, frozen: bool) -> None:
        for param in self._frozen:
            param.requires_grad_(not frozen)
            if frozen:
                param.grad = None

    def _follow(self, trainer: L.Trainer) -> None:
        """What is a function of the epoch alone, so that a run that goes on is where it was."""
        if not self._frozen:
            return
        frozen = self.frozen_epochs is None or trainer.current_epoch < self.frozen_epochs
        if frozen != (not self._frozen[0].requires_grad):
            self._set_frozen(frozen)
            self._tell(f"are frozen until epoch {self.frozen_epochs}" if frozen else "are trained from now on")

    def _tell(self, what: str) -> None:
        numbers = sum(param.numel() for param in self._frozen)
        rank_zero_info(f"finetune: {numbers:,} numbers of the backbone {what}.")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the starting point, unless a checkpoint has brought it."""
        if self.l2_sp and self._start is None:
            self._start = StartingPoint(self.l2_sp, dict(_trained(_backbone(pl_module), self._kept_out())))
            rank_zero_info(
                f"finetune.l2_sp={self.l2_sp}: the weights that it begins with are kept, {self._start.nbytes:,} bytes "
                "in memory and in each checkpoint."
            )
        if self.distill:
            self._begin_distilling(pl_module)

    def _begin_distilling(self, module: L.LightningModule) -> None:
        if not module.automatic_optimization:
            raise ValueError(
                f"finetune.distill={self.distill} adds to the loss that training_step returns, and a module with "
                "automatic_optimization=False steps by a loss of its own. Leave finetune.distill out, or let Lightning "
                "take the step."
            )
        backbone = _backbone(module)
        self._teacher = Teacher(self.distill, backbone)
        if self._adapters is not None:
            merge_adapters(self._teacher.network)
        if self._teacher_weights is not None:
            self._teacher.network.load_state_dict(self._teacher_weights)
        rank_zero_info(
            f"finetune.distill={self.distill}: the backbone that it begins with is kept, {self._teacher.nbytes:,} "
            "bytes in memory and in each checkpoint, and sees each picture too."
        )
        self._listening = Listening(module, backbone, self._teacher)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As each epoch."""
        self._follow(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Freeze or thaw as the epoch says."""
        self._follow(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Frozen layers are as in evaluation; validation may have ended in between."""
        self._set_modes(_backbone(pl_module), True)

    def _set_modes(self, module: nn.Module, inherited: bool) -> None:
        params = list(module.parameters())
        mode = any(param.requires_grad for param in params) if params else inherited
        if isinstance(module, _BatchNorm):
            mode = self.batch_norm == "train" or (mode and self.batch_norm is None)
        module.training = mode
        for child in module.children():
            self._set_modes(child, mode)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the parameters back as they were."""
        if stage == "fit":
            if self._adapters is not None:
                self._adapters.merge()
                self._adapters = None
            self._set_frozen(False)
            self._frozen = []
            if self._listening is not None:
                self._listening.close()
                self._listening = None

    # --- the starting point -------------------------------------------------------------------------------------------

    def _kept_out(self) -> set[int]:
        return {id(param) for param in self._frozen} if self.frozen_epochs is None else set()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Add the gradient of L2-SP, before anything is clipped."""
        if self._adapters is not None:
            self._adapters.check_reached()
        if self._start is not None:
            held = {id(param) for group in optimizer.param_groups for param in group["params"]}
            params = {name: p for name, p in _backbone(pl_module).named_parameters() if id(p) in held}
            pl_module.log("train/l2_sp", self._start.pull(params), on_step=True, on_epoch=False)

    def state_dict(self) -> dict[str, Any]:
        """The starting point: weights, or the whole network; and what adapters have learned."""
        weights: dict[str, Any] = {"lora": None}  # never empty: what is empty is not loaded either, nor compared
        if self._start is not None:
            weights["start"] = self._start.start
        if self._teacher is not None:
            weights["teacher"] = dict(self._teacher.network.state_dict())
        if self._adapters is not None:
            weights["lora"] = self._adapters.state_dict()
        return weights

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The starting point that the run began with; left where it is no longer asked for.

        Raises:
            CheckpointError: adapters are in one of the two, or are others.
        """
        if self.l2_sp and "start" in state_dict:
            self._start = StartingPoint(self.l2_sp, state_dict["start"])
        if self.distill and "teacher" in state_dict:
            self._teacher_weights = state_dict["teacher"]
            if self._teacher is not None:
                self._teacher.network.load_state_dict(self._teacher_weights)
        adapters = state_dict.get("lora")
        if (self._adapters is None) != (adapters is None):
            has, this = ("no adapters", "has") if adapters is None else ("adapters", "has none")
            raise CheckpointError(
                f"the checkpoint has {has} of LoRA, and this run {this}. Say finetune= as it was, or begin anew from "
                "its weights: init_from=."
            )
        if self._adapters is not None and adapters is not None:
            self._adapters.load_state_dict(adapters)


def _backbone(module: nn.Module) -> nn.Module:
    backbone = getattr(module, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise ValueError(f"finetune speaks of module.backbone, and {type(module).__name__} has none. Name it so.")
    return backbone


def _trained(backbone: nn.Module, without: set[int]) -> Iterator[tuple[str, nn.Parameter]]:
    yield from ((name, p) for name, p in backbone.named_parameters() if p.requires_grad and id(p) not in without)
