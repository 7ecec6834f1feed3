"""Samplers: frozen, validated, keyword-only objects that say which classes take part in a training step."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from lightning_pfc.heads.samplers.base import Drawn, Sampler, Step
from lightning_pfc.heads.samplers.dissection import Dissection
from lightning_pfc.heads.samplers.frequency import Frequency
from lightning_pfc.heads.samplers.retrieval import Mixed, Retrieval
from lightning_pfc.heads.samplers.schedule import RateSchedule
from lightning_pfc.heads.samplers.uniform import PositivesOnly, Uniform

__all__ = [
    "Dissection",
    "Drawn",
    "Frequency",
    "Mixed",
    "PositivesOnly",
    "RateSchedule",
    "Retrieval",
    "Sampler",
    "Step",
    "Uniform",
    "sampler_from_config",
    "sampler_names",
]


def _registry() -> dict[str, type[Sampler]]:
    found: dict[str, type[Sampler]] = {}
    pending = list(Sampler.__subclasses__())
    while pending:
        cls = pending.pop()
        found[_word(cls.__name__)] = cls
        pending += cls.__subclasses__()
    return found


def _word(name: str) -> str:
    """``PositivesOnly``, ``positives_only`` and ``positivesonly`` are one."""
    return name.lower().replace("_", "")


def sampler_names() -> list[str]:
    """Every sampler by its class name, subclasses written elsewhere and already imported included."""
    return sorted(cls.__name__ for cls in _registry().values())


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
    if isinstance(config, Sampler):
        return config
    arguments = {"name": config} if isinstance(config, str) else dict(config)
    name = str(arguments.pop("name", ""))
    registry = _registry()
    if _word(name) not in registry:
        close = difflib.get_close_matches(_word(name), registry, n=1)
        hint = f" Did you mean {registry[close[0]].__name__}?" if close else ""
        raise ValueError(f"sampler {name!r} does not exist.{hint} There are: {', '.join(sampler_names())}.")
    return registry[_word(name)](**arguments)
