"""PartialFC: rank-sharded class centers, negative sampling and a margin softmax, as one module with a loss."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_pfc.distributed.collectives import all_reduce, shared_gradient, summed_gradient
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.heads.chunks import target_cosines
from lightning_pfc.heads.cross_entropy import sharded_softmax_sums
from lightning_pfc.heads.gathered import Gathered, Gatherer, gather_uneven, rows_of_all
from lightning_pfc.heads.init import initial_centers
from lightning_pfc.heads.plan import Plan
from lightning_pfc.heads.prototypes import Prototypes
from lightning_pfc.heads.ranking import TargetRanks, rank_targets
from lightning_pfc.heads.recomputation import Pass, Passes
from lightning_pfc.heads.row_memory import recall, remember_
from lightning_pfc.heads.samplers import Sampler, Step, sampler_from_config
from lightning_pfc.heads.sampling import Sample, all_classes, class_budget
from lightning_pfc.heads.sharded_rows import MEMORY_PREFIX, SAMPLED_PREFIX, Place, ShardedRows
from lightning_pfc.heads.validation import DeferredCheck
from lightning_pfc.losses import Loss, Rows, loss_from_config
from lightning_pfc.losses.additions import Addition, addition_from_config
from lightning_pfc.losses.base import DEFAULTS_VERSION, CenterInit
from lightning_pfc.storage.row_files import row_files

_STATE_PREFIX = "loss_"
_SAMPLER_PREFIX = "sampler_"
_OF_SAMPLERS = (_SAMPLER_PREFIX, SAMPLED_PREFIX)


class PartialFC(ShardedRows):
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
        sample_rate: share of the classes that takes part in a training step, in [0, 1]: 1 is the exact softmax, 0 keeps
            the batch's own classes only. Sampled softmax has fewer terms: losses of different rates do not compare
            (they differ by about ``ln`` of the rates' ratio).
        sampler: which classes those are: a :class:`~lightning_pfc.heads.samplers.Sampler`, its name, or a mapping with
            ``name`` and arguments. By default the targets of the batch and others drawn evenly.
        seed: of the initial centers and of the negatives.
        comm: whom to talk to; None finds out (the strategy's ranks, the default process group, or nobody).
        device, dtype: of the centers; the dtype or its name. bfloat16 halves their memory; computation is in float32
            (float64 for float64 embeddings).
        init: how centers begin: "normal", N(0, init_std^2); "unit", directions at random and length 1; "kaiming",
            N(0, 1/D); "xavier", N(0, 2/(C + D)). None: as the loss's authors have it, which is "unit" for AdaFace,
            MagFace and MVSoftmax, "kaiming" for UniFace and "normal" for the others; "normal" where ``init_std`` is
            given.
        init_std: standard deviation of "normal"; None: 0.01.
        row_folder: where the centers, and their state in an optimizer of ``lightning_pfc.optim``, are kept in
            memory-mapped files instead of memory, every rank's in a folder of its own; beside a GPU together with
            ``rows_on="host"``. Rows of the next step's negatives are read ahead. Files that are there already are gone
            on with, and decide over ``seed``.
        rows_on: "device": the centers are where the head is. "host": centers and their state in an optimizer stay in
            the host's memory (pinned where there is a GPU) or in ``row_folder``, and the head computes where the module
            is moved to: the sampled rows go there a chunk at a time, the next ones being gathered while it computes
            with these, and their gradients come back. The host then waits for the GPU once in the forward pass (twice
            for a loss that asks for the targets' cosines first) and once in the backward pass, or once a chunk with
            centers updated there. Never run on a GPU so far.
        memory_budget: bytes of logits kept from forward to backward; what exceeds it is computed again in the backward
            pass.
        chunk_size: classes in one pass of the inner loop; None chooses.
        gradient_filter: share of the gradient that may be left out of the backward products, 0 for none. Soon in
            training almost all probabilities are negligible (cf. gradient filtering in Cut Cross-Entropy,
            arXiv:2411.09009, section 4.3): an image meets few classes that it could be taken for. Every d loss / d
            cosine of an image and a class below a bound is left out; all of them together, over all ranks, hold at most
            the square of this share of the sum of squares. The gradients of embeddings and centers were off by a
            quarter to a sixtieth of it. Where few are left, sums over them take the place of the matrix products. On a
            CPU only: it needs sizes that depend on values.
        additions: losses on the gathered embeddings alone, added to the value; see
            :mod:`lightning_pfc.losses.additions`.
        check_finite: whether a NaN or an infinity in the embeddings raises, on every rank. The strategy switches it off
            under a loss scaler, whose business they are.

    Raises:
        ValueError, TypeError: for arguments out of range; the message names argument, value and way out.
        RuntimeError: when built under another strategy than ours, which would overwrite the shards.

    Attributes:
        weight: Parameter (c, D), this rank's centers; (c, K D) for a loss with K centers per class, side by side.
        bias: Parameter (c,), or None.
        step: () int64 buffer, training forwards so far; part of the checkpoint.
        defaults_version: () int64 buffer, which version's defaults the head began with; part of the checkpoint. A head
            that goes on from an older one trains with what the older one meant by the arguments that were left out.
    """

    step: Tensor
    defaults_version: Tensor

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
        init: CenterInit | None = None,
        init_std: float | None = None,
        row_folder: str | os.PathLike[str] | None = None,
        rows_on: Place = "device",
        memory_budget: int = 512 << 20,
        chunk_size: int | None = None,
        check_finite: bool = True,
        additions: Sequence[Addition | str | Mapping[str, Any]] = (),
        gradient_filter: float = 0.0,
        sampler: Sampler | str | Mapping[str, Any] = "uniform",
    ) -> None:
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim={embedding_dim} must be at least 1.")
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1.")
        if not 0.0 <= sample_rate <= 1.0:
            raise ValueError(f"sample_rate={sample_rate} must lie in [0, 1]; 1 is the exact softmax.")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size} must be at least 1, or None to choose.")
        if not 0.0 <= gradient_filter < 1.0:
            raise ValueError(
                f"gradient_filter={gradient_filter} must lie in [0, 1); 0 is exact, 1e-3 a usual tolerance."
            )
        if memory_budget < 0:
            raise ValueError(f"memory_budget={memory_budget} must be a number of bytes, 0 keeps nothing.")
        dtype = _as_dtype(dtype)
        loss = loss_from_config(loss)
        super().__init__(
            num_classes=num_classes,
            width=embedding_dim * loss.num_centers,
            has_bias=loss.has_bias,
            seed=seed,
            initial_centers=initial_centers(init, init_std, loss.center_init, (num_classes, embedding_dim)),
            device=device,
            dtype=dtype,
            row_folder=row_folder,
            rows_on=rows_on,
        )
        self.embedding_dim = embedding_dim
        self.loss = loss
        self._init_left_out = init is None and init_std is None
        self.additions = tuple(addition_from_config(addition) for addition in additions)
        self.sample_rate = sample_rate
        self.sampler = sampler_from_config(sampler)
        self.memory_budget = memory_budget
        self.chunk_size = chunk_size
        self.check_finite = check_finite
        self.gradient_filter = gradient_filter
        self.last_target_cosine: Tensor | None = None
        if self.sampler.weighs and self.loss.needs_negative_sum:
            raise ValueError(
                f"sampler={self.sampler} weighs the negatives, and {type(self.loss).__name__} with label_smoothing="
                f"{self.loss.label_smoothing} sums their logits as they are; leave out one of the two."
            )
        self._deferred = DeferredCheck()
        self._passes = Passes()
        self._prototypes: list[weakref.ref[Prototypes]] = []  # of passes whose backward may be to come
        self._sampler_cache: dict[str, Any] = {}

        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device="cpu"))
        self.register_buffer("defaults_version", torch.tensor(DEFAULTS_VERSION, device="cpu"))
        for name, value in self.loss.initial_state(num_classes).items():
            self.register_buffer(_STATE_PREFIX + name, value.cpu())
        for name, value in self.loss.initial_parameters(num_classes).items():
            self.register_parameter(_STATE_PREFIX + name, nn.Parameter(value.cpu()))
        wide = torch.promote_types(dtype, torch.float32)
        parts: list[Loss | Addition] = [self.loss, *self.additions]
        for part in parts:
            for name, shape in part.row_memory(embedding_dim).items():
                if hasattr(self, MEMORY_PREFIX + name):
                    raise ValueError(f"loss and additions hold two that remember {name!r}; leave one out: {part}.")
                rows = torch.zeros((num_classes, *shape), dtype=wide, device="meta")
                self.register_buffer(MEMORY_PREFIX + name, rows)
        for name, value in self.sampler.initial_state(num_classes, embedding_dim).items():
            self.register_buffer(_SAMPLER_PREFIX + name, value.cpu())
        for name, (shape, kind) in self.sampler.row_state(embedding_dim).items():
            rows = torch.zeros((num_classes, *shape), dtype=kind, device="meta")
            self.register_buffer(SAMPLED_PREFIX + name, rows)
        self._start_life(comm)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_deferred"] = DeferredCheck()
        state["_passes"], state["_prototypes"] = Passes(), []
        state["_sampler_cache"] = {}  # threads and indexes, which are made anew
        return state

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, *args: Any
    ) -> None:
        # A run may go on with another sampler, which then begins without a memory of its own.
        own = {f"{prefix}{name}": value for name, value in self._buffers.items() if name.startswith(_OF_SAMPLERS)}
        for key in [key for key in state_dict if key.startswith(tuple(prefix + word for word in _OF_SAMPLERS))]:
            if key not in own:
                del state_dict[key]
        self._sampler_cache.clear()
        if self._comm is None:
            self._ensure_storage()
        for key in own:
            state_dict.setdefault(key, self._buffers[key.removeprefix(prefix)])
        if prefix + "step" in state_dict:  # a head that goes on: of the first version if it does not say
            version = state_dict.setdefault(prefix + "defaults_version", torch.tensor(1))
            self._keep_defaults_of(int(version))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *args)

    def _keep_defaults_of(self, version: int) -> None:
        """Go on with what the arguments that were left out meant in that version, and say so where it differs."""
        loss = self.loss.with_defaults_of(version)
        if loss != self.loss:
            self.loss = loss
            if self.comm.rank == 0:
                warnings.warn(
                    f"this head began with other defaults and goes on with them: {loss}. Give the arguments by name to "
                    "change that.",
                    stacklevel=2,
                )
        if self._init_left_out:
            init = loss.center_init if version > 1 else "normal"
            self.initial_centers = initial_centers(init, None, init, (self.num_classes, self.embedding_dim))

    # --- training -----------------------------------------------------------------------------------------------------

    def forward(
        self, embeddings: Tensor, labels: Tensor, other: Tensor | None = None, share: Tensor | float = 1.0
    ) -> Tensor:
        """The loss of the global batch.

        Of mixed pictures (mixup, CutMix) it is ``share * loss(labels) + (1 - share) * loss(other)``, over one set of
        sampled classes.

        Collectives over all ranks: one small exchange on the CPU (sizes and errors), one all-gather of embeddings and
        labels, one all-reduce of two numbers a row (two where the logits have no bound); backward one reduce-scatter.

        Args:
            embeddings: (b, D) floating, this rank's part; b may differ from rank to rank and from step to step.
            labels: (b,) int64 global class ids in [0, num_classes).
            other: (b,) int64, the second class of each row, on every rank or on none; None: there is none.
            share: () or (b,) in [0, 1], what the first class counts where there are two. One all-gather of it more.

        Returns:
            () in float32 (float64 for float64 embeddings): the mean over the global batch, the same on every rank. The
            embeddings' gradient is multiplied by the number of ranks, since DDP divides by it.

        Raises:
            ValueError, TypeError, FloatingPointError: on every rank, if any rank's input is bad. On an accelerator a
                bad value (label out of range, NaN) may surface one step later.
            RuntimeError: on every rank that called, if some rank did not.
        """
        self._ensure_storage()
        if self.gradient_filter > 0 and embeddings.device.type != "cpu":
            raise ValueError(
                f"gradient_filter={self.gradient_filter} works on a CPU only; on {embeddings.device} use 0."
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            batch = self._gather(embeddings, labels, "PartialFC.forward", other, share)
            now = (self._passes.first_of(batch) if self.training else None) or self._new_pass(batch)
            loss = self._loss(batch, now)
        if self.training and not now.again:
            self._passes.keep(now, batch, loss)
            self.step += 1
            self._read_ahead()
        return loss

    def _new_pass(self, batch: Gathered) -> Pass:
        if self.training and self.samples:
            sample = self._sample(batch.all_labels, batch.labels, batch)
        else:
            sample = all_classes(batch.labels, self.shard)
        return Pass(self.step.clone(), sample)

    @property
    def device(self) -> torch.device:
        """Where the head computes: where its centers are, or, with centers on the host, where it was moved to."""
        return self.weight.device if self.rows_on == "device" else self.step.device

    @property
    def samples(self) -> bool:
        """Whether classes are ever left out of a training step."""
        return self.sampler.samples(self.sample_rate)

    @torch.no_grad()
    def set_class_counts(self, counts: Tensor) -> None:
        """Say how many images each class has, for a sampler that draws by it; others do nothing with it.

        Args:
            counts: (num_classes,) integers, the same on every rank; 0 counts as 1.

        Raises:
            ValueError: for another shape or a negative count.
        """
        if counts.shape != (self.num_classes,) or bool((counts < 0).any()):
            raise ValueError(
                f"counts has shape {tuple(counts.shape)}; it must be ({self.num_classes},), numbers of images >= 0."
            )
        if not self.sampler.needs_counts:
            return
        self._ensure_storage()
        own = counts[self.shard.start : self.shard.stop].clamp(1, torch.iinfo(torch.int32).max)
        self.get_buffer(SAMPLED_PREFIX + "count").copy_(own)

    def _read_ahead(self) -> None:
        """Let a thread have the rows of the next step's negatives read, where the centers are in files."""
        files = row_files(self.weight)
        if files is None or not self.samples:
            return
        nobody = self.step.new_empty(0)
        step = self._step(nobody, nobody, None)

        def rows() -> Tensor:
            index = self.sampler.foresee(step)
            return nobody if index is None else index

        files.prefetch(rows)

    def _sample(self, all_labels: Tensor, labels: Tensor, batch: Gathered | None = None) -> Sample:
        with torch.no_grad():
            return self.sampler.sample(self._step(all_labels, labels, batch))

    def _step(self, all_labels: Tensor, labels: Tensor, batch: Gathered | None) -> Step:
        comm = self.comm

        def embeddings() -> Tensor:
            if batch is None:
                raise RuntimeError("there are no embeddings where nothing is trained.")
            x = nn.functional.normalize(batch.x.detach())
            return x if comm.num_replicas == 1 else gather_uneven(x[batch.own], batch.sizes, comm)

        kept = {
            name.removeprefix(prefix): buffer
            for name, buffer in self._buffers.items()
            for prefix in _OF_SAMPLERS
            if buffer is not None and name.startswith(prefix)
        }
        return Step(
            targets=all_labels,
            labels=labels,
            budget=class_budget(self.sample_rate, self.num_classes),
            shard=self.shard,
            seed=self.seed,
            step=self.step.clone(),
            state=kept,
            dim=self.embedding_dim,
            weight=self.weight.detach(),
            embeddings=embeddings,
            comm=comm,
            cache=self._sampler_cache,
        )

    def _loss(self, batch: Gathered, now: Pass) -> Tensor:
        comm, loss, sample = self.comm, self.loss, now.sample
        moves_on = self.training and not now.again  # averages and memory
        state = self._loss_state()
        norms = torch.linalg.vector_norm(batch.x, dim=1)
        x = batch.x / norms.clamp(min=1e-12)[:, None] if loss.normalize else batch.x
        learned = self._loss_parameters()
        rows = Rows(
            labels=batch.labels,
            norms=shared_gradient(norms, comm.shard_size),
            target_cosine=None,
            seed=self.seed,
            step=now.step,
            index=batch.places(),
        )
        if loss.needs_target_cosine:
            plan = self._plan(rows, {}, sample)
            rows = replace(rows, target_cosine=target_cosines(x, self.weight, self.bias, plan))
        if moves_on and state:
            with torch.no_grad():
                loss.update_state(state, rows_of_all(rows, batch, comm)[0])
        if now.state is None:  # the buffers move on, perhaps before this step's backward; its graph keeps these values
            now.state = {name: value.clone() for name, value in state.items()}
        memory = self._memory_of(loss)
        if memory and self.training and now.prototypes is None:
            now.prototypes = Prototypes(memory["feature"], loss.prototype_shares(memory, rows))
            self._prototypes.append(weakref.ref(now.prototypes))
        plan = replace(self._plan(rows, now.state | learned, sample), prototypes=now.prototypes)
        sums = sharded_softmax_sums(x, self.weight, self.bias, plan, tuple(learned))
        self.last_target_cosine = sums.target_cosine.detach()[batch.own_pictures]
        values = now.state | {name: shared_gradient(value, comm.shard_size) for name, value in learned.items()}
        row_losses = loss.row_losses(
            loss.target_logits(sums.target_cosine, rows, values),
            sums.negative_logsumexp,
            sums.negative_sum,
            sample.num_sampled,
            rows,
            values,
        )
        if moves_on and state:
            with torch.no_grad():
                known = replace(rows, target_cosine=sums.target_cosine.detach())
                loss.finish_state(state, *rows_of_all(known, batch, comm, sums.negative_logsumexp.detach()))
        if moves_on and memory:
            with torch.no_grad():
                self._remember(loss, memory, x, rows)
        weighted = row_losses if batch.weights is None else row_losses * batch.weights
        total = weighted.sum() / batch.num_pictures
        remembered = iter(now.recalled if now.again else ())
        for addition in self.additions:
            memory = self._memory_of(addition)
            for embeddings, labels, counts in batch.labelled():
                recalled = next(remembered, None) or recall(memory, labels, self.shard, comm.shard_group)
                if moves_on:
                    now.recalled.append(recalled)
                value = addition(embeddings, labels, recalled)
                share = labels.shape[0] / batch.num_pictures
                total = total + shared_gradient(value, comm.shard_size) * (addition.weight * share * counts)
                if moves_on and memory:
                    with torch.no_grad():
                        remember_(memory, addition.remembered(embeddings, labels, recalled), labels, self.shard)
        if comm.num_replicas > 1:
            # every copy of the head saw its own rows: add the others' share of the value, not of the gradient
            others = all_reduce(total.detach().clone(), comm.group) / comm.shard_size - total.detach()
            total = total + others
        return total

    def _memory_of(self, part: Loss | Addition) -> dict[str, Tensor]:
        names = part.row_memory(self.embedding_dim)
        return {name: rows for name in names if (rows := self._buffers[MEMORY_PREFIX + name]) is not None}

    def _remember(self, loss: Loss, memory: dict[str, Tensor], x: Tensor, rows: Rows) -> None:
        """Write what the loss remembers of this batch; backward passes still to come keep the memory as it was."""
        shard = self.shard
        owned = (rows.labels >= shard.start) & (rows.labels < shard.stop)
        local = torch.where(owned, rows.labels - shard.start, shard.num_local)
        before = memory["feature"][local.clamp(max=shard.num_local - 1)]
        alive = [(ref, prototypes) for ref in self._prototypes if (prototypes := ref()) is not None]
        for _, prototypes in alive:
            prototypes.keep(local, before)
        self._prototypes = [ref for ref, _ in alive]
        remember_(memory, loss.remembered(x, rows), rows.labels, shard)

    def _plan(self, rows: Rows, state: dict[str, Tensor], sample: Sample) -> Plan:
        return Plan(
            loss=self.loss,
            rows=rows,
            state=state,
            sample=sample,
            shard_group=self.comm.shard_group,
            replica_group=self.comm.replica_group,
            memory_budget=self.memory_budget,
            chunk_size=self.chunk_size,
            gradient_filter=self.gradient_filter,
        )

    def _loss_state(self) -> dict[str, Tensor]:
        return {
            name.removeprefix(_STATE_PREFIX): buffer
            for name, buffer in self._buffers.items()
            if buffer is not None and name.startswith(_STATE_PREFIX)
        }

    def _loss_parameters(self) -> dict[str, Tensor]:
        """What the loss learns, so that the gradients of all ranks are added up: each rank knows its own share."""
        group = self.comm.group
        return {
            name.removeprefix(_STATE_PREFIX): summed_gradient(parameter, group)
            for name, parameter in self._parameters.items()
            if parameter is not None and name.startswith(_STATE_PREFIX)
        }

    def _gather(
        self, embeddings: Tensor, labels: Tensor, tag: str, other: Tensor | None = None, share: Tensor | float = 1.0
    ) -> Gathered:
        gatherer = Gatherer(
            self.comm, self._deferred, self.embedding_dim, self.num_classes, self.check_finite, self.training
        )
        return gatherer.gather(embeddings, labels, tag, other, share)

    def check(self) -> None:
        """Raise, on every rank, what an accelerator found in the last batch. One small exchange on the CPU.

        The strategy calls it before a checkpoint is written, so that a value error never gets into one.

        Raises:
            ValueError, FloatingPointError: as :meth:`forward`.
        """
        self.comm.agreement.exchange("PartialFC.check", error=self._deferred.pending())

    # --- evaluation ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def target_ranks(self, embeddings: Tensor, labels: Tensor) -> TargetRanks:
        """Where the target stands among all C classes, for sharded top-k accuracy. Streaming; no margin.

        Collectives: the exchange and gather of :meth:`forward`, two all-reduces of (B,).

        Args:
            embeddings: (b, D) floating.
            labels: (b,) int64 global class ids.
        """
        self._ensure_storage()
        with torch.autocast(embeddings.device.type, enabled=False):
            batch = self._gather(embeddings, labels, "PartialFC.target_ranks")
            x = nn.functional.normalize(batch.x) if self.loss.normalize else batch.x
            rows = Rows(batch.labels, batch.labels, None, self.seed, self.step, batch.labels)
            plan = self._plan(rows, {}, all_classes(batch.labels, self.shard))
            found = rank_targets(x, self.weight, self.bias, plan)
        return TargetRanks(found.rank[batch.own], found.cosine[batch.own])

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return (
            f"embedding_dim={self.embedding_dim}, num_classes={self.num_classes}, loss={self.loss}, "
            f"sample_rate={self.sample_rate}, sampler={self.sampler}, classes here={self.class_range}"
        )


def iter_heads(module: nn.Module) -> Iterator[tuple[str, PartialFC]]:
    """Every :class:`PartialFC` in a module with its qualified name, each object once."""
    for name, child in module.named_modules():
        if isinstance(child, PartialFC):
            yield name, child


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise TypeError(f"dtype={dtype} must be a floating dtype, such as float32 or bfloat16.")
    return found
