"""The names by which a Trainer is asked for the strategy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

NAMES = {"pfc": "popen", "pfc_spawn": "spawn", "pfc_notebook": "fork"}
"""Names of the strategy, with how each starts its processes."""


def add_names(registry: Any, make: Callable[..., Any]) -> None:
    """Add the names to a registry of Lightning that does not have them, or has them of a function that makes way."""
    for name, start_method in NAMES.items():
        if name not in registry or getattr(registry[name]["strategy"], "makes_way", False):
            text = f"DDP with sharded PartialFC heads, `start_method` '{start_method}'"
            registry.register(name, make, description=text, override=True, start_method=start_method)
