"""Lightning adds the callbacks of entry points to the user's own list: one given to two Trainers has them twice."""

from __future__ import annotations

from lightning.pytorch import Callback, Trainer


def acts(callback: Callback, trainer: Trainer) -> bool:
    """Whether a callback that every Trainer gets is the first of its kind in this one; the others rest."""
    every: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next(each for each in every if type(each) is type(callback)) is callback
