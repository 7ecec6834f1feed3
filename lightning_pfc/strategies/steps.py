"""One training step on every rank: what is said before and after it, so that no rank goes on alone or goes wrong."""

from __future__ import annotations

import gc
from typing import Any, Literal

from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lightning_pfc.distributed import Comm
from lightning_pfc.distributed.agreement import Rider
from lightning_pfc.distributed.leaving import stay_at_exit
from lightning_pfc.strategies.checkpoints import CheckpointFolders
from lightning_pfc.strategies.loss_uses import LossUses
from lightning_pfc.strategies.replicas import Replicas, ReplicaWatch
from lightning_pfc.strategies.unused_parameters import check_all_used
from lightning_pfc.strategies.waiting import check_same_end, waits_before_head
from lightning_pfc.strategies.wiring import Wiring, tell_apart


class StepsTogether(CheckpointFolders):
    """The steps of :class:`PartialFCStrategy`, where there is a head: messages of 1 KiB each, on the CPU.

    Before a step the ranks compare, now and then, the bits of what they should have alike, and always which parameters
    are trained; a change of those is followed. These numbers ride on the head's own message, but where a rank could
    wait for another one before that (:mod:`lightning_pfc.strategies.waiting`). After it they compare what it gave.
    """

    replica_watch: ReplicaWatch | None = None
    """When replicas are compared, and what follows; None: never."""

    start_message: Literal["auto", "always"] = "auto"
    """Whether what rides on the head's message has one of its own in every step, or where it is needed."""

    raised_hands: list[int] | None = None
    """What every rank raised its hand with in the last step; None where no message was sent."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._comm: Comm | None = None
        self._told: BaseException | None = None
        self._hand = 0
        self._wiring: Wiring | None = None
        self._loss_uses = LossUses()

    @property
    def _module(self) -> Any:
        module = self.lightning_module
        if module is None:
            raise RuntimeError("PartialFCStrategy is set up by a Trainer, which connects a LightningModule first.")
        return module

    def _wire(self) -> None:
        """Make everything that depends on which parameters there are and which of them are trained."""
        raise NotImplementedError

    def raise_hand(self, number: int) -> None:
        """Have every rank know a number (of a signal, say) with the next message of a step; safe in a signal handler.

        After each training step ``raised_hands`` has the number of every rank, zero where none was raised; it is None
        after steps without a message: on a single process, or in a model without a head.
        """
        self._hand = number

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """All ranks have a batch, and may go on to DDP's broadcast of buffers, which cannot be told of an error.

        Raises:
            RuntimeError: on every rank, where replicas differ.
            ValueError: on every rank, where ranks train different parameters, or unfreeze what no optimizer holds.
        """
        super().on_train_batch_start(batch, batch_idx)
        self.raised_hands = None
        module, before = self._module, self._wiring
        if before is None:
            return
        now = before if before.holds_for(module) else Wiring(module)
        changed = now is not before
        if self.world_size > 1 and self._has_heads():
            changed = self._agree_on_start(now, changed)
        if changed:
            now.check_held(before, self.optimizers)
            self._wire_again()
        elif before.rebound_buffers(module) and hasattr(self.model, "_assign_modules_buffers"):
            self.model._assign_modules_buffers()  # type: ignore[union-attr,operator]  # what DDP broadcasts

    def _agree_on_start(self, now: Wiring, changed: bool) -> bool:
        step, watch = self._module.trainer.global_step, self.replica_watch
        replicas = Replicas(self._module, self.comm, self._apart) if watch is not None and watch.is_due(step) else None
        sums = replicas.totals() if replicas is not None else (0, 0)
        found: list[int] = []

        def judge(said: list[list[int]]) -> None:
            if any(digest != now.digest for digest, *_ in said):
                raise tell_apart(now.trained.values(), self.comm)
            if watch is not None and replicas is not None:
                watch.judge([(shared, copies) for _, _, shared, copies in said], replicas, self.comm, step)
            found.extend(change for _, change, *_ in said)

        agreement = self.comm.agreement
        agreement.rider = Rider([now.digest, int(changed), *sums], judge)
        if changed or self.start_message == "always" or waits_before_head(self.model):
            agreement.exchange("on_train_batch_start")
        return any(found)

    def _wire_again(self) -> None:
        self.model = self._module
        gc.collect()  # the old wrapper goes, and with it the hooks that it has put on the parameters
        self._wire()

    def training_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Lightning's training step; with a sharded head, followed by one message of every rank to every rank (1 KiB).

        Another such message goes before it, in :meth:`on_train_batch_start`, where one is needed there.

        Raises:
            Exception: of whatever a rank raised in its step, on every rank.
            RuntimeError: on every rank, if the step returned None on some of them only, or an epoch ends on some only.
        """
        try:
            output = super().training_step(*args, **kwargs)
        except BaseException as error:
            self._tell(error)
            raise
        if self.world_size > 1 and self._has_heads():
            self._agree_on_output(output)
            self._loss_uses.look(output, self._named_shards())
        return output

    def post_backward(self, closure_loss: Tensor) -> None:
        """See, before a step is taken, that the gradients of the ranks were averaged.

        Raises:
            RuntimeError: naming the parameters that took no part in the loss.
        """
        super().post_backward(closure_loss)
        check_all_used(self.model, self._module, self._ignored)

    def _is_last_batch(self) -> bool:
        loop = self._module.trainer.fit_loop.epoch_loop
        return bool(loop._num_ready_batches_reached())

    def _named_shards(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value for name, head in self._iter_heads() for key, value in head.sharded_tensors().items()
        }

    def _agree_on_output(self, output: STEP_OUTPUT) -> None:
        try:
            numbers = [int(output is None), self._hand, int(self._is_last_batch())]
            said = self.comm.agreement.exchange("training_step", numbers)
            self.raised_hands = [hand for _, hand, *_ in said]
            check_same_end([bool(last) for _, _, last, *_ in said], self._module.trainer)
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

    # -- replicas, where no step follows

    @property
    def _ignored(self) -> set[str]:
        return set(getattr(self._module, "_ddp_params_and_buffers_to_ignore", ()))

    @property
    def _apart(self) -> set[str]:
        """Names of what this module's owner keeps out of DDP, and of what no rank can be asked for."""
        known = {id(param) for param in self._wiring.known} if self._wiring is not None else set()
        return self._ignored | {name for name, param in self._module.named_parameters() if id(param) not in known}

    def _check_replicas(self) -> None:
        if self.replica_watch is not None and self._wiring is not None and self._fitting() and self._has_heads():
            step = self._module.trainer.global_step
            self.replica_watch.check(self._module, self.comm, step, self._apart)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state, this rank's rows marked as such.

        Raises:
            ValueError, FloatingPointError: on every rank, if the last batch had a bad value: it must not be saved.
            RuntimeError: on every rank, where replicas differ.
        """
        self._check_replicas()
        return super().lightning_module_state_dict()

    def on_train_end(self) -> None:
        """The last check of the replicas; and nothing is left half-written when ``fit`` returns."""
        super().on_train_end()
        self._check_replicas()

    # -- errors: no rank is left waiting because another one failed

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
