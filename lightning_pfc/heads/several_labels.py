"""Labels of several positives an image: (b, P) int64, -1 where a row has fewer than P, at any place.

The loss of a row is the mean over its positives of what the loss is with that positive alone, whose negatives are all
sampled classes but the row's positives. There is one pass over the classes, whatever P is.

Shapes: B rows of a batch, P labels a row.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_pfc.heads.softmax.spec import SoftmaxSums
from lightning_pfc.kernels.capture import capturing
from lightning_pfc.losses import BatchInfo, LogitSums, Loss


def without_gaps(labels: Tensor) -> Tensor:
    """``labels`` (B, P) with the largest of a row in place of its -1; labels (B,) as they are.

    What is drawn for a batch depends on which classes are targets, not on how often, so nothing has to be left out and
    sizes do not depend on values.
    """
    if labels.dim() == 1 or labels.shape[1] == 0:
        return labels
    return torch.where(labels == -1, labels.amax(1, keepdim=True), labels)


def marks_classes(labels: Tensor, num_classes: int) -> bool:
    """Whether labels (b, P) are no ids but marks, one for each of C classes: as ids they would mean classes 0 and 1.

    Ids as wide as that are looked at: a device is waited for. Of two classes they cannot be told from marks.
    """
    if labels.dim() != 2 or labels.shape[1] != num_classes or labels.shape[0] == 0:
        return False
    if labels.dtype != torch.int64:
        return True
    if num_classes < 3 or labels.is_meta or capturing(labels.device):
        return False
    return bool(((labels == 0) | (labels == 1)).all())


def per_entry(sums: SoftmaxSums, num_sampled: Tensor, info: BatchInfo) -> tuple[Tensor, LogitSums, BatchInfo]:
    """What a loss is told of each of the B P positives alone: cosine, sums over its negatives, and facts of its row.

    A positive competes with the row's negatives only, not with its other positives: these are in none of the sums, and
    not in the number of classes either.

    Args:
        sums: of the B rows, with cosines (B, P).
        num_sampled: () K.
        info: of the B rows, with labels (B, P).
    """
    positives = info.labels.shape[1]
    classes = num_sampled - _distinct(info.labels) + 1

    def spread(values: Tensor) -> Tensor:
        return values.repeat_interleave(positives, 0)

    total = None if sums.negative_sum is None else spread(sums.negative_sum)
    known = LogitSums(spread(sums.negative_logsumexp), total, spread(classes))
    labels = without_gaps(info.labels).flatten()
    entries = replace(info, labels=labels, norms=spread(info.norms), index=spread(info.index))
    return sums.target_cosine.flatten(), known, entries


def mean_of_row(values: Tensor, labels: Tensor) -> Tensor:
    """The mean (B,) of each row's ``values`` (B P,) over its positives; one that is named twice counts twice."""
    real = labels >= 0
    return torch.where(real, values.view(labels.shape), 0.0).sum(1) / real.sum(1)


def _distinct(labels: Tensor) -> Tensor:
    """How many classes (B,) a row (P,) names."""
    same = labels[:, :, None] == labels[:, None, :]
    return ((labels >= 0) & ~same.tril(-1).any(2)).sum(1)


def several_labels_error(
    labels: Tensor, two_labels: bool, *, loss: Loss, auxiliary: bool, tag: str
) -> Exception | None:
    """The error for labels (b, P) where there can be one a row only, or None.

    Args:
        labels: (b, P).
        two_labels: whether there are second labels of mixed pictures.
        loss: of the head.
        auxiliary: whether there are losses on the embeddings alone.
        tag: what the head is to do with them.
    """
    name, one = type(loss).__name__, loss.one_label_only
    why = one and f"{name} takes one label a row, since {one}; give (b,), or another loss such as ArcFace"
    if tag != "PartialFC.forward":
        why = f"{tag} takes one label a row; give (b,), and call it once for each of several"
    elif two_labels:
        why = "pictures that are mixed (other=) have one label each; give (b,)"
    elif auxiliary:
        why = "auxiliary_losses compare images of one class each; give (b,), or leave auxiliary_losses empty"
    elif labels.shape[1] == 0:
        why = "every row needs at least one class id; give (b, P) with P of at least 1"
    return ValueError(f"labels has shape {tuple(labels.shape)}: {why}.") if why else None
