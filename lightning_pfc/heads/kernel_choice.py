"""Whether a head's small operations are kernels: asked for with a word, settled once."""

from __future__ import annotations

import torch

from lightning_pfc.kernels.choice import WORDS, Kernels, choose


class KernelChoice:
    """The kernels of one head.

    Args:
        word: ``auto``, ``torch`` or ``triton``.

    Raises:
        ValueError: for another word.
    """

    def __init__(self, word: str) -> None:
        if word not in WORDS:
            raise ValueError(f"kernels={word!r} is unknown; use one of {', '.join(WORDS)}.")
        self.word = word
        self._settled: Kernels | None = None

    def settle(self, device: torch.device) -> Kernels | None:
        """The operations that run as kernels; None for ``auto``: each is tried where it is first used.

        Raises:
            ValueError: for ``triton`` on a device where it cannot run.
        """
        if self.word != "auto" and self._settled is None:
            self._settled = choose(self.word, device)
        return self._settled

    def describe(self, device: torch.device) -> str:
        """What runs where, in a few words; tries all kernels on a GPU."""
        return str(self.settle(device) or choose("auto", device))
