"""``head.init=class_means`` as a callback of any Trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from lightning_pfc.distributed import Comm
from lightning_pfc.heads.partial_fc import PartialFC, iter_heads
from lightning_pfc.ignored import warn_ignored
from lightning_pfc.strategies import PartialFCStrategy
from lightning_pfc.strategies.whose import names_of_data
from lightning_pfc.transfer.callback import InitFrom
from lightning_pfc.transfer.class_means import Filled, fill_with_class_means

_WORD = "head.init=class_means"


class ClassMeans(Callback):
    """Begins the centers of heads that were made with ``init="class_means"`` with means of embeddings.

    One pass over the training pictures, each once, as validation sees them; no option of the Trainer changes that. The
    network is what it is when ``fit`` begins: pretrained, or of an :class:`~lightning_pfc.transfer.InitFrom` before
    this in the list. Centers that came from there by the names of their classes stay. Must come before callbacks that
    copy the model.

    Attributes:
        done: what has become of the rows, by head; empty before ``fit``.
        goes_on_from: the checkpoint that this run goes on from; then nothing is done. None, the default: it begins.
    """

    def __init__(self) -> None:
        self.done: dict[str, Filled] = {}
        self.goes_on_from: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Fill the heads.

        Raises:
            ValueError: the data module does not have its training pictures one by one.
        """
        if stage != "fit":
            return
        heads = {name: head for name, head in iter_heads(pl_module) if head.initial_centers.awaits_means}
        if self.goes_on_from is not None:
            rank_zero_info(f"{_WORD} was for the beginning: this goes on from {self.goes_on_from}.")
            return
        if not heads:
            warn_ignored("ClassMeans()", "no head was made with init='class_means'.")
            return
        report = next((c.report for c in trainer.callbacks if isinstance(c, InitFrom)), None)  # type: ignore[attr-defined]
        known = report.known_rows if report is not None else {}
        strategy: Any = trainer.strategy
        comm = strategy.comm if isinstance(strategy, PartialFCStrategy) else Comm.single()
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "plain_train_dataloader"):
            raise ValueError(
                f"{_WORD} goes over the training pictures one by one, and {type(data).__name__} has no "
                "plain_train_dataloader(), as IdentityDataModule has. Write one, or another head.init."
            )
        for head in heads.values():
            if not head.is_materialized:
                head.attach(comm)
        pl_module.to(strategy.root_device)
        _warn_of_unseen_norms(pl_module)
        self.done = fill_with_class_means(
            pl_module,
            heads,
            _with_bar(data.plain_train_dataloader(), trainer),
            known=known,
            first_classes=_first_classes(heads, data),
            comm=comm,
        )
        for name, filled in self.done.items():
            rank_zero_info(_said(name, filled, names_of_data(trainer, [heads[name]])))


def _first_classes(heads: Mapping[str, PartialFC], data: Any) -> dict[str, int]:
    """The label of each head's first class: 0, or, with a head for each of several data sets, that of its set.

    Raises:
        ValueError: neither fits.
    """
    opened = getattr(data, "data", data)
    total, parts = getattr(data, "num_classes", None), getattr(opened, "parts", ())
    if total is None or all(head.num_classes == total for head in heads.values()):
        return {}
    if [part.num_classes for part in parts] == [head.num_classes for head in heads.values()]:
        return {name: part.first_class for name, part in zip(heads, parts, strict=True)}
    sizes = ", ".join(f"{name} has {head.num_classes}" for name, head in heads.items())
    raise ValueError(f"{_WORD}: the data have {total} classes, and {sizes}. Give every head those of the data.")


def _with_bar(loader: Any, trainer: L.Trainer) -> Iterator[tuple[Tensor, Tensor]]:
    hidden = not trainer.is_global_zero or trainer.progress_bar_callback is None
    for batch in tqdm(loader, desc="class means", unit=" batches", disable=True if hidden else None):
        yield batch[0], batch[1]


def _warn_of_unseen_norms(module: nn.Module) -> None:
    unseen = [
        name
        for name, child in module.named_modules()
        if isinstance(child, _BatchNorm) and child.num_batches_tracked is not None and not child.num_batches_tracked
    ]
    if unseen:
        rank_zero_info(
            f"{_WORD}: {unseen[0]}{f' and {len(unseen) - 1} more' if len(unseen) > 1 else ''} has seen no picture, so "
            "that means are of embeddings that are not yet those of training. backbone.neck=none or linear has no such "
            "layer; init_from= brings its statistics."
        )


def _said(name: str, filled: Filled, names: Any) -> str:
    said = f"{name}: {filled.filled} centers are means of the embeddings of their pictures"
    if filled.known:
        said += f"; {filled.known} were there already and stay"
    if filled.empty:
        first = filled.first_empty
        which = f"class {first}" if names is None or len(names) <= first else f"{names[first]!r}"
        which += ", ..." if filled.empty > 1 else ""
        said += f"; {filled.empty} have no picture, so their centers are random ({which})"
    return f"{said}."
