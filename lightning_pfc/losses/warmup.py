"""Margin warm-up: any margin loss, with margins that grow from nothing during the first steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor
from typing_extensions import Self

from lightning_pfc.checked import checked
from lightning_pfc.losses.base import CenterInit, Loss
from lightning_pfc.losses.batch_info import BatchInfo, LogitSums, State
from lightning_pfc.registry import from_config


@checked
@dataclass(frozen=True, kw_only=True)
class MarginWarmup(Loss):
    """``loss`` with its margins scaled by ``w = clip((step - start) / steps, 0, 1)``, from no margin to the full one.

    A margin in the first steps of a run, when no class has a place yet, can keep a network from learning anything
    (deep backbones, many classes). Here ``m -> w m``, a factor on the angle ``m -> 1 + w (m - 1)``; all else is the
    inner loss's. ``step`` counts the head's training forwards and is saved, so a resumed run goes on where it was.

    Args:
        loss: a loss with margins, its name, or a mapping of name and arguments.
        steps: length of the warm-up in training forwards, >= 1.
        start: forwards before it begins, >= 0.

    Raises:
        ValueError: also for a loss that has no margin.
    """

    loss: Loss | str | Mapping[str, Any]
    steps: int = 1000
    start: int = 0

    scale: float = field(default=64.0, init=False)
    label_smoothing: float = field(default=0.0, init=False)
    interclass_filter: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        inner = from_config(Loss, self.loss)
        for name, value in {
            "loss": inner,
            "scale": inner.scale,
            "label_smoothing": inner.label_smoothing,
            "interclass_filter": inner.interclass_filter,
        }.items():
            object.__setattr__(self, name, value)
        for name, least in (("steps", 1), ("start", 0)):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise ValueError(f"MarginWarmup({name}={count!r}): {name} must be an integer of at least {least}.")
        if not self._margins:
            raise ValueError(f"MarginWarmup(loss={inner}): {type(inner).__name__} has no margin to warm up.")

    @property
    def inner(self) -> Loss:
        """The loss that is warmed up."""
        assert isinstance(self.loss, Loss)
        return self.loss

    @property
    def _margins(self) -> dict[str, float]:
        """Names of the inner loss's margins and their neutral values."""
        neutral = self.inner.neutral_margins
        return {f.name: neutral[f.name] for f in fields(self.inner) if f.name in neutral}

    def _warmed(self, batch: BatchInfo) -> Loss:
        """The inner loss with this step's margins, as tensors: nothing waits for the device."""
        share = ((batch.step - self.start) / self.steps).clamp(0.0, 1.0).to(batch.norms.device, batch.norms.dtype)
        warmed = copy.copy(self.inner)
        for name, neutral in self._margins.items():
            object.__setattr__(warmed, name, neutral + (getattr(self.inner, name) - neutral) * share)
        return warmed

    def with_defaults_of(self, version: int) -> Self:
        """The inner loss with that version's defaults, warmed up."""
        return replace(self, loss=self.inner.with_defaults_of(version))

    # --- everything else is the inner loss's --------------------------------------------------------------------------

    @property
    def center_init(self) -> CenterInit:  # type: ignore[override]
        """Of the inner loss."""
        return self.inner.center_init

    @property
    def normalize(self) -> bool:  # type: ignore[override]
        """Of the inner loss."""
        return self.inner.normalize

    @property
    def needs_target_cosine(self) -> bool:  # type: ignore[override]
        """Of the inner loss."""
        return self.inner.needs_target_cosine

    @property
    def has_bias(self) -> bool:  # type: ignore[override]
        """Of the inner loss."""
        return self.inner.has_bias

    @property
    def linear_negatives(self) -> bool:  # type: ignore[override]
        """Of the inner loss."""
        return self.inner.linear_negatives

    @property
    def softplus_negatives(self) -> bool:  # type: ignore[override]
        """Of the inner loss."""
        return self.inner.softplus_negatives

    @property
    def num_centers(self) -> int:  # type: ignore[override]
        """Of the inner loss."""
        return self.inner.num_centers

    @property
    def one_label_only(self) -> str | None:
        """Of the inner loss."""
        return self.inner.one_label_only

    def initial_state(self, num_classes: int) -> State:
        """Of the inner loss."""
        return self.inner.initial_state(num_classes)

    def initial_parameters(self, num_classes: int) -> State:
        """Of the inner loss."""
        return self.inner.initial_parameters(num_classes)

    def class_buffers(self, embedding_dim: int) -> dict[str, tuple[int, ...]]:
        """Of the inner loss."""
        return self.inner.class_buffers(embedding_dim)

    def blend_weights(self, memory: Mapping[str, Tensor], batch: BatchInfo) -> Tensor:
        """Of the inner loss."""
        return self.inner.blend_weights(memory, batch)

    def updated_class_buffers(self, x: Tensor, batch: BatchInfo) -> dict[str, Tensor]:
        """Of the inner loss."""
        return self.inner.updated_class_buffers(x, batch)

    def update_state(self, state: State, batch: BatchInfo) -> None:
        """Of the inner loss."""
        self._warmed(batch).update_state(state, batch)

    def finish_state(self, state: State, batch: BatchInfo, negative_logsumexp: Tensor) -> None:
        """Of the inner loss."""
        self._warmed(batch).finish_state(state, batch, negative_logsumexp)

    def negative_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """Of the inner loss with this step's margins."""
        return self._warmed(batch).negative_logits(cosine, batch, state)

    def target_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """Of the inner loss with this step's margins."""
        return self._warmed(batch).target_logits(cosine, batch, state)

    def per_sample_loss(self, target_logits: Tensor, sums: LogitSums, batch: BatchInfo, state: State) -> Tensor:
        """Of the inner loss with this step's margins."""
        return self._warmed(batch).per_sample_loss(target_logits, sums, batch, state)

    def to_config(self) -> dict[str, Any]:
        """Plain values; the inner loss is a mapping of its own."""
        return super().to_config() | {"loss": self.inner.to_config()}
