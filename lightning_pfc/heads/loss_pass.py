"""From the gathered batch and the sampled classes to the loss: the one place where a loss meets the softmax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from lightning_pfc.distributed.collectives import shared_gradient, sum_over_replicas
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.heads.auxiliary_terms import add_auxiliary_losses
from lightning_pfc.heads.batch import GlobalBatch
from lightning_pfc.heads.class_memory import ClassMemory
from lightning_pfc.heads.loss_averages import LossAverages
from lightning_pfc.heads.recomputation import Pass
from lightning_pfc.heads.several_labels import mean_of_row, per_entry
from lightning_pfc.heads.softmax import SoftmaxSpec, SoftmaxSums, sharded_softmax
from lightning_pfc.heads.softmax.target_rank import target_cosines
from lightning_pfc.kernels.unit_embeddings import unit_embeddings
from lightning_pfc.losses import BatchInfo, LogitSums, Loss, State
from lightning_pfc.losses.auxiliary import AuxiliaryLoss


class LossOutput(NamedTuple):
    """What a head gives.

    Attributes:
        loss: () mean over the global batch, the same on every rank.
        target_cosine: (b,) cosines of this rank's samples to their own centers, without gradient (logits, for a loss
            without normalisation); of several positives the mean.
    """

    loss: Tensor
    target_cosine: Tensor


@dataclass(frozen=True, eq=False)
class LossPass:
    """The parts of a head that take part in its loss.

    Attributes:
        loss: what is made of the cosines.
        auxiliary: losses on the embeddings alone, added to it.
        weight: (c, D) this rank's centers.
        bias: (c,) or None.
        learned: the loss's own parameters by name.
        averages: what the loss keeps from step to step.
        memory: what the losses remember of every class.
        limits: memory budget, chunk size and gradient filter, and the groups.
        comm: the ranks.
        seed: of the head.
    """

    loss: Loss
    auxiliary: Sequence[AuxiliaryLoss]
    weight: Tensor
    bias: Tensor | None
    learned: Mapping[str, Tensor]
    averages: LossAverages
    memory: ClassMemory
    limits: SoftmaxSpec
    comm: Comm
    seed: int

    def compute_loss(self, batch: GlobalBatch, now: Pass) -> LossOutput:
        """The loss of a batch of the shard group; what is kept of it moves on, unless the pass is computed again.

        Args:
            batch: of the shard group.
            now: the sampled classes, and what the pass was computed with the first time.
        """
        loss, ranks = self.loss, self.comm.shard_size
        units, norms = unit_embeddings(batch.embeddings)
        x = units if loss.normalize else batch.x
        norms = shared_gradient(norms, ranks)
        info = BatchInfo(batch.labels, norms, None, self.seed, now.step, batch.sample_index())
        spec = replace(self.limits, normalize=loss.normalize, centers_per_class=loss.num_centers)
        centers = (self.weight, self.bias, now.sampled.targets, now.sampled.rows)
        if loss.needs_target_cosine:
            info = replace(info, target_cosine=target_cosines(x, *centers, spec).squeeze(1))
        averages = self.averages.update(batch, info, now)
        blended = self.memory.blended_centers(loss, info, now)
        spec = replace(describe_logits(spec, loss, info, averages), blended=blended)
        sums = sharded_softmax(x, *centers, spec, self.learned)
        state = averages | {name: shared_gradient(value, ranks) for name, value in self.learned.items()}
        losses, cosine = self._row_losses(sums, now.sampled.num_sampled, info, state)
        total = _mean(losses if batch.weights is None else losses * batch.weights, batch.num_samples)
        seen = replace(info, target_cosine=cosine)
        self.averages.finish(batch, seen, sums.negative_logsumexp, now)
        self.memory.remember(loss, x, info, now)
        total = add_auxiliary_losses(total, self.auxiliary, batch, self.memory, now, ranks)
        if self.comm.num_replicas > 1:
            total = sum_over_replicas(total, self.comm.group, ranks)
        return LossOutput(total, cosine[batch.own_samples])

    def _row_losses(
        self, sums: SoftmaxSums, num_sampled: Tensor, info: BatchInfo, state: State
    ) -> tuple[Tensor, Tensor]:
        """Loss (B,) of every row, and its cosine (B,) to its center, detached; of several positives the means."""
        loss, several = self.loss, info.labels.dim() == 2
        if several:
            cosine, known, entries = per_entry(sums, num_sampled, info)
        else:
            cosine, entries = sums.target_cosine.squeeze(1), info
            known = LogitSums(sums.negative_logsumexp, sums.negative_sum, num_sampled)
        losses = loss.per_sample_loss(loss.target_logits(cosine, entries, state), known, entries, state)
        if not several:
            return losses, cosine.detach()
        return mean_of_row(losses, info.labels), mean_of_row(cosine.detach(), info.labels)


def _mean(losses: Tensor, count: int) -> Tensor:
    """The sum of ``losses`` divided by ``count``."""
    return losses.mean() if losses.shape[0] == count else losses.sum() / count


def describe_logits(spec: SoftmaxSpec, loss: Loss, info: BatchInfo, averages: Mapping[str, Tensor]) -> SoftmaxSpec:
    """``spec`` with what the softmax has to know of a loss: how logits come from cosines, and which sums it wants."""

    def curve(cosine: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        return loss.negative_logits(cosine, info, {**averages, **learned})

    linear = loss.linear_negatives and loss.interclass_filter is None
    return replace(
        spec,
        scale=loss.scale,
        curve=None if linear else curve,
        logit_bound=loss.logit_bound,
        sums_logits=loss.needs_negative_sum,
        softplus=loss.softplus_negatives,
    )
