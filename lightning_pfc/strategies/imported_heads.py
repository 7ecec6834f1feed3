"""The heads of a module, where there can be one: a Trainer without any imports nothing of this package's heads."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import nn


def imported_heads(module: nn.Module) -> Iterable[tuple[str, Any]]:
    """Every head with its name; none where their module was never imported, so that nobody has one."""
    heads = sys.modules.get("lightning_pfc.heads.partial_fc")
    return heads.iter_heads(module) if heads is not None else ()
