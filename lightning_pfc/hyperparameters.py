"""Arguments of a module as they are given, and as names and numbers that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.heads.sampling import Sampler
from lightning_pfc.losses import Loss
from lightning_pfc.names.renamed import warn_renamed

NOT_PLAIN = object()
"""In place of a value that no checkpoint keeps."""


def head_arguments(
    head: Mapping[str, Any] | None, sample_rate: float | None, seed: int | None, head_options: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The head's arguments from one mapping, from those that have a short form and from the mapping's earlier name.

    Args:
        head: by name.
        sample_rate: the same in short; None for what is in ``head``, or the default.
        seed: as ``sample_rate``.
        head_options: the earlier word for ``head``.

    Raises:
        TypeError: where ``head`` is no mapping.
    """
    if head is not None and not isinstance(head, Mapping):
        raise TypeError(f"head={head!r} must be a mapping of PartialFC's arguments, such as {{'sample_rate': 0.1}}.")
    if head_options:
        warn_renamed("PartialFCModule(head_options=)", "head=", stacklevel=4)
    options = {"sample_rate": 1.0, "seed": 0, **(head or {}), **(head_options or {})}
    options.pop("match", None)  # of configs: what the strategy does with a checkpoint's rows
    for name, value in (("sample_rate", sample_rate), ("seed", seed)):
        if value is None:
            continue
        if name in (head or {}) and options[name] != value:
            rank_zero_warn(f"{name}={value} is taken, and not head={{{name!r}: {options[name]}}}.")
        options[name] = value
    return options


def to_plain(value: Any) -> Any:
    """``value`` as names, numbers, lists and mappings of those, losses and samplers as mappings; or the marker."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Loss | Sampler | Preprocessing):
        return value.to_config()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        items = {str(key): to_plain(item) for key, item in value.items()}
        return NOT_PLAIN if NOT_PLAIN in items.values() else items
    if isinstance(value, Sequence):
        entries = [to_plain(item) for item in value]
        return NOT_PLAIN if any(entry is NOT_PLAIN for entry in entries) else entries
    return NOT_PLAIN
