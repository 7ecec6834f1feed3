"""Before a run: what memory, traffic and time it will take, what fits, and what to choose."""

from lightning_pfc.planning.advice import Advice, advise, largest_classes
from lightning_pfc.planning.machine import MACHINES, Machine, this_machine
from lightning_pfc.planning.memory import Memory, head_memory
from lightning_pfc.planning.setup import Setup
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
    "largest_classes",
    "this_machine",
]
