"""``Trainer(strategy="pfc")``: DDP for everything but the sharded heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.fabric.strategies.registry import _StrategyRegistry
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.distributed.constants import default_pg_timeout
from torch.nn.parallel import DistributedDataParallel

from lightning_pfc.checked import checked
from lightning_pfc.checkpoint.gather import gather_rows
from lightning_pfc.distributed import Comm
from lightning_pfc.distributed.leaving import leave_at_exit
from lightning_pfc.distributed.owner import set_owner
from lightning_pfc.heads.partial_fc import iter_heads
from lightning_pfc.names.strategy_names import add_names
from lightning_pfc.optim.foreign import check_optimizer
from lightning_pfc.strategies.precision_plugins import ShardAware, ShardedPrecision, is_known, shard_aware
from lightning_pfc.strategies.refused_optimizers import (
    refuse_early_updates,
    refuse_fused,
    refuse_negative_clipping,
)
from lightning_pfc.strategies.replicas import ReplicaWatch
from lightning_pfc.strategies.start import StartTogether
from lightning_pfc.strategies.steps import StepsTogether
from lightning_pfc.strategies.whose import check_match
from lightning_pfc.strategies.wiring import Wiring

Clip = Literal["global", "backbone"]
_APART = "post_localSGD_hook"  # replicas differ between two averages


@checked
class PartialFCStrategy(StepsTogether, StartTogether):
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
        check_replicas: what follows where the replicated parameters of the ranks are no longer the same bits, which is
            looked at after 1, 2, 4, ... steps, then every 100, before each checkpoint and at the end. ``"off"`` for
            training that lets them differ; with post-local SGD it is off by itself.
        match: how the classes of a checkpoint are matched with those of the data. None compares their names, and
            refuses other ones or another order; "names" moves rows, and those of optimizers, to where their names are
            now: new identities get new centers, those of identities that have vanished are left out; "position"
            compares nothing: row i is class i.
        start_message: whether ranks tell each other of errors at the start of a step. ``"auto"``: where DDP, or a
            ``SyncBatchNorm``, could wait there for a rank that does not come. ``"always"``: in every step, for a model
            with a collective of your own before its head.
        timeout: how long a rank waits for the others in any collective.
        start_method: ``"popen"`` (the script is run again for each process) or ``"spawn"``.
        kwargs: everything else that ``DDPStrategy`` and ``DistributedDataParallel`` take.

    Raises:
        ValueError: if ``clip``, ``match`` or ``start_message`` has a value that does not exist.
    """

    def __init__(
        self,
        *,
        clip: Clip = "global",
        head_group_size: int | None = None,
        async_save: bool = False,
        fall_back: bool = False,
        check_replicas: Literal["raise", "warn", "off"] = "raise",
        match: Literal["names", "position"] | None = None,
        start_message: Literal["auto", "always"] = "auto",
        timeout: timedelta = default_pg_timeout,
        start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
        **kwargs: Any,
    ) -> None:
        if clip not in ("global", "backbone"):
            raise ValueError(f"clip={clip!r} must be 'global' (one norm over everything) or 'backbone'.")
        super().__init__(timeout=timeout, start_method=start_method, **kwargs)
        self._clip = clip
        self._head_group_size = head_group_size
        if check_replicas not in ("raise", "warn", "off"):
            raise ValueError(f"check_replicas={check_replicas!r} must be 'raise', 'warn' or 'off'.")
        self.replica_watch = None if check_replicas == "off" else ReplicaWatch(action=check_replicas)
        self._async_save = async_save
        self._fall_back = fall_back
        self._match = check_match(match)
        if start_message not in ("auto", "always"):
            raise ValueError(f"start_message={start_message!r} must be 'auto' or 'always'.")
        self.start_message = start_message

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

    @property
    def match(self) -> str | None:
        """How the classes of a checkpoint are matched with those of the data."""
        return self._match

    def _is_set_up(self) -> bool:
        return self._comm is not None

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
        self._connect_shards()
        self._wiring = None
        super().setup(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            self._check_optimizers()
            if self._model_averager is not None or getattr(self._ddp_comm_hook, "__name__", "") == _APART:
                self.replica_watch = None

    def _wire(self) -> None:
        self._attach_heads()
        self._connect_shards()
        self.configure_ddp()
        self._check_optimizers()

    def _connect_shards(self) -> None:
        module = self._module
        ours = [f"{name}.{tensor}" for name, head in self._iter_heads() for tensor in head.sharded_tensors()]
        theirs = [name for name in getattr(module, "_ddp_params_and_buffers_to_ignore", ()) if name not in ours]
        # The one place that torch has for this, documented as a workaround; it serves fit (DDP) and validate alike.
        mark = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        mark(module, [*theirs, *ours])  # type: ignore[no-untyped-call]
        if not (self._has_heads() or isinstance(self.precision_plugin, ShardAware)):
            return  # a plugin of the user's own does here what it does under DDP
        plugin = self._shard_aware_plugin
        plugin.connect_shards(self._sharded_parameters(), self.comm, self._clip)
        for _, head in self._iter_heads():
            # An overflow is the scaler's business: it skips the step. Without one it is an error.
            head.check_finite = getattr(plugin, "scaler", None) is None

    def _check_optimizers(self) -> None:
        for optimizer in self.optimizers:
            check_optimizer(optimizer)
        scaled = getattr(self.precision_plugin, "scaler", None) is not None
        if scaled and self._has_heads():
            refuse_fused(self.optimizers)
        refuse_negative_clipping(self._module.trainer)
        refuse_early_updates(self.optimizers, self._module.trainer, scaled, self._clip)

    def configure_ddp(self) -> None:
        """Wrap the model, unless nothing is left to reduce: then only make the replicas equal."""
        self._wiring = Wiring(self._module)
        ignored = self._ignored
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

    def _enable_model_averaging(self) -> None:
        super()._enable_model_averaging()
        self._model_averager = _AveragesReplicas(self._model_averager, self._sharded_parameters)  # type: ignore[assignment]

    def teardown(self) -> None:
        """Give the model back as Lightning does, and let go of the process group."""
        if self._start_method != "popen" and self._comm is not None and self._comm.world_size > 1:
            # The launcher sends rank 0's state dict to the parent process, where the model is whole.
            self._module.register_state_dict_post_hook(partial(_make_heads_whole, self._comm))
        plugin = self.precision_plugin
        self._stop_saver()
        super().teardown()
        if isinstance(plugin, ShardAware):
            plugin.disconnect_shards()
        set_owner(None)

    def _attach_heads(self) -> None:
        for _, head in self._iter_heads():
            head.attach(self.comm)

    def _sharded_parameters(self) -> list[nn.Parameter]:
        tensors = [tensor for _, head in self._iter_heads() for tensor in head.sharded_tensors().values()]
        return [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]

    # -- precision

    @property
    def precision_plugin(self) -> Precision:
        """Lightning's plugin, made aware of the shards; or the user's own, which a model without a head may have."""
        if self._precision_plugin is None:
            self._precision_plugin = ShardedPrecision()
        return self._precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        # None stays None until it is needed: a Trainer takes what it finds here for the user's choice, and would ignore
        # its own argument `precision`.
        if precision_plugin is not None and is_known(precision_plugin):
            precision_plugin = shard_aware(precision_plugin)
        self._precision_plugin = precision_plugin

    @property
    def _shard_aware_plugin(self) -> ShardAware:
        return shard_aware(self.precision_plugin)

    # -- registration

    @classmethod
    def register_strategies(cls, strategy_registry: _StrategyRegistry) -> None:
        """Add ``"pfc"``, ``"pfc_spawn"`` and ``"pfc_notebook"`` to a registry that does not have them."""
        add_names(strategy_registry, cls)


class _AveragesReplicas:
    """Post-local SGD's average of the ranks' models, which has nothing to do with shards."""

    def __init__(self, averager: Any, sharded: Callable[[], list[nn.Parameter]]) -> None:
        self._averager, self._sharded = averager, sharded

    def average_parameters(self, params: Iterable[nn.Parameter]) -> None:
        shards = {id(param) for param in self._sharded()}
        self._averager.average_parameters(iter([param for param in params if id(param) not in shards]))


def _make_heads_whole(
    comm: Comm, module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    for name, head in iter_heads(module):
        for tensor in head.sharded_tensors():
            key = f"{prefix}{name}.{tensor}"
            whole = gather_rows(state[key], head.num_classes, comm)
            if whole is not None:
                state[key] = whole
