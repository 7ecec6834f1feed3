"""PartialFC: rank-sharded class centers, negative sampling and a margin softmax, as one module with a loss."""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_pfc.checked import checked
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.heads.batch import BatchGatherer, GlobalBatch
from lightning_pfc.heads.batch_checks import DeferredCheck, device_of
from lightning_pfc.heads.center_init import HeadInit, initial_centers
from lightning_pfc.heads.class_memory import ClassMemory
from lightning_pfc.heads.class_sampling import ClassSampling
from lightning_pfc.heads.kernel_choice import KernelChoice
from lightning_pfc.heads.loss_averages import LossAverages
from lightning_pfc.heads.loss_pass import LossOutput, LossPass
from lightning_pfc.heads.nearest_classes import best_classes, target_ranks
from lightning_pfc.heads.options import as_auxiliary_losses, as_dtype, check_filter, check_options, check_sampling
from lightning_pfc.heads.placement import Place, Placement
from lightning_pfc.heads.product_precision import ProductPrecision
from lightning_pfc.heads.recomputation import Passes
from lightning_pfc.heads.sampling import Sampler, sampler_from_config
from lightning_pfc.heads.several_labels import several_labels_error
from lightning_pfc.heads.softmax import SoftmaxSpec
from lightning_pfc.heads.softmax.blended_centers import BlendedCenters
from lightning_pfc.heads.softmax.chunking import budget_bytes
from lightning_pfc.heads.softmax.target_rank import TargetRanks
from lightning_pfc.heads.softmax.top_classes import TopClasses
from lightning_pfc.heads.wrapped import RowWatch
from lightning_pfc.kernels.library import using
from lightning_pfc.losses import Loss, loss_from_config
from lightning_pfc.losses.auxiliary import AuxiliaryLoss
from lightning_pfc.matmul.no_autocast import no_autocast
from lightning_pfc.names.renamed import warn_renamed


