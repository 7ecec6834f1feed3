"""The interface of a margin-softmax loss: a few pure functions of cosines and of facts about the batch.

Shape letters: capital = global, small = this rank's part. B rows of the global batch, n classes of one chunk, D
embedding.

The head calls a loss in this order, on every rank with the same values:

1. ``update_state(state, batch)`` in training, where averages over the global batch are kept;
2. ``negative_logits(cosine, batch, state)`` for every chunk of classes, (B, n) -> (B, n), element by element;
3. ``target_logits(cosine, batch, state)``, (B,) -> (B,), under autograd;
4. ``per_sample_loss(target_logits, sums, batch, state)``, (B,): softmax cross entropy unless overridden;
5. ``finish_state(state, batch, negative_logsumexp)`` in training, for averages that need the sums over the classes.

A loss that needs statistics of the batch (AdaFace, CurricularFace) computes them from ``batch``, which holds the whole
global batch: it needs no collective of its own and is right on any number of ranks. A loss that learns numbers
of its own (SphereFace2's bias) names them in ``initial_parameters``; the head makes them parameters and adds up their
gradients over the ranks, and the loss finds them in ``state``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from lightning_pfc.losses.batch_info import BatchInfo, LogitSums, State
from lightning_pfc.losses.margins import COSINE_LIMIT, MarginGrad, angle, with_margin_grad
from lightning_pfc.names.renamed import adopt_renamed_members, renamed_member, renamed_names, warn_renamed
from lightning_pfc.registry import Configurable

__all__ = [
    "COSINE_LIMIT",
    "DEFAULTS_VERSION",
    "BatchInfo",
    "CenterInit",
    "LogitSums",
    "Loss",
    "MarginGrad",
    "State",
    "angle",
    "with_margin_grad",
]

CenterInit = Literal["normal", "unit", "kaiming", "xavier"]

DEFAULTS_VERSION = 2
"""Counts up when an argument that is left out comes to mean another number; a head keeps the version it began with."""


@dataclass(frozen=True, kw_only=True)
class Loss(Configurable):
    """Base of all losses: scaled cosine softmax without a margin.

    Args:
        scale: s, the inverse temperature; > 0.
        label_smoothing: share of the target's probability spread evenly over all K sampled classes, in [0, 1)
            (arXiv:1512.00567, section 7; with sampling, over the classes that take part in the step).
        interclass_filter: negatives with a cosine above it count as cosine 0 (they still add e^0 to the denominator),
            as InsightFace's ``interclass_filtering_threshold`` does against conflicting identities; None is off.

    Raises:
        TypeError: for a value that is no number.
        ValueError: for a number out of range; the message names the argument, the value and the range.
    """

    scale: float = 64.0
    label_smoothing: float = 0.0
    interclass_filter: float | None = None

    normalize: ClassVar[bool] = True  # cosine logits; False: plain dot products
    needs_target_cosine: ClassVar[bool] = False  # batch.target_cosine, one more all-reduce of (B,)
    has_bias: ClassVar[bool] = False
    num_centers: ClassVar[int] = 1  # centers per class, side by side in a row of the head's weight; the nearest counts
    linear_negatives: ClassVar[bool] = True  # negative_logits is `scale * cosine` (but for the filter)
    softplus_negatives: ClassVar[bool] = False  # the head sums softplus(z) instead of z in `negative_sum`
    center_init: ClassVar[CenterInit] = "normal"  # the authors' initial centers, unless the head is given others
    neutral_margins: ClassVar[Mapping[str, float]] = {  # at which a margin of this name does nothing
        "margin": 0.0,
        "lower_margin": 0.0,
        "upper_margin": 0.0,
        "std": 0.0,
        "m1": 1.0,
        "m2": 0.0,
        "m3": 0.0,
    }
    versioned_defaults: ClassVar[Mapping[str, Mapping[int, Any]]] = {}  # what None means, by argument and version

    _left_out: ClassVar[tuple[str, ...]] = ()  # of the versioned arguments, those that were None; set on the instance

    def __post_init__(self) -> None:
        self._fill_in(DEFAULTS_VERSION)
        self._check_number("scale", low=0.0, open_low=True)
        self._check_number("label_smoothing", low=0.0, high=1.0, open_high=True)
        if self.interclass_filter is not None:
            self._check_number("interclass_filter", low=-1.0, high=1.0, open_low=True, open_high=True)

    def with_defaults_of(self, version: int) -> Self:
        """This loss with the arguments that were left None as that version meant them.

        Args:
            version: see :data:`DEFAULTS_VERSION`.
        """
        former = copy.copy(self)
        for name in self._left_out:
            object.__setattr__(former, name, None)
        former._fill_in(version)
        return former

    def _fill_in(self, version: int) -> None:
        left_out = [name for name in self.versioned_defaults if getattr(self, name) is None]
        for name in left_out:
            by_version = self.versioned_defaults[name]
            object.__setattr__(self, name, by_version[max(v for v in by_version if v <= version)])
        object.__setattr__(self, "_left_out", tuple(left_out))

    def to_config(self) -> dict[str, Any]:
        """As :class:`Configurable`; an argument that was left None is left out, for a head to say what it means."""
        return {name: value for name, value in super().to_config().items() if name not in self._left_out}

    def _check_angle(self, name: str, *, factor: float = 1.0) -> None:
        """See that an angle, added to ``factor`` times the right angle at which samples start, stays below pi.

        Beyond pi the cosine rises, and a sample would be trained away from its center.
        """
        self._check_number(name, low=0.0)
        value, most = getattr(self, name), math.pi * (1.0 - factor / 2.0)
        if value >= most:
            degrees = f"{value:g} degrees are {math.radians(value):.3g}; " if value > 2.0 else ""
            raise ValueError(
                f"{type(self).__name__}({name}={value}): {name} is an angle in radians, below {most:.4g}; {degrees}"
                "a larger one would train samples away from their centers."
            )

    # --- what the head asks -------------------------------------------------------------------------------------------

    @property
    def logit_bound(self) -> float | None:
        """No logit of a negative is above this; None if there is no bound. Saves the head a pass and a collective."""
        return self.scale if self.normalize and self.linear_negatives else None

    @property
    def needs_negative_sum(self) -> bool:
        """Whether ``per_sample_loss`` uses ``negative_sum``."""
        return self.label_smoothing > 0 or self.softplus_negatives

    @property
    def one_label_only(self) -> str | None:
        """Why a row can have one label only, after "since"; None if labels may be (b, P), several positives a row.

        With several, ``target_logits`` and ``per_sample_loss`` see each positive as a row of its own, all with the
        norm, the index and the negatives of its sample; ``update_state`` sees the samples, with labels (B, P).
        """
        if self.needs_target_cosine:
            return "it judges negatives by the cosine of the row to its target"
        return "it remembers an embedding of each row's class" if self.class_buffers(1) else None

    def initial_state(self, num_classes: int) -> State:
        """Averages that the loss keeps, as small tensors, equal on all ranks; the head makes them saved buffers."""
        return {}

    def initial_parameters(self, num_classes: int) -> State:
        """Numbers that the loss learns, as small float tensors; the head makes them parameters, equal on all ranks."""
        return {}

    def update_state(self, state: State, batch: BatchInfo) -> None:
        """Update ``state`` in place from the global batch; called under ``no_grad`` once per training forward."""

    def class_buffers(self, embedding_dim: int) -> dict[str, tuple[int, ...]]:
        """What is remembered of every class: names and shapes of a row, zero at first. Sharded as the centers are."""
        return {}

    def blend_weights(self, memory: Mapping[str, Tensor], batch: BatchInfo) -> Tensor:
        """How much of ``memory["feature"]`` is mixed into each center of this rank in training, (c,)."""
        raise NotImplementedError(f"{type(self).__name__} remembers something and must say what it is used for.")

    def updated_class_buffers(self, x: Tensor, batch: BatchInfo) -> dict[str, Tensor]:
        """What to remember of each row's class after a training step, (B, ...) each; rows of one class must agree."""
        return {}

    def finish_state(self, state: State, batch: BatchInfo, negative_logsumexp: Tensor) -> None:
        """Update ``state`` in place after a training forward, under ``no_grad``: it counts from the next one.

        Args:
            state: the averages.
            batch: the global one, with ``target_cosine``.
            negative_logsumexp: (B,) of the global batch.
        """

    def negative_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """Logits (B, n) of the negatives from their cosines (B, n), element by element; differentiable."""
        if self.interclass_filter is None:
            return self.scale * cosine
        return self.scale * cosine.masked_fill(cosine > self.interclass_filter, 0.0)

    def target_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """Logits (B,) of the targets from their cosines (B,); differentiable."""
        return self.scale * cosine

    def per_sample_loss(self, target_logits: Tensor, sums: LogitSums, batch: BatchInfo, state: State) -> Tensor:
        """Loss (B,) of every row from the targets' logits (B,): cross entropy with label smoothing.

        Without smoothing it is ``softplus(logsumexp_j z_ij - z_iy)``, exact also where the probability rounds to one.
        """
        gap = sums.negative_logsumexp - target_logits
        loss = F.softplus(gap, beta=1.0, threshold=50.0)
        if self.label_smoothing > 0:
            assert sums.negative_sum is not None
            # lse - (1-e) z_y - e/K sum_j z_j, with lse = z_y + softplus(gap)
            mean_logit = (sums.negative_sum + target_logits) / sums.num_sampled
            loss = loss + self.label_smoothing * (target_logits - mean_logit)
        return loss

    # --- earlier names ------------------------------------------------------------------------------------------------

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        adopt_renamed_members(cls, _EARLIER_NAMES)
        if "row_losses" in vars(cls) and "per_sample_loss" not in vars(cls):
            warn_renamed(f"{cls.__name__}.row_losses", "per_sample_loss(target_logits, sums, batch, state)")
            cls.per_sample_loss = _from_row_losses  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        return renamed_member(self, name, _EARLIER_NAMES)

    def row_losses(self, target_logits: Tensor, *sums_batch_state: Any) -> Tensor:
        """The earlier form of :meth:`per_sample_loss`, for losses that extend it."""
        *sums, batch, state = sums_batch_state
        inherited = (vars(cls).get("per_sample_loss") for cls in type(self).__mro__)
        newest = next(method for method in inherited if method not in (None, _from_row_losses))
        loss: Tensor = newest(self, target_logits, LogitSums(*sums), batch, state)
        return loss

    # --- helpers of the subclasses ------------------------------------------------------------------------------------

    def _refuse_filter(self, why: str) -> None:
        if self.interclass_filter is not None:
            raise ValueError(
                f"{type(self).__name__}(interclass_filter={self.interclass_filter!r}): there is no filter, since "
                f"{why}; leave it None."
            )

    def _refuse_softmax_options(self) -> None:
        """For losses that judge each class alone: they have no softmax to filter or to smooth."""
        self._refuse_filter("each class is judged alone")
        self._refuse_smoothing()

    def _refuse_smoothing(self) -> None:
        if self.label_smoothing > 0:
            raise ValueError(
                f"{type(self).__name__}(label_smoothing={self.label_smoothing!r}): there is no probability over the "
                "classes to smooth; leave it 0."
            )


def _from_row_losses(self: Loss, target_logits: Tensor, sums: LogitSums, batch: BatchInfo, state: State) -> Tensor:
    return self.row_losses(target_logits, *sums, batch, state)


_EARLIER_NAMES = {
    "row_memory": "class_buffers",
    "prototype_shares": "blend_weights",
    "remembered": "updated_class_buffers",
}
__getattr__ = renamed_names(__name__, {"Rows": "lightning_pfc.losses:BatchInfo"})
