"""Samplers: frozen, validated, keyword-only objects that say which classes take part in a training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_pfc.heads.samplers.base import Drawn, Sampler, Step
from lightning_pfc.heads.samplers.dissection import Dissection
from lightning_pfc.heads.samplers.frequency import Frequency
from lightning_pfc.heads.samplers.recent import Recent
from lightning_pfc.heads.samplers.retrieval import Mixed, Retrieval
from lightning_pfc.heads.samplers.schedule import RateSchedule
from lightning_pfc.heads.samplers.uniform import PositivesOnly, Uniform
from lightning_pfc.named import from_config, subclasses_by_word

__all__ = [
    "Dissection",
    "Drawn",
    "Frequency",
    "Mixed",
    "PositivesOnly",
    "RateSchedule",
    "Recent",
    "Retrieval",
    "Sampler",
    "Step",
    "Uniform",
    "sampler_from_config",
    "sampler_names",
]


def sampler_names() -> list[str]:
    """Every sampler by its class name, subclasses written elsewhere and already imported included."""
    return sorted(cls.__name__ for cls in subclasses_by_word(Sampler).values())


def sampler_from_config(config: str | Mapping[str, Any] | Sampler) -> Sampler:
    """A sampler from its name, or from a mapping with ``name`` and its arguments (what ``Sampler.to_config`` gives).

    Args:
        config: a sampler (returned as it is), a name in any case, with or without underscores, or
            ``{"name": "mixed", "share": 0.5}``.

    Raises:
        ValueError: for an unknown name, saying what exists.
        TypeError: for an argument that the sampler does not have.

    Example:
        >>> sampler_from_config({"name": "positives_only"})
        PositivesOnly(correction=False)
    """
    return from_config(Sampler, config)