@checked
class PartialFC(ClassSampling):
    """A margin-softmax head whose class centers are sharded over ranks (arXiv:2010.05222, arXiv:2203.15565).

    Call it as ``loss = head(embeddings, labels)`` with this rank's part of the batch; the loss is the mean over the
    global batch and the same on every rank. It works with no process group at all.

    A head that is built before the process group has a ``weight`` of shape (C, D) without storage. ``strategy="pfc"``
    gives it this rank's rows before optimizers are made; without any group, the first forward or ``.to(device)`` gives
    it all rows. Built after ``init_process_group`` it is sharded at birth. The Parameter object never changes.

    Args:
        embedding_dim: D, width of the embeddings.
        num_classes: C, over all ranks.
        loss: a :class:`~lightning_pfc.losses.Loss`, its name, or a mapping with ``name`` and arguments.
        sample_rate: share of the classes in a training step, in [0, 1]: 1 is the exact softmax, 0 keeps the batch's own
            classes only. Losses at different rates are not comparable: they differ by about ``ln`` of the ratio.
        sampler: which classes those are: a :class:`~lightning_pfc.heads.sampling.Sampler`, its name, or a mapping with
            ``name`` and arguments. By default the targets of the batch and negatives drawn uniformly.
        seed: of the initial centers and of the negatives.
        comm: process groups to use; None: those of the strategy, else the default group, else a single process.
        device, dtype: of the centers; the dtype or its name. bfloat16 halves their memory; computation is in float32
            (float64 for float64 embeddings).
        init: initial centers: "normal", N(0, init_std^2); "unit", directions at random and length 1; "kaiming",
            N(0, 1/D); "xavier", N(0, 2/(C + D)); "class_means", which :class:`lightning_pfc.transfer.ClassMeans` takes
            from the data. None: "normal" where ``init_std`` is given, else the choice of the loss's authors: "unit" for
            AdaFace, MagFace and MVSoftmax, "kaiming" for UniFace and "normal" for the others.
        init_std: standard deviation of "normal"; None: 0.01.
        row_folder: where the centers, and their state in an optimizer of ``lightning_pfc.optim``, are kept in
            memory-mapped files, every rank's in a folder of its own; beside a GPU together with ``rows_on="host"``.
            Rows of the next step's negatives are read ahead. Existing files are reused, and ``seed`` is then not used.
        rows_on: "device": the centers are where the head is. "host": centers and their state in an optimizer stay in
            the host's memory (pinned where there is a GPU) or in ``row_folder``, and the head computes where the module
            is moved to: the sampled rows go there a chunk at a time and their gradients come back. The host then waits
            for the GPU once in the forward pass (twice for a loss that asks for the targets' cosines first; not at all
            after :meth:`prepare`, if rows are at most 512 MiB) and once in the backward pass, or once a chunk with
            centers updated there. Never run on a GPU so far.
        memory_budget: bytes of logits or exponentials kept from forward to backward, others are computed again; or
            ``"lean"`` (none), ``"fast"`` (all), None (:func:`~lightning_pfc.heads.softmax.chunking.budget_bytes`).
        chunk_size: classes in one pass of the inner loop; None chooses.
        gradient_filter: share of the gradient that may be left out of the backward products, 0 for none; see
            :mod:`lightning_pfc.heads.softmax.gradient_filter`. On a CPU only: it needs sizes that depend on values.
        precision: of the products: ``auto``, ``float32``, ``tf32``, ``bfloat16``, ``float16`` or ``float16x3``; see
            :mod:`lightning_pfc.heads.softmax.precision`. Settled once, kept in checkpoints, not changed by autocast.
        kernels: ``auto`` runs small operations on a GPU as Triton kernels, each where it gives what plain torch gives;
            ``torch`` has plain torch, ``triton`` is an error where there is no such GPU. A CPU has plain torch.
        auxiliary_losses: losses on the gathered embeddings alone, added to the value; see
            :mod:`lightning_pfc.losses.auxiliary`.
        check_finite: whether a NaN or an infinity in the embeddings raises, on every rank. The strategy switches it off
            under a loss scaler, whose business they are.

    Raises:
        ValueError, TypeError: for arguments out of range; the message names argument, value and way out.
        RuntimeError: when built under another strategy than ours, which would overwrite the shards.

    Attributes:
        weight: Parameter (c, D), this rank's centers; (c, K D) for a loss with K centers per class, side by side.
        bias: Parameter (c,), or None.
        step: () int64 buffer, training forwards so far; part of the checkpoint.
        defaults_version, precision_code, kernels_code: () int64 buffers; see
            :class:`~lightning_pfc.heads.head_state.HeadState`.
    """

    def __init__(
        self,
        *,
        embedding_dim: int,
        num_classes: int,
        loss: Loss | str | Mapping[str, Any],
        sample_rate: float = 1.0,
        seed: int = 0,
        comm: Comm | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = torch.float32,
        init: HeadInit | None = None,
        init_std: float | None = None,
        row_folder: str | os.PathLike[str] | None = None,
        rows_on: Place = "device",
        memory_budget: int | str | None = None,
        chunk_size: int | None = None,
        check_finite: bool = True,
        auxiliary_losses: Sequence[AuxiliaryLoss | str | Mapping[str, Any]] = (),
        gradient_filter: float = 0.0,
        sampler: Sampler | str | Mapping[str, Any] = "uniform",
        additions: Sequence[AuxiliaryLoss | str | Mapping[str, Any]] | None = None,
        precision: str = "auto",
        kernels: str = "auto",
    ) -> None:
        if additions:
            warn_renamed("PartialFC(additions=)", "auxiliary_losses=")
            auxiliary_losses = additions
        limits = (sample_rate, chunk_size, gradient_filter, memory_budget)
        check_options(embedding_dim, num_classes, *limits, precision, check_finite)
        loss = loss_from_config(loss)
        start = initial_centers(init, init_std, loss.center_init, (num_classes, embedding_dim))
        placement = Placement(device, as_dtype(dtype), row_folder, rows_on)
        super().__init__(num_classes, embedding_dim * loss.num_centers, loss.has_bias, seed, start, placement)
        self.embedding_dim, self.loss, self.sample_rate = embedding_dim, loss, sample_rate
        self.memory_budget, self.chunk_size, self.gradient_filter = memory_budget, chunk_size, gradient_filter
        self.auxiliary_losses = as_auxiliary_losses(auxiliary_losses)
        self.check_finite, self.sampler = check_finite, sampler_from_config(sampler)
        self._products, self.kernel_choice = ProductPrecision(precision), KernelChoice(kernels)
        self._init_left_out = init is None and init_std is None
        check_sampling(self.sampler, loss, sample_rate)
        self._register_state()
        self._forget_passes()
        self._start_life(comm)

    def _forget_passes(self) -> None:
        """Nothing is under way: at the start, and in a copy."""
        self._deferred, self._passes, self._row_watch, self._prepared = DeferredCheck(), Passes(), RowWatch(), None
        self._blends: list[weakref.ref[BlendedCenters]] = []
        self._loss_hooks: OrderedDict[int, Callable[[LossOutput], None]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_deferred", "_passes", "_row_watch", "_blends", "_loss_hooks", "_prepared")
        state = {name: value for name, value in self.__dict__.items() if name not in left_out}
        return state | {"_sampler_cache": {}, "_held": self.shard}  # threads are made anew; ranks are in no pickle

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget_passes()

    # --- training -----------------------------------------------------------------------------------------------------

    def forward(
        self, embeddings: Tensor, labels: Tensor, other: Tensor | None = None, share: Tensor | float = 1.0
    ) -> Tensor:
        """The loss of the global batch.

        Of mixed images (mixup, CutMix) it is ``share * loss(labels) + (1 - share) * loss(other)``, over one set of
        sampled classes.

        Collectives over all ranks: one small exchange on the CPU (sizes and errors), one all-gather of embeddings and
        labels, one all-reduce of two numbers a row (two where the logits have no bound); backward one reduce-scatter.

        Args:
            embeddings: (b, D) floating, this rank's part; b may differ from rank to rank and from step to step.
            labels: (b,) int64 global class ids; or (b, P), -1 for none: the mean over positives that do not compete.
            other: (b,) int64, the second class of each row, on every rank or on none; None: there is none.
            share: () or (b,) in [0, 1], mixing weight of ``labels`` against ``other``. Costs one more all-gather.

        Returns:
            () in float32 (float64 for float64 embeddings): the mean over the global batch, the same on every rank. The
            embeddings' gradient is multiplied by the number of ranks, since DDP divides by it.

        Raises:
            ValueError, TypeError, FloatingPointError: on every rank, if any rank's input is bad. On an accelerator a
                bad value (label out of range, NaN) may surface one step later.
            RuntimeError: on every rank that called, if some rank did not.
        """
        return self.loss_output(embeddings, labels, other, share).loss

    def loss_output(
        self, embeddings: Tensor, labels: Tensor, other: Tensor | None = None, share: Tensor | float = 1.0
    ) -> LossOutput:
        """As :meth:`forward`, with the cosines of this rank's samples to their own centers."""
        self._ensure_storage()
        check_filter(self.gradient_filter, device_of(embeddings))
        with no_autocast(device_of(embeddings)), using(self.settle_kernels()):
            batch = self._gather(embeddings, labels, "PartialFC.forward", other, share)
            ready = None if self._prepared is None else self._take_prepared(labels, other)
            now = self._passes.first_of(batch, self.training) or self._new_pass(batch, ready)
            output = self._loss_pass().compute_loss(batch, now)
        self._passes.keep(now, batch, output.loss)
        if now.moves_on:
            self.step += 1
            self._read_ahead()
        for hook in self._loss_hooks.values():
            hook(output)
        return output

    def register_loss_hook(self, hook: Callable[[LossOutput], None]) -> RemovableHandle:
        """Have ``hook`` called with what each forward gives, until the handle that is returned is removed."""
        handle = RemovableHandle(self._loss_hooks)
        self._loss_hooks[handle.id] = hook
        return handle

    def _gather(
        self, embeddings: Tensor, labels: Tensor, tag: str, other: Tensor | None = None, share: Tensor | float = 1.0
    ) -> GlobalBatch:
        several = partial(several_labels_error, loss=self.loss, auxiliary=bool(self.auxiliary_losses), tag=tag)
        facts = (self.embedding_dim, self.num_classes, self.check_finite, self.training, several, self.agreed_options)
        gatherer = BatchGatherer(self.comm, self._deferred, partial(self._row_watch.numbers, self), *facts)
        return gatherer.gather(embeddings, labels, tag, other, share)

    def _loss_pass(self) -> LossPass:
        comm = self.comm
        return LossPass(
            loss=self.loss,
            auxiliary=self.auxiliary_losses,
            weight=self.weight,
            bias=self.bias,
            learned=self._loss_parameters(),
            averages=LossAverages(self.loss, self._loss_state(), comm),
            memory=ClassMemory(self._class_memory(), self._blends, self.shard, comm.shard_group),
            limits=self._limits(),
            comm=comm,
            seed=self.seed,
        )

    def _limits(self) -> SoftmaxSpec:
        return SoftmaxSpec(
            shard_group=self.comm.shard_group,
            replica_group=self.comm.replica_group,
            memory_budget=budget_bytes(self.memory_budget, self.device),
            precision=self.settle_precision(self.device),
            kernels=self.settle_kernels(),
            chunk_size=self.chunk_size,
            gradient_filter=self.gradient_filter,
        )

    def check(self) -> None:
        """Raise, on every rank, what an accelerator found in the last batch. One small exchange on the CPU.

        The strategy calls it before a checkpoint is written, so that a value error never gets into one.

        Raises:
            ValueError, FloatingPointError: as :meth:`forward`.
        """
        self.comm.agreement.exchange("PartialFC.check", error=self._deferred.pending() or self._deferred.replayed())

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def target_ranks(self, embeddings: Tensor, labels: Tensor) -> TargetRanks:
        """Where the target stands among all C classes, for sharded top-k accuracy. Streaming; no margin.

        Collectives: the exchange and gather of :meth:`forward`, two all-reduces of (B,).

        Args:
            embeddings: (b, D) floating.
            labels: (b,) int64 global class ids.
        """
        return target_ranks(self, embeddings, labels)

    def top_classes(self, embeddings: Tensor, k: int = 5) -> TopClasses:
        """The k best of all C classes for each embedding, the best first. Streaming; no margin.

        Collectives: the exchange and gather of :meth:`forward`, two all-gathers of (B, k). Embeddings are (b, D), b of
        each rank its own; k is at least 1, and more than C gives C.
        """
        return best_classes(self, embeddings, k)

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return (
            f"embedding_dim={self.embedding_dim}, num_classes={self.num_classes}, loss={self.loss}, "
            f"sample_rate={self.sample_rate}, sampler={self.sampler}, precision={self.precision}, classes "
            f"here={self.class_range}"
        )


def iter_heads(module: nn.Module) -> Iterator[tuple[str, PartialFC]]:
    """Every :class:`PartialFC` in a module with its qualified name, each object once."""
    yield from ((name, child) for name, child in module.named_modules() if isinstance(child, PartialFC))
