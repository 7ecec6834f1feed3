"""Options of a head that must be the same on every rank: what is compared in each step, and what is said where not."""

from __future__ import annotations

import zlib
from dataclasses import fields
from typing import Any, NamedTuple

import torch.distributed as dist
from typing_extensions import Self

from lightning_pfc.distributed.comm import Comm
from lightning_pfc.registry import Configurable

_NAMES = ("sample_rate", "sampler", "loss", "seed", "auxiliary_losses", "check_finite")


class AgreedOptions(NamedTuple):
    """The options of one head, with which ranks would draw or compute something else.

    Attributes:
        texts: by name, the same in every process for the same options.
        code: a number for all of them, which travels with each step.
    """

    texts: dict[str, str]
    code: int

    @classmethod
    def of(cls, head: Any) -> Self:
        """As they are set now."""
        texts = {name: plain_text(getattr(head, name)) for name in _NAMES}
        return cls(texts, 1 + zlib.crc32(repr(texts).encode()))

    def tell_apart(self, comm: Comm) -> ValueError:
        """The error for ranks whose codes differ, naming options and values; a collective on the CPU."""
        gathered: list[dict[str, str]] = [{} for _ in range(comm.world_size)]
        dist.all_gather_object(gathered, self.texts, group=comm.agreement.group)
        said = []
        for name in _NAMES:
            ranks: dict[str, list[str]] = {}
            for rank, texts in enumerate(gathered):
                ranks.setdefault(texts[name], []).append(str(rank))
            if len(ranks) > 1:
                values = ", ".join(f"{text} on rank {', '.join(those)}" for text, those in ranks.items())
                said.append(f"head.{name} is {values}")
        return ValueError(f"{'; '.join(said)}; it must be the same on every rank: set it on all of them.")


def plain_text(value: Any) -> str:
    """Numbers, texts, None, classes with such fields; of anything else the kind, as its repr may hold an address."""
    if value is None or isinstance(value, bool | str):
        return repr(value)
    if isinstance(value, int | float):  # numpy's as Python's
        return repr(float(value) if isinstance(value, float) else int(value))
    if isinstance(value, Configurable):
        parts = [f"{field.name}={plain_text(getattr(value, field.name))}" for field in fields(value) if field.repr]
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(plain_text, value))}]"
    return f"<{type(value).__name__}>"
