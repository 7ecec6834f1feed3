"""Ranks that were given different data loaders are told so, where they would wait for each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from lightning_pfc.strategies.once import acts
from lightning_pfc.strategies.pfc import PartialFCStrategy


class SameLoaders(Callback):
    """One message (1 KiB, on the CPU) whenever data loaders are made, and one at the start of a fit.

    Lightning sums up the length of each loader over the ranks: one that a rank does not have, or that is empty there,
    leaves the others in that sum. Every Trainer has this callback (:mod:`lightning_pfc.strategies.guard`); it acts
    under ``strategy="pfc"`` on several ranks.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Have the ranks compare what their loaders are, once they are made.

        Raises:
            RuntimeError: on every rank, if some of them validate within a fit and others do not.
        """
        strategy = trainer.strategy
        if not isinstance(strategy, PartialFCStrategy) or strategy.world_size == 1 or not acts(self, trainer):
            return
        if stage == "fit":
            said = strategy.comm.agreement.exchange("SameLoaders.setup", [int(trainer.enable_validation)])
            _check_alike("validation", "runs", [("none", "one")[does] for does, *_ in said], "validation data")
        for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop):
            source: Any = loop._data_source
            may_be_empty = any(
                each is not None and each.allow_zero_length_dataloader_with_multiple_devices
                for each in (pl_module, trainer.datamodule)  # type: ignore[attr-defined]
            )
            source.dataloader = _compared(type(source).dataloader.__get__(source), source.name, strategy, may_be_empty)


def _compared(made: Callable[[], Any], name: str, strategy: PartialFCStrategy, may_be_empty: bool) -> Callable[[], Any]:
    """``made``, with a message behind it."""

    def dataloader() -> Any:
        agreement = strategy.comm.agreement
        try:
            loaders = made()
        except BaseException as error:
            agreement.exchange(name, error=error)
            raise
        flat = (loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders)).flattened
        empty = [] if may_be_empty else [number for number, each in enumerate(flat) if sized_len(each) == 0]
        said = agreement.exchange(name, [len(flat), empty[0] if empty else -1])
        _check_alike(name, "has", [str(count) for count, *_ in said], "number of data loaders")
        _check_filled(name, [first for _, first, *_ in said])
        return loaders

    return dataloader


def _check_alike(name: str, has: str, said: Sequence[str], what: str) -> None:
    if len(set(said)) > 1:
        each = ", ".join(f"rank {rank} {has} {text}" for rank, text in enumerate(said))
        raise RuntimeError(
            f"{name}: {each}; the ranks would wait for each other for ever. Give every rank the same {what}."
        )


def _check_filled(name: str, first_empty: Sequence[int]) -> None:
    ranks = [rank for rank, number in enumerate(first_empty) if number >= 0]
    if ranks and len(ranks) < len(first_empty):
        raise RuntimeError(
            f"{name}: loader {first_empty[ranks[0]]} of rank {', '.join(map(str, ranks))} has no batch, and those of "
            "the other ranks have some: they would wait for each other for ever. Give every rank at least one batch."
        )
