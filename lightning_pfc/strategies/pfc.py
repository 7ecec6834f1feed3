"""``Trainer(strategy="pfc")``: DDP for everything but the sharded heads."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.fabric.strategies.registry import _StrategyRegistry
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torch.distributed.constants import default_pg_timeout
from torch.nn.parallel import DistributedDataParallel

from lightning_pfc.checkpoint.gather import gather_rows
from lightning_pfc.distributed import Comm
from lightning_pfc.distributed.leaving import leave_at_exit, stay_at_exit
from lightning_pfc.distributed.owner import set_owner
from lightning_pfc.heads.partial_fc import iter_heads
from lightning_pfc.optim.base import updates_in_backward
from lightning_pfc.optim.foreign import check_optimizer
from lightning_pfc.registration import add_names
from lightning_pfc.strategies.checkpoints import CheckpointFolders
from lightning_pfc.strategies.precision import ShardAware, ShardedPrecision, shard_aware
from lightning_pfc.strategies.start import StartTogether

Clip = Literal["global", "backbone"]


class PartialFCStrategy(CheckpointFolders, StartTogether):
    """Distributed data parallel training in which each rank keeps its own classes of every :class:`PartialFC` head.

    It owns the process group: it hands it to the heads, shards those that were built before it existed, keeps their
    tensors out of DDP's reduction and broadcasts, clips by one norm over all ranks, and keeps loss scaling in step on
    all of them. A model without such a head trains as under DDP.

    Args:
        clip: what ``Trainer(gradient_clip_val=...)`` measures and scales: ``"global"``, one true norm over all
            parameters, shards summed over the ranks; or ``"backbone"``, the replicated parameters only, as published
            recipes of Partial FC do.
        head_group_size: how many ranks share one set of classes, a divisor of the world size; None is all of them.
        async_save: whether training goes on while checkpoints are written, at the price of a copy of the weights and
            optimizer state in CPU memory for as long.
        fall_back: whether a damaged checkpoint is passed over, with a warning, for the newest other one beside it.
        timeout: how long a rank waits for the others in any collective.
        start_method: ``"popen"`` (the script is run again for each process) or ``"spawn"``.
        kwargs: everything else that ``DDPStrategy`` and ``DistributedDataParallel`` take.

    Raises:
        ValueError: if ``clip`` is neither of its two values.
    """

    def __init__(
        self,
        *,
        clip: Clip = "global",
        head_group_size: int | None = None,
        async_save: bool = False,
        fall_back: bool = False,
        timeout: timedelta = default_pg_timeout,
        start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
        **kwargs: Any,
    ) -> None:
        if clip not in ("global", "backbone"):
            raise ValueError(f"clip={clip!r} must be 'global' (one norm over everything) or 'backbone'.")
        super().__init__(timeout=timeout, start_method=start_method, **kwargs)
        self._clip = clip
        self._head_group_size = head_group_size
        self._comm: Comm | None = None
        self._told: BaseException | None = None
        self._hand = 0
        self.raised_hands: list[int] | None = None
        self._async_save = async_save
        self._fall_back = fall_back

    # -- the process group and the heads

    @property
    def comm(self) -> Comm:
        """Who the heads talk to.

        Raises:
            RuntimeError: before the Trainer has set the process group up.
        """
        if self._comm is None:
            raise RuntimeError("PartialFCStrategy.comm exists once the Trainer has set up its process group.")
        return self._comm

    def setup_environment(self) -> None:
        """Start the process group, and shard the heads that exist already: callbacks may copy the model soon."""
        super().setup_environment()
        size = self._head_group_size
        if self.world_size > 1:
            self._comm = Comm.from_group(None, size, timeout=self._timeout or default_pg_timeout)
            leave_at_exit()
        elif size not in (None, 1):
            raise ValueError(f"head_group_size={size} does not divide the 1 rank of this run; leave it out.")
        else:
            self._comm = Comm.single()
        self._told = None
        set_owner("pfc", self._comm)
        self._start_saver()
        self._attach_heads()

    def setup(self, trainer: Trainer) -> None:
        """Shard what ``configure_model`` built, and mark every shard, before anything is wrapped or broadcast."""
        self._attach_heads()
        module = self._module
        names = [f"{name}.{tensor}" for name, head in self._iter_heads() for tensor in head.sharded_tensors()]
        # The one place that torch has for this, documented as a workaround; it serves fit (DDP) and validate alike.
        mark = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        mark(module, names)  # type: ignore[no-untyped-call]
        plugin = self._shard_aware_plugin
        plugin.connect_shards(self._sharded_parameters(), self.comm, self._clip)
        scaler = getattr(plugin, "scaler", None)
        for _, head in self._iter_heads():
            # An overflow is the scaler's business: it skips the step. Without one it is an error.
            head.check_finite = scaler is None
        super().setup(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            for optimizer in self.optimizers:
                check_optimizer(optimizer)
            if scaler is not None and names:
                self._refuse_fused_optimizers()
            self._refuse_early_updates(trainer, scaler is not None)

    def configure_ddp(self) -> None:
        """Wrap the model, unless nothing is left to reduce: then only make the replicas equal."""
        ignored = set(getattr(self._module, "_ddp_params_and_buffers_to_ignore", ()))
        if any(p.requires_grad and name not in ignored for name, p in self._module.named_parameters()):
            super().configure_ddp()
            return
        if not ignored:
            super().configure_ddp()  # DDP's own message about a model without anything to train
            return
        with torch.no_grad():
            for name, tensor in (*self._module.named_parameters(), *self._module.named_buffers()):
                if name not in ignored and self.world_size > 1:
                    dist.broadcast(tensor.detach(), src=0)

    def teardown(self) -> None:
        """Give the model back as Lightning does, and let go of the process group."""
        if self._start_method != "popen" and self._comm is not None and self._comm.world_size > 1:
            # The launcher sends rank 0's state dict to the parent process, where the model is whole.
            self._module.register_state_dict_post_hook(partial(_make_heads_whole, self._comm))
        plugin = self._shard_aware_plugin
        self._stop_saver()
        super().teardown()
        plugin.disconnect_shards()
        set_owner(None)

    @property
    def _module(self) -> Any:
        module = self.lightning_module
        if module is None:
            raise RuntimeError("PartialFCStrategy is set up by a Trainer, which connects a LightningModule first.")
        return module

    def _attach_heads(self) -> None:
        for _, head in self._iter_heads():
            head.attach(self.comm)

    def _sharded_parameters(self) -> list[nn.Parameter]:
        tensors = [tensor for _, head in self._iter_heads() for tensor in head.sharded_tensors().values()]
        return [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]

    # -- precision

    @property
    def precision_plugin(self) -> Precision:
        """Lightning's plugin, made aware of the shards."""
        return self._shard_aware_plugin

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        # None stays None until it is needed: a Trainer takes what it finds here for the user's choice, and would ignore
        # its own argument `precision`.
        self._precision_plugin = None if precision_plugin is None else shard_aware(precision_plugin)

    @property
    def _shard_aware_plugin(self) -> ShardAware:
        if self._precision_plugin is None:
            self._precision_plugin = ShardedPrecision()
        plugin = self._precision_plugin
        if not isinstance(plugin, ShardAware):
            raise TypeError(f"the precision plugin is {type(plugin).__name__}; set it through the Trainer.")
        return plugin

    def _refuse_fused_optimizers(self) -> None:
        for optimizer in self.optimizers:
            if any(group.get("fused") for group in optimizer.param_groups):
                raise ValueError(
                    f"{type(optimizer).__name__}(fused=True) unscales gradients inside its step, where the ranks "
                    "cannot agree on an overflow in one of their shards. Use fused=False, or precision='bf16-mixed'."
                )

    def _refuse_early_updates(self, trainer: Trainer, scaled: bool) -> None:
        """Centers that are updated inside the backward pass never have a gradient that something could change later."""
        for optimizer in self.optimizers:
            if not updates_in_backward(optimizer):
                continue
            schedulers = [c for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
            factors = [trainer.accumulate_grad_batches, *(n for c in schedulers for n in c.scheduling.values())]
            by_norm = trainer.gradient_clip_algorithm in (None, "norm")
            problem, way_out = "", ""
            if trainer.gradient_clip_val and not (by_norm and self._clip == "backbone"):
                problem = f"gradient_clip_val={trainer.gradient_clip_val}, which comes too late for the centers"
                way_out = 'no clipping, or clipping by norm with PartialFCStrategy(clip="backbone")'
            elif max(factors) > 1:
                problem = f"accumulate_grad_batches={max(factors)}, since every backward pass steps the centers"
                way_out = "accumulate_grad_batches=1"
            elif scaled:
                problem = "precision='16-mixed', since the gradients in the backward pass are scaled"
                way_out = "precision='bf16-mixed' or '32-true'"
            if problem:
                raise ValueError(
                    f"{type(optimizer).__name__}(update_in_backward=True) cannot be used with {problem}. Use "
                    f"update_in_backward=False, or {way_out}."
                )

    # -- messages that travel with those of a step

    def raise_hand(self, number: int) -> None:
        """Have every rank know a number (of a signal, say) with the next message of a step; safe in a signal handler.

        After each training step ``raised_hands`` has the number of every rank, zero where none was raised; it is None
        after steps without a message: on a single process, or in a model without a head.
        """
        self._hand = number

    # -- errors: no rank is left waiting because another one failed

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """All ranks have a batch, and may go on to DDP's broadcast of buffers, which cannot be told of an error."""
        super().on_train_batch_start(batch, batch_idx)
        self.raised_hands = None
        if self.world_size > 1 and self._has_heads():
            self.comm.agreement.exchange("on_train_batch_start")

    def training_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Lightning's training step; with a sharded head, followed by one message of every rank to every rank (1 KiB).

        Another such message goes before it, in :meth:`on_train_batch_start`.

        Raises:
            Exception: of whatever a rank raised in its step, on every rank.
            RuntimeError: on every rank, if the step returned None on some of them only.
        """
        try:
            output = super().training_step(*args, **kwargs)
        except BaseException as error:
            self._tell(error)
            raise
        if self.world_size > 1 and self._has_heads():
            self._agree_on_output(output)
        return output

    def _agree_on_output(self, output: STEP_OUTPUT) -> None:
        try:
            said = self.comm.agreement.exchange("training_step", [int(output is None), self._hand])
            self.raised_hands = [hand for _, hand, *_ in said]
            skipped = [rank for rank, (skip, *_) in enumerate(said) if skip]
            if self._module.automatic_optimization and 0 < len(skipped) < self.world_size:
                raise RuntimeError(
                    f"training_step returned None on rank {', '.join(map(str, skipped))} only: the others "
                    "would wait for its gradients for ever. Return a loss on every rank; to skip a batch on one, "
                    "return the loss times zero."
                )
        except BaseException as error:
            self._told = error  # it was raised on every rank
            raise

    def on_exception(self, exception: BaseException) -> None:
        """Tell the other ranks before this one leaves. Bounded in time."""
        stay_at_exit()
        super().on_exception(exception)
        self._tell(exception)

    def _tell(self, error: BaseException) -> None:
        if self._comm is None or self._told is error:
            return
        self._told = error
        agreement = self._comm.agreement
        if not agreement.knows(error):
            agreement.abort(error)

    # -- registration

    @classmethod
    def register_strategies(cls, strategy_registry: _StrategyRegistry) -> None:
        """Add ``"pfc"`` and ``"pfc_spawn"`` to a registry that does not have them."""
        add_names(strategy_registry, cls)


def _make_heads_whole(
    comm: Comm, module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    for name, head in iter_heads(module):
        for tensor in head.sharded_tensors():
            key = f"{prefix}{name}.{tensor}"
            whole = gather_rows(state[key], head.num_classes, comm)
            if whole is not None:
                state[key] = whole
