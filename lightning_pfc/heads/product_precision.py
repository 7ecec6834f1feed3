"""In what precision a head's products are computed: asked for with a word, settled once, kept in its checkpoint."""

from __future__ import annotations

import warnings
from typing import get_args

import torch

from lightning_pfc.heads.softmax.precision import check_precision, resolve_precision
from lightning_pfc.matmul.in_precision import Precision

_CODES: tuple[Precision, ...] = get_args(Precision)
NOT_SETTLED = -1


class ProductPrecision:
    """The precision of one head.

    Args:
        word: what the user asked for.

    Attributes:
        word: the same; after loading a checkpoint with ``auto``, what it was trained with still counts.
        settled: what products are computed in; None before the head is set up.
    """

    def __init__(self, word: str) -> None:
        self.word = check_precision(word)
        self.settled: Precision | None = None if self.word == "auto" else self.word

    @property
    def code(self) -> int:
        """What a checkpoint keeps: an index, or -1 where nothing is settled yet."""
        return NOT_SETTLED if self.settled is None else _CODES.index(self.settled)

    def settle(self, device: torch.device, trainer_precision: str | None = None) -> Precision:
        """What products are computed in; found the first time, the same ever after.

        Args:
            device: where the head computes.
            trainer_precision: the Trainer's, in Lightning's words; None in a plain script.
        """
        if self.settled is None:
            self.settled = resolve_precision(self.word, device, trainer_precision)
        return self.settled

    def load(self, code: int, *, tell: bool) -> None:
        """Go on with what a checkpoint kept, unless the user asked for something else by its word.

        Args:
            code: from :attr:`code`; one that is unknown, or not settled, changes nothing.
            tell: whether to warn where the user's word differs from the checkpoint's.
        """
        if not 0 <= code < len(_CODES):
            return
        if self.word == "auto":
            self.settled = _CODES[code]
        elif self.settled != _CODES[code] and tell:
            warnings.warn(
                f"the head was trained with precision={_CODES[code]!r} and goes on with {self.settled!r}, which was "
                "asked for; 'auto' goes on as before.",
                stacklevel=2,
            )
