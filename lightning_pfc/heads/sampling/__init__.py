"""Samplers: frozen, validated, keyword-only objects that say which classes take part in a training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_pfc.heads.sampling.base import Drawn, Sampler
from lightning_pfc.heads.sampling.context import SamplingContext
from lightning_pfc.heads.sampling.dissection import Dissection
from lightning_pfc.heads.sampling.frequency import Frequency
from lightning_pfc.heads.sampling.nearest import Mixed, Retrieval
from lightning_pfc.heads.sampling.rate_schedule import RateSchedule
from lightning_pfc.heads.sampling.recent import Recent
from lightning_pfc.heads.sampling.sampled_classes import SampledClasses, all_classes
from lightning_pfc.heads.sampling.uniform import PositivesOnly, Uniform
from lightning_pfc.heads.sampling.uniform_draw import capacity, class_budget, sample_uniform
from lightning_pfc.names.renamed import renamed_names
from lightning_pfc.registry import from_config, registered_subclasses

__all__ = [
    "Dissection",
    "Drawn",
    "Frequency",
    "Mixed",
    "PositivesOnly",
    "RateSchedule",
    "Recent",
    "Retrieval",
    "SampledClasses",
    "Sampler",
    "SamplingContext",
    "Uniform",
    "all_classes",
    "capacity",
    "class_budget",
    "sample_uniform",
    "sampler_from_config",
    "sampler_names",
]


def sampler_names() -> list[str]:
    """Every sampler by its class name, subclasses written elsewhere and already imported included."""
    return sorted(cls.__name__ for cls in registered_subclasses(Sampler).values())


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


_CLASSES = "lightning_pfc.heads.sampling.sampled_classes"
__getattr__ = renamed_names(
    __name__,
    {
        "Sample": f"{_CLASSES}:SampledClasses",
        "Step": "lightning_pfc.heads.sampling.context:SamplingContext",
        **{name: f"{_CLASSES}:{name}" for name in ("columns_of", "distinct", "is_among")},
    },
)
