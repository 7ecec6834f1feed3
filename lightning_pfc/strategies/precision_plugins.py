"""Lightning's precision plugins, aware that some parameters are sharded: one norm, and one loss scale on all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_pfc.distributed import Comm
from lightning_pfc.optim.base import updates_in_backward
from lightning_pfc.strategies.clip import clip_grad_norm_, clip_grad_value_


class ShardAware(Precision):
    """What the plugins below add to Lightning's own: clipping that knows which parameters are sharded."""

    _sharded: frozenset[int] = frozenset()
    _comm: Comm = Comm.single()
    _clip: Literal["global", "backbone"] = "global"

    def connect_shards(self, sharded: Sequence[Parameter], comm: Comm, clip: Literal["global", "backbone"]) -> None:
        """Tell the plugin which parameters hold other rows on every rank; called by the strategy at setup."""
        self._sharded = frozenset(map(id, sharded))
        self._comm = comm
        self._clip = clip

    def disconnect_shards(self) -> None:
        """Forget the parameters and the process group; called by the strategy at teardown."""
        self.connect_shards((), Comm.single(), self._clip)

    def clip_grad_by_norm(self, optimizer: Optimizer, clip_val: int | float) -> None:
        """Clip by the norm over all parameters of the optimizer, on all ranks. At most one all-reduce of one number."""
        if self._clip == "global":
            _refuse_updates_in_backward(optimizer)
        replicated: list[Parameter] = []
        sharded: list[Parameter] = []
        for parameter in self.main_params(optimizer):
            (sharded if id(parameter) in self._sharded else replicated).append(parameter)
        clip_grad_norm_(replicated, sharded, clip_val, self._comm, clip_sharded=self._clip == "global")

    def clip_grad_by_value(self, optimizer: Optimizer, clip_val: int | float) -> None:
        """Clamp each value, as Lightning does, also of row-sparse gradients."""
        _refuse_updates_in_backward(optimizer)
        clip_grad_value_(self.main_params(optimizer), clip_val)


def _refuse_updates_in_backward(optimizer: Optimizer) -> None:
    if updates_in_backward(getattr(optimizer, "optimizer", optimizer)):
        raise ValueError(
            "gradient clipping comes too late for centers that were updated inside the backward pass; use "
            'update_in_backward=False, no clipping, or clipping by norm with PartialFCStrategy(clip="backbone").'
        )


class ShardedPrecision(ShardAware, Precision):
    """``precision="32-true"`` with sharded parameters."""


class ShardedHalfPrecision(ShardAware, HalfPrecision):
    """``precision="16-true"`` and ``"bf16-true"`` with sharded parameters."""


class ShardedDoublePrecision(ShardAware, DoublePrecision):
    """``precision="64-true"`` with sharded parameters."""


class ShardedMixedPrecision(ShardAware, MixedPrecision):
    """``precision="16-mixed"`` and ``"bf16-mixed"`` with sharded parameters.

    A replicated gradient is the same on every rank, so stock loss scaling agrees by itself. A shard's gradient is
    not: a non-finite value on one rank must skip the step, and lower the scale, on all.
    """

    # Lightning stores a plugin's state under its class name; under this one, stock DDP finds it and the other way
    # round.
    _STATE_KEY = MixedPrecision.__qualname__

    def connect_shards(self, sharded: Sequence[Parameter], comm: Comm, clip: Literal["global", "backbone"]) -> None:
        """As in the base class; and let the loss scaler agree with the other ranks on what is not finite."""
        super().connect_shards(sharded, comm, clip)
        scaler = self.scaler
        if scaler is None or not sharded or comm.world_size == 1:
            return
        shared = ShardedGradScaler(self.device, enabled=scaler.is_enabled(), process_group=comm.group)
        if scaler.is_enabled():
            shared.load_state_dict(scaler.state_dict())
        self.scaler = shared

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the scaler under the name that Lightning's own plugin has."""
        if (state := checkpoint.pop(type(self).__qualname__, None)) is not None:
            checkpoint[self._STATE_KEY] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Find the scaler under the name that Lightning's own plugin has."""
        if (state := checkpoint.get(self._STATE_KEY)) is not None:
            checkpoint.setdefault(type(self).__qualname__, state)


_SHARDED: dict[type[Precision], type[ShardAware]] = {
    Precision: ShardedPrecision,
    HalfPrecision: ShardedHalfPrecision,
    DoublePrecision: ShardedDoublePrecision,
    MixedPrecision: ShardedMixedPrecision,
}


def is_known(plugin: Precision) -> bool:
    """Whether a plugin is aware of shards, or one of Lightning's that can be made so."""
    return isinstance(plugin, ShardAware) or type(plugin) in _SHARDED


def shard_aware(plugin: Precision) -> ShardAware:
    """The plugin of this module that stands for one of Lightning's, with the same settings.

    Raises:
        TypeError: for a plugin whose clipping and scaling this package does not know.
    """
    if isinstance(plugin, ShardAware):
        return plugin
    kind = _SHARDED.get(type(plugin))
    if kind is None:
        known = ", ".join(cls.__name__ for cls in _SHARDED)
        raise TypeError(
            f"precision plugin {type(plugin).__name__} cannot be used with sharded classes: its clipping would see one "
            f"rank's rows only. Use precision='32-true', 'bf16-mixed', '16-mixed', 'bf16-true' or '64-true' (one of "
            f"{known}), or derive your plugin from one of those in lightning_pfc.strategies.precision_plugins."
        )
    made = kind.__new__(kind)
    made.__dict__.update(plugin.__dict__)
    return made
