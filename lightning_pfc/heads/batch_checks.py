"""What can be wrong with a batch, found before any rank commits to a large collective."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_pfc.heads.several_labels import marks_classes, without_gaps
from lightning_pfc.kernels.capture import capturing
from lightning_pfc.kernels.unit_embeddings import bad_rows

_LARGER = "num_classes must be larger than every label: take it from the data set"


def device_of(embeddings: object) -> torch.device:
    """Where a batch lies; the CPU for what is no tensor, which :func:`batch_error` names on every rank."""
    return embeddings.device if isinstance(embeddings, Tensor) else torch.device("cpu")


def batch_error(
    embeddings: Any, labels: Any, embedding_dim: int, num_classes: int, check_finite: bool
) -> Exception | None:
    """The error that this rank's batch deserves, or None; the caller shares it with all ranks.

    Shapes and dtypes are always checked here; values only on the CPU, since reading them elsewhere would wait for the
    device.
    """
    if not isinstance(embeddings, Tensor):
        return TypeError(
            f"embeddings is a {type(embeddings).__name__}; it must be a tensor (batch, embedding_dim={embedding_dim}): "
            "use torch.as_tensor(embeddings)."
        )
    if not embeddings.is_floating_point():
        return TypeError(f"embeddings has dtype {embeddings.dtype}; it must be floating.")
    if isinstance(labels, Tensor) and marks_classes(labels, num_classes):
        return ValueError(
            f"labels of shape {tuple(labels.shape)} marks each of num_classes={num_classes} classes (multi-hot); it "
            "must hold class ids, -1 where a row has fewer: torch.nn.utils.rnn.pad_sequence([row.nonzero().flatten() "
            "for row in labels], batch_first=True, padding_value=-1)."
        )
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        return TypeError(
            f"labels has dtype {getattr(labels, 'dtype', type(labels))}; it must be a tensor of torch.int64 class ids: "
            "use torch.as_tensor(labels).long()."
        )
    if embeddings.ndim != 2 or embeddings.shape[1] != embedding_dim:
        return ValueError(
            f"embeddings has shape {tuple(embeddings.shape)}; it must be (batch, embedding_dim={embedding_dim})."
        )
    if labels.dim() not in (1, 2) or labels.shape[:1] != embeddings.shape[:1]:
        return ValueError(
            f"labels has shape {tuple(labels.shape)}; it must be ({embeddings.shape[0]},), one class id a row of "
            f"embeddings, or ({embeddings.shape[0]}, P), several, -1 for none."
        )
    if labels.device != embeddings.device:
        return ValueError(
            f"labels is on {labels.device} and embeddings on {embeddings.device}; move both to one device."
        )
    if embeddings.device.type == "cpu" and labels.numel():
        labels = without_gaps(labels)
        bad_label, not_finite = _flags(embeddings, labels, num_classes).tolist()
        return value_error(bad_label, not_finite, labels, num_classes, check_finite)
    return None


def second_label_error(labels: Tensor, other: Tensor, share: Tensor | float, num_classes: int) -> Exception | None:
    """The error for second labels that do not fit the first, or for shares that do not fit either; or None.

    Values are looked at on the CPU only.
    """
    if not isinstance(other, Tensor) or other.dtype != torch.int64 or other.shape != labels.shape:
        return ValueError(
            f"other is {getattr(other, 'dtype', type(other))} of shape {tuple(getattr(other, 'shape', ()))}; it must "
            f"be torch.int64 of shape {tuple(labels.shape)}, a second class id for each of labels."
        )
    if other.device != labels.device:
        return ValueError(f"other is on {other.device} and labels on {labels.device}; move both to one device.")
    given = torch.as_tensor(share)
    if given.dim() and given.shape != labels.shape:
        return ValueError(f"share has shape {tuple(given.shape)}; it must be () or {tuple(labels.shape)}.")
    if given.device.type == "cpu" and not bool(((given >= 0) & (given <= 1)).all()):
        return ValueError(f"share={given.tolist()} must lie in [0, 1]: what the first label counts.")
    if other.device.type == "cpu" and bool(((other < 0) | (other >= num_classes)).any()):
        return value_error(True, False, other, num_classes, False)
    return None


def value_error(
    out_of_range: bool, not_finite: bool, labels: Tensor, num_classes: int, check_finite: bool
) -> Exception | None:
    """The error for values that were found bad; labels (b, P) come without gaps."""
    if out_of_range:
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if labels.dim() == 2 and bool((labels == -1).any()):
            return ValueError(
                f"labels of shape {tuple(labels.shape)} holds {int((labels == -1).all(1).sum())} row(s) without any "
                "class id, all -1; leave such rows out of the batch."
            )
        way_out = "leave rows without a class out of the batch" if int(wrong[0]) < 0 else _LARGER
        return ValueError(
            f"labels holds {wrong.numel()} class id(s) outside [0, num_classes={num_classes}), such as "
            f"{int(wrong[0])}; {way_out}."
        )
    if not_finite and check_finite:
        return FloatingPointError(
            "embeddings holds NaN or infinity: the backbone has diverged. Lower the learning rate or warm it up, clip "
            "gradients, look for a bad image, or train in bf16-mixed or 32-true instead of 16-mixed."
        )
    return None


def _flags(embeddings: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(2,) bool on the device: a label out of range, a value not finite."""
    return torch.stack([((labels < 0) | (labels >= num_classes)).any(), ~embeddings.detach().isfinite().all()])


