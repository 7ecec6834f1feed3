"""Before a run: what memory, traffic and time it will take, what fits, and what to choose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_pfc.names.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_pfc.planning.advice import Advice, advise, largest_classes
    from lightning_pfc.planning.machine import MACHINES, Machine
    from lightning_pfc.planning.memory import Memory, head_memory, host_memory
    from lightning_pfc.planning.setup import Setup
    from lightning_pfc.planning.timed_machine import this_machine
    from lightning_pfc.planning.timing import head_seconds
    from lightning_pfc.planning.traffic import head_traffic

__all__ = [
    "MACHINES",
    "Advice",
    "Machine",
    "Memory",
    "Setup",
    "advise",
    "head_memory",
    "head_seconds",
    "head_traffic",
    "host_memory",
    "largest_classes",
    "this_machine",
]

# The command lists machines and optimizers without importing torch.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Advice": "lightning_pfc.planning.advice",
        "MACHINES": "lightning_pfc.planning.machine",
        "Machine": "lightning_pfc.planning.machine",
        "Memory": "lightning_pfc.planning.memory",
        "Setup": "lightning_pfc.planning.setup",
        "advise": "lightning_pfc.planning.advice",
        "head_memory": "lightning_pfc.planning.memory",
        "host_memory": "lightning_pfc.planning.memory",
        "head_seconds": "lightning_pfc.planning.timing",
        "head_traffic": "lightning_pfc.planning.traffic",
        "largest_classes": "lightning_pfc.planning.advice",
        "this_machine": "lightning_pfc.planning.timed_machine",
    },
)
