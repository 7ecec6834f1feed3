"""Options of a head that are set after it was made: followed from the next step on, or refused by name.

A head reads its options in every step, so whoever wants another rate later simply sets it. What cannot be followed is
what tensors were made for: other sizes, and a loss or sampler that keeps something the head does not have.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from torch import nn

from lightning_pfc.heads.agreed_options import AgreedOptions
from lightning_pfc.heads.options import (
    as_auxiliary_losses,
    as_plain,
    as_seed,
    check_options,
    check_weights,
    warn_of_idle_sampler,
)
from lightning_pfc.heads.sampling import Sampler, sampler_from_config
from lightning_pfc.heads.sharded_centers import LOSS_PREFIX, MEMORY_PREFIX, SAMPLED_PREFIX, SAMPLER_PREFIX
from lightning_pfc.losses import Loss, loss_from_config
from lightning_pfc.losses.auxiliary import AuxiliaryLoss

_MADE_FOR = frozenset({"num_classes", "embedding_dim", "rows_on", "row_folder"})
_LIMITS = frozenset({"sample_rate", "chunk_size", "gradient_filter", "memory_budget", "check_finite"})
_AGREED = frozenset({"sampler", "loss", "seed", "auxiliary_losses"})
_WATCHED = _MADE_FOR | _LIMITS | _AGREED


class ChangedOptions(nn.Module):
    """Looks at options that are set once the head is complete.

    Attributes:
        agreed_options: what must be the same on every rank; empty until the head is complete.
    """

    agreed_options = AgreedOptions({}, 0)

    def _settle_options(self) -> None:
        """From now on a change is looked at."""
        self.agreed_options = AgreedOptions.of(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _WATCHED or not self.agreed_options.code:
            super().__setattr__(name, as_plain(name, value))
            return
        super().__setattr__(name, self._changed(name, value))
        self.agreed_options = AgreedOptions.of(self)
        if name in ("sample_rate", "sampler"):
            warn_of_idle_sampler(cast(Any, self).sampler, cast(Any, self).sample_rate)

    def _changed(self, name: str, value: Any) -> Any:
        """What an option becomes.

        Raises:
            ValueError, TypeError: naming it, its value and the way out.
        """
        head = cast(Any, self)
        if name in _MADE_FOR:
            return _as_made(head, name, value)
        if name in _LIMITS:
            now = {each: getattr(head, each) for each in _LIMITS} | {name: value}
            check_options(head.embedding_dim, head.num_classes, precision=head.precision, **now)
            return as_plain(name, value)
        if name == "seed":
            return as_seed(value)
        if name == "auxiliary_losses":
            return _changed_auxiliary(head, value)
        return _changed_sampler(head, value) if name == "sampler" else _changed_loss(head, value)


def _as_made(head: Any, name: str, value: Any) -> Any:
    made = getattr(head, name)
    if (Path(value) if name == "row_folder" and value is not None else value) != made:
        raise ValueError(f"head.{name}={value}: this head was made for {made}; make another with {name}={value}.")
    return made


def _changed_sampler(head: Any, value: Any) -> Sampler:
    sampler = sampler_from_config(value)
    check_weights(sampler, head.loss)
    _check_kept(head, "sampler", sampler, _kept_by_sampler(sampler, head))
    head._sampler_cache.clear()
    return sampler


def _changed_loss(head: Any, value: Any) -> Loss:
    loss = loss_from_config(value)
    check_weights(head.sampler, loss)
    if loss.num_centers != head.loss.num_centers or loss.has_bias != head.loss.has_bias:
        raise ValueError(f"head.loss={loss} has other centers or biases than {head.loss}; make another head.")
    _check_kept(head, "loss", loss, _kept_by_loss(loss, head))
    check_memory((loss, *head.auxiliary_losses), head.embedding_dim)
    return loss


def _changed_auxiliary(head: Any, value: Any) -> tuple[AuxiliaryLoss, ...]:
    losses = as_auxiliary_losses(value)
    remembered = {MEMORY_PREFIX + name for part in losses for name in part.class_buffers(head.embedding_dim)}
    _check_kept(head, "auxiliary_losses", list(losses), remembered)
    check_memory((head.loss, *losses), head.embedding_dim)
    return losses


def check_memory(parts: Iterable[Loss | AuxiliaryLoss], embedding_dim: int) -> None:
    """Raise for two losses of a head that would remember under one name."""
    seen: set[str] = set()
    for part in parts:
        for name in part.class_buffers(embedding_dim):
            if name in seen:
                raise ValueError(f"two of the losses remember {name!r} of every class; leave one out: {part}.")
            seen.add(name)


def _kept_by_sampler(sampler: Sampler, head: Any) -> set[str]:
    single = {SAMPLER_PREFIX + name for name in sampler.initial_state(head.num_classes, head.embedding_dim)}
    return single | {SAMPLED_PREFIX + name for name in sampler.row_state(head.embedding_dim)}


def _kept_by_loss(loss: Loss, head: Any) -> set[str]:
    single = (*loss.initial_state(head.num_classes), *loss.initial_parameters(head.num_classes))
    remembered = loss.class_buffers(head.embedding_dim)
    return {LOSS_PREFIX + name for name in single} | {MEMORY_PREFIX + name for name in remembered}


def _check_kept(head: Any, name: str, value: Any, kept: set[str]) -> None:
    missing = sorted(each for each in kept if not hasattr(head, each))
    if missing:
        raise ValueError(
            f"head.{name}={value} keeps {', '.join(missing)}, which this head was not made with; make another with it, "
            f"or leave {name} as it is."
        )
