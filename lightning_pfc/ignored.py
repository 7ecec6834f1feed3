"""Options that have no effect where they stand: said once, never passed over in silence."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable
from typing import Any


class IgnoredOptionWarning(UserWarning):
    """An option was given that changes nothing in this combination."""


def warn_ignored(option: str, because: str, stacklevel: int = 3) -> None:
    """Say that an option does nothing.

    Args:
        option: as the user writes it, with its value: ``"missed_steps='decay'"``.
        because: why, and what would give it an effect: ``"every center moves in every step; ..."``.
        stacklevel: of the warning, see :func:`warnings.warn`.
    """
    warnings.warn(f"{option} has no effect: {because}", IgnoredOptionWarning, stacklevel)


def warn_idle_fields(options: Any, names: Iterable[str], because: str) -> None:
    """Say of some fields of a dataclass object that they do nothing, of those that differ from their defaults.

    Args:
        options: the object; to be called in its ``__post_init__``.
        names: the fields that do nothing in this combination.
        because: as in :func:`warn_ignored`.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for name in names:
        value = getattr(options, name)
        if value != defaults[name]:
            warn_ignored(f"{name}={value!r}", because, stacklevel=5)
