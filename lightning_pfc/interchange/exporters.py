"""The centers of a checkpoint as other projects keep them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lightning_pfc.interchange.exported import Exported
from lightning_pfc.interchange.exported_networks import adaface, facenet_pytorch, plsc
from lightning_pfc.interchange.mxnet_arrays import write_mxnet
from lightning_pfc.interchange.ranges import even_ranges
from lightning_pfc.interchange.writing import made_whole


def insightface(checkpoint: Path, target: Path, ranks: int) -> str:
    """A folder with ``rank_N_softmax_weight.pt`` for each of ``ranks`` ranks, and ``backbone.pth``."""
    source = Exported(checkpoint)
    ranges = even_ranges(source.num_classes, ranks)
    with made_whole(target) as made:
        made.mkdir()
        for rank, (start, stop) in enumerate(ranges):
            torch.save(source.rows(start, stop).clone(), made / f"rank_{rank}_softmax_weight.pt")
        if source.backbone:
            torch.save(source.backbone, made / "backbone.pth")
    return source.say(_for_ranks(ranks), f"{len(source.backbone)} tensors of the backbone")


def _for_ranks(ranks: int) -> str:
    return f"for {ranks} rank{'s' if ranks > 1 else ''}"


def linear(checkpoint: Path, target: Path, ranks: int) -> str:
    """A state dict for ``nn.Linear(dimensions, classes, bias=False)``."""
    weight = _whole(checkpoint)
    with made_whole(target) as made:
        torch.save({"weight": weight}, made)
    return f"{weight.shape[0]} classes"


def pml(checkpoint: Path, target: Path, ranks: int) -> str:
    """A state dict for a classification loss of pytorch-metric-learning."""
    weight = _whole(checkpoint)
    with made_whole(target) as made:
        torch.save({"W": weight.t().contiguous()}, made)
    return f"{weight.shape[0]} classes"


def _whole(checkpoint: Path) -> Tensor:
    source = Exported(checkpoint)
    return source.rows(0, source.num_classes).clone()


def _in_equal_parts(checkpoint: Path, target: Path, ranks: int, write: Callable[[Path, int, Tensor], None]) -> str:
    """A folder with a file for each rank, all with as many rows: the last ones may be zeros, of no class."""
    source = Exported(checkpoint)
    total = source.num_classes
    even_ranges(total, ranks)  # sees that there are as many classes
    each = -(-total // ranks)
    with made_whole(target) as made:
        made.mkdir()
        for rank in range(ranks):
            start, stop = min(rank * each, total), min((rank + 1) * each, total)
            rows = source.rows(start, stop) if start < stop else source.rows(0, 1)[:0]
            write(made, rank, torch.nn.functional.pad(rows, (0, 0, 0, each - len(rows))))
    left = each * ranks - total
    return f"{total} classes {_for_ranks(ranks)}" + (f", rows of no class: {left}" if left else "")


def mxnet(checkpoint: Path, target: Path, ranks: int) -> str:
    """A folder with ``N_centers.param`` for each of ``ranks`` ranks."""

    def write(folder: Path, rank: int, rows: Tensor) -> None:
        write_mxnet(folder / f"{rank}_centers.param", {"": rows}, names=False)

    return _in_equal_parts(checkpoint, target, ranks, write)


def cvlface(checkpoint: Path, target: Path, ranks: int) -> str:
    """A folder with ``classifier_rankN.pt`` for each of ``ranks`` ranks."""

    def write(folder: Path, rank: int, rows: Tensor) -> None:
        torch.save({"partial_fc.weight": rows}, folder / f"classifier_rank{rank}.pt")

    return _in_equal_parts(checkpoint, target, ranks, write)


EXPORTERS: dict[str, Callable[[Path, Path, int], str]] = {
    "insightface": insightface,
    "adaface": adaface,
    "cvlface": cvlface,
    "facenet-pytorch": facenet_pytorch,
    "linear": linear,
    "mxnet": mxnet,
    "plsc": plsc,
    "pml": pml,
}
"""How to write for a project, by its name; each returns what to say of it."""
