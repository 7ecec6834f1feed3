"""The sampled classes of a step: the context that a sampler is given, and rows that are fetched ahead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_pfc.buffers import host_rows
from lightning_pfc.buffers.staged_rows import StagedRows
from lightning_pfc.distributed.collectives import all_gather_uneven
from lightning_pfc.heads.batch import GlobalBatch
from lightning_pfc.heads.head_state import HeadState
from lightning_pfc.heads.prepared import Prepared, announced_labels, versions_of
from lightning_pfc.heads.recomputation import Pass
from lightning_pfc.heads.sampling.context import SamplingContext
from lightning_pfc.heads.sampling.sampled_classes import SampledClasses, all_classes
from lightning_pfc.heads.sampling.uniform_draw import class_budget
from lightning_pfc.heads.several_labels import without_gaps
from lightning_pfc.heads.sharded_centers import SAMPLED_PREFIX
from lightning_pfc.kernels.library import using
from lightning_pfc.names.renamed import warn_renamed
from lightning_pfc.storage.row_files import row_files


class ClassSampling(HeadState):
    """The classes that take part in a step: all of them, or those that the head's sampler draws.

    Attributes:
        sample_rate: share of the classes that takes part in a training step.
    """

    sample_rate: float
    _prepared: Prepared | None

    @property
    def is_subsampling(self) -> bool:
        """Whether classes are ever left out of a training step."""
        return self.sampler.is_subsampling(self.sample_rate)

    @property
    def reads_from_host(self) -> bool:
        """Whether the rows of a step come from the host's memory to a device, or from files."""
        return host_rows.is_offloaded(self.weight, self.device) or row_files(self.weight) is not None

    @property
    def samples(self) -> bool:
        """The earlier name of ``is_subsampling``."""
        warn_renamed("PartialFC.samples", "is_subsampling")
        return self.is_subsampling

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

    def prepare(self, labels: Tensor, other: Tensor | None = None) -> None:
        """Begin what the labels of the next batch decide: call it when the batch arrives, before the backbone.

        The classes are drawn, and with centers on the host (``rows_on="host"``, ``row_folder``) their rows are fetched
        by a thread while the backbone runs, and copied to the device beside what that computes. The forward that is
        then given the same tensors uses them. Calling it changes no number, and a batch that is thrown away costs what
        was done for it. Without effect in evaluation, at rate 1, and for samplers that look at embeddings or centers.

        Collectives over all ranks, which must all call it: one exchange on the CPU, one all-gather of labels.

        Args:
            labels: as :meth:`forward` will get them, the same tensor.
            other: as there.

        Raises:
            RuntimeError: on every rank that called, if some rank did not.
        """
        self._prepared = None
        if not (self.training and self.is_subsampling and self.sampler.draws_from_labels):
            return
        self._ensure_storage()
        found = announced_labels(labels, other, self.num_classes, self.comm)
        if found is None:
            return
        every, group = (without_gaps(part).flatten() for part in found)
        with using(self.settle_kernels()):
            sampled = self._sample(every, group)
        sampled = self._fetched(sampled)
        self._prepared = Prepared(self._step_key, (labels, other), versions_of(labels, other), sampled)

    def _fetched(self, sampled: SampledClasses) -> SampledClasses:
        """The rows of a sample on their way from where the host keeps them."""
        if sampled.index is None:
            return sampled
        if host_rows.is_offloaded(self.weight, self.device):
            return replace(sampled, staged=StagedRows(self.weight.detach(), sampled.index, self.device))
        files = row_files(self.weight)
        if files is not None:
            files.prefetch(sampled.index)
        return sampled

    @property
    def _step_key(self) -> tuple[Any, ...]:
        """What a draw depends on beside the labels; the number of the step by how often it has been written."""
        return self.step, self.step._version, self.sample_rate, self.seed, self.sampler

    def _take_prepared(self, labels: Tensor, other: Tensor | None) -> SampledClasses | None:
        """What was prepared for this batch, if anything was."""
        found, self._prepared = self._prepared, None
        fits = found is not None and self.training and found.fits(self._step_key, labels, other)
        return found.sampled if found is not None and fits else None

    def _new_pass(self, batch: GlobalBatch, ready: SampledClasses | None = None) -> Pass:
        step = self.step.clone()
        if self.training:
            self.initial_centers.check()
        labels = without_gaps(batch.labels).flatten()
        if self.training and self.is_subsampling:
            sampled = ready or self._sample(without_gaps(batch.all_labels).flatten(), labels, batch, step)
        else:
            sampled = all_classes(labels, self.shard)
        if batch.labels.dim() == 2:
            sampled = sampled.for_labels(batch.labels)
        return Pass(step, sampled, self.training)

    def _read_ahead(self) -> None:
        """Let a thread have the rows of the next step's negatives read, where the centers are in files."""
        files = row_files(self.weight)
        if files is None or not self.is_subsampling:
            return
        none = self.step.new_empty(0)
        context = self._sampling_context(none, none, None)

        def rows() -> Tensor:
            index = self.sampler.predict_rows(context)
            return none if index is None else index

        files.prefetch(rows)

    def _sample(
        self, all_labels: Tensor, labels: Tensor, batch: GlobalBatch | None = None, step: Tensor | None = None
    ) -> SampledClasses:
        with torch.no_grad():
            return self.sampler.sample(self._sampling_context(all_labels, labels, batch, step))

    def _sampling_context(
        self, all_labels: Tensor, labels: Tensor, batch: GlobalBatch | None, step: Tensor | None = None
    ) -> SamplingContext:
        comm = self.comm

        def embeddings() -> Tensor:
            if batch is None:
                raise RuntimeError("there are no embeddings where nothing is trained.")
            x = nn.functional.normalize(batch.x.detach())
            return x if comm.num_replicas == 1 else all_gather_uneven(x[batch.own], batch.sizes, comm.group)

        return SamplingContext(
            targets=all_labels,
            labels=labels,
            budget=class_budget(self.sample_rate, self.num_classes),
            shard=self.shard,
            seed=self.seed,
            step=self.step.clone() if step is None else step,
            state=self._sampler_state(),
            dim=self.embedding_dim,
            weight=self.weight.detach(),
            embeddings=embeddings,
            comm=comm,
            cache=self._sampler_cache,
        )
