"""Options of a head that are set after it was made: followed from the next step on, or refused by name.

A head reads its options in every step, so whoever wants another rate later simply sets it. What cannot be followed is
what tensors were made for: other sizes, and a loss or sampler that keeps something the head does not have.
"""

from __future__ import annotations

import zlib
from typing import Any, cast

from torch import nn

from lightning_pfc.heads.options import check_options, check_weights
from lightning_pfc.heads.sampling import Sampler, sampler_from_config
from lightning_pfc.heads.sharded_centers import LOSS_PREFIX, MEMORY_PREFIX, SAMPLED_PREFIX, SAMPLER_PREFIX
from lightning_pfc.losses import Loss, loss_from_config

_SIZES = ("num_classes", "embedding_dim")
_NUMBERS = ("sample_rate", "chunk_size", "gradient_filter", "memory_budget")
_AGREED = ("sample_rate", "sampler", "loss")


class ChangedOptions(nn.Module):
    """Looks at options that are set once the head is complete.

    Attributes:
        options_code: a number that tells heads apart whose ranks would draw or compute something else.
    """

    options_code = 0

    def _settle_options(self) -> None:
        """From now on a change is looked at."""
        self.options_code = self._code()

    def __setattr__(self, name: str, value: Any) -> None:
        if not self.__dict__.get("options_code") or name not in (*_SIZES, *_NUMBERS, *_AGREED):
            super().__setattr__(name, value)
            return
        super().__setattr__(name, self._changed(name, value))
        self.options_code = self._code()

    def _code(self) -> int:
        said = " ".join(f"{name}={getattr(self, name)}" for name in _AGREED)
        return 1 + zlib.crc32(said.encode())

    def _changed(self, name: str, value: Any) -> Any:
        """What an option becomes.

        Raises:
            ValueError, TypeError: naming it, its value and the way out.
        """
        head = cast(Any, self)
        if name in _SIZES:
            if value != getattr(head, name):
                raise ValueError(
                    f"head.{name}={value}: this head was made for {getattr(head, name)}; make another with "
                    f"{name}={value}."
                )
        elif name in _NUMBERS:
            if name in ("sample_rate", "gradient_filter") and (
                isinstance(value, bool) or not isinstance(value, int | float)
            ):
                raise TypeError(f"head.{name}={value!r} must be a number.")
            now = {each: getattr(head, each) for each in _NUMBERS} | {name: value}
            check_options(head.embedding_dim, head.num_classes, precision=head.precision, **now)
        elif name == "sampler":
            value = sampler_from_config(value)
            check_weights(value, head.loss)
            _check_kept(head, name, value, _kept_by_sampler(value, head))
            head._sampler_cache.clear()
        else:
            value = loss_from_config(value)
            check_weights(head.sampler, value)
            if value.num_centers != head.loss.num_centers or value.has_bias != head.loss.has_bias:
                raise ValueError(f"head.loss={value} has other centers or biases than {head.loss}; make another head.")
            _check_kept(head, name, value, _kept_by_loss(value, head))
        return value


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
