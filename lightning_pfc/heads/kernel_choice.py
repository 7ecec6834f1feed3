"""Whether a head's small operations are kernels: asked for with a word, settled once, kept in its checkpoint."""

from __future__ import annotations

import functools
import operator

import torch

from lightning_pfc.distributed.agreement import Agreement
from lightning_pfc.kernels.choice import NOT_CHOSEN, NUMBERED, WORDS, Kernels, choose

_ALL = (1 << len(NUMBERED)) - 1


class KernelChoice:
    """The kernels of one head.

    Args:
        word: ``auto``, ``torch`` or ``triton``.

    Attributes:
        word: the same.
        settled: the operations that run as kernels; None before the first :meth:`settle` on a GPU.

    Raises:
        ValueError: for another word.
    """

    def __init__(self, word: str) -> None:
        if word not in WORDS:
            raise ValueError(f"kernels={word!r} is unknown; use one of {', '.join(WORDS)}.")
        self.word = word
        self.settled: Kernels | None = None
        self._kept: Kernels | None = None

    @property
    def code(self) -> int:
        """What a checkpoint keeps; see :attr:`lightning_pfc.kernels.choice.Kernels.code`. -1: nothing was chosen."""
        known = self.settled or self._kept
        return NOT_CHOSEN if known is None else known.code

    def load(self, code: int) -> None:
        """Go on with what a checkpoint kept, as far as it can be had; the next :meth:`settle` sees to it."""
        self._kept, self.settled = Kernels.of_code(code), None

    def settle(self, device: torch.device, agreement: Agreement | None = None) -> Kernels | None:
        """The operations that run as kernels; None where there is nothing to choose: ``auto`` off a GPU.

        The first time on a GPU every kernel is compared with plain torch there, and what one rank leaves out is left
        out by all: one exchange on the CPU, to be reached by every rank.

        Args:
            device: where the head computes.
            agreement: the ranks; None for this one alone.

        Raises:
            ValueError: on every rank, for ``triton`` on a device where it cannot run.
        """
        if self.settled is None and (self.word != "auto" or device.type == "cuda"):
            self.settled = self._agree(device, agreement or Agreement())
        return self.settled

    def _agree(self, device: torch.device, agreement: Agreement) -> Kernels:
        if self.word == "torch":
            return Kernels()
        found, error = Kernels(), None
        try:
            found = choose(self.word, device, self._kept)
        except ValueError as failure:
            error = failure
        said = [
            numbers[:2] for numbers in agreement.exchange("choice of kernels", [found.code & _ALL, found.chip], error)
        ]
        common = Kernels.of_code(functools.reduce(operator.and_, (mask for mask, _ in said)))
        assert common is not None
        return Kernels(common.names, min(chip for _, chip in said))

    def describe(self, device: torch.device) -> str:
        """What runs where, in a few words."""
        return str(self.settled or choose("auto", device))