class DeferredCheck:
    """Value checks on an accelerator: looked at one step later, when the answer has long been there.

    Waiting for it at once would stall the queue of kernels in every step. In replays of a CUDA graph nobody looks: they
    add up what they find until :meth:`replayed` is asked for.
    """

    def __init__(self) -> None:
        self._flags: Tensor | None = None
        self._arrived: torch.Event | None = None
        self._labels: Tensor | None = None
        self._limits = (0, True)
        self._found: Tensor | None = None
        self._captured = False

    def watch(self, embeddings: Tensor, labels: Tensor, num_classes: int, check_finite: bool) -> None:
        """Start checking a batch; nothing to do on the CPU, where :func:`batch_error` has looked already."""
        device = embeddings.device.type
        if device == "cpu" or labels.shape[0] == 0:
            return
        flags = bad_rows(embeddings.detach(), labels, num_classes)
        if self._found is None:
            self._found = torch.zeros_like(flags[0])
        if capturing(embeddings.device):
            self._captured = True
            self._found.logical_or_(flags.any(0))
            self._limits = (num_classes, check_finite)
            return
        if device == "meta":  # counted, and without values
            flags.clone()
            return
        self._flags = torch.empty(flags.shape, dtype=flags.dtype, device="cpu", pin_memory=device == "cuda")
        self._flags.copy_(flags, non_blocking=True)
        self._arrived = torch.Event(device)
        self._arrived.record()
        self._labels, self._limits = labels, (num_classes, check_finite)

    def pending(self) -> Exception | None:
        """The error of the batch that was watched last, and forget it."""
        if self._flags is None or self._arrived is None or self._labels is None or capturing(self._labels.device):
            return None
        self._arrived.synchronize()
        bad_label, not_finite = self._flags.any(0).tolist()
        labels, self._flags, self._labels = self._labels, None, None
        return value_error(bad_label, not_finite, labels, *self._limits)

    def replayed(self) -> Exception | None:
        """The error of the replays since this was asked last; waits for the device where a step was captured."""
        if self._found is None or not self._captured:
            return None
        bad_label, not_finite = self._found.cpu().tolist()
        self._found.zero_()
        num_classes, check_finite = self._limits
        if bad_label:
            return ValueError(
                f"labels of a replayed CUDA graph held a class id outside [0, num_classes={num_classes}); {_LARGER}."
            )
        return value_error(False, not_finite, torch.empty(0), num_classes, check_finite)
