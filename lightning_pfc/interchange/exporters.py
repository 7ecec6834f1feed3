"""The centers of a checkpoint as other projects keep them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lightning_pfc.checkpoint.reader import MODEL, CheckpointReader
from lightning_pfc.interchange.mxnet_arrays import write_mxnet
from lightning_pfc.interchange.writing import made_whole


def _centers(source: CheckpointReader) -> str:
    """The key of the one head's centers."""
    heads = [key for key, entry in source.tensors.items() if _is_centers(key) and entry.by_class]
    if len(heads) != 1:
        names = ", ".join(key.removeprefix(MODEL) for key in heads) or "none"
        raise ValueError(f"{source.path} should have the centers of one head; it has {names}.")
    return heads[0]


def _is_centers(key: str) -> bool:
    return key.startswith(MODEL) and key.rpartition(".")[2] == "weight"


def _rows(source: CheckpointReader, key: str, start: int, stop: int) -> Tensor:
    return torch.cat(list(source.read(key, start, stop)))


def insightface(checkpoint: Path, target: Path, ranks: int) -> str:
    """A folder with ``rank_N_softmax_weight.pt`` for each of ``ranks`` ranks, and ``backbone.pth``."""
    source = CheckpointReader(checkpoint)
    key = _centers(source)
    total = source.tensors[key].shape[0]
    if not 1 <= ranks <= total:
        raise ValueError(f"--ranks={ranks} must lie in [1, {total}], the number of classes.")
    backbone = {name.partition("backbone.")[2]: tensor for name, tensor in _weights(source) if "backbone." in name}
    with made_whole(target) as made:
        made.mkdir()
        for rank in range(ranks):
            start = total // ranks * rank + min(rank, total % ranks)
            rows = total // ranks + (rank < total % ranks)
            torch.save(_rows(source, key, start, start + rows), made / f"rank_{rank}_softmax_weight.pt")
        if backbone:
            torch.save(backbone, made / "backbone.pth")
    return f"{total} classes for {ranks} rank{'s' if ranks > 1 else ''}, {len(backbone)} tensors of the backbone"


def _weights(source: CheckpointReader) -> list[tuple[str, Tensor]]:
    large = [(key.removeprefix(MODEL), source.whole(key)) for key in source.tensors if _is_backbone(key)]
    small = [(name, value) for name, value in source.rest["state_dict"].items() if isinstance(value, Tensor)]
    return [*large, *small]


def _is_backbone(key: str) -> bool:
    return key.startswith(MODEL + "backbone.")


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
    source = CheckpointReader(checkpoint)
    return source.whole(_centers(source)).clone()


def _in_equal_parts(checkpoint: Path, target: Path, ranks: int, write: Callable[[Path, int, Tensor], None]) -> str:
    """A folder with a file for each rank, all with as many rows: the last ones may be zeros, of no class."""
    source = CheckpointReader(checkpoint)
    key = _centers(source)
    total = source.tensors[key].shape[0]
    if not 1 <= ranks <= total:
        raise ValueError(f"--ranks={ranks} must lie in [1, {total}], the number of classes.")
    each = -(-total // ranks)
    with made_whole(target) as made:
        made.mkdir()
        for rank in range(ranks):
            start, stop = min(rank * each, total), min((rank + 1) * each, total)
            rows = _rows(source, key, start, stop) if start < stop else _rows(source, key, 0, 1)[:0]
            write(made, rank, torch.nn.functional.pad(rows, (0, 0, 0, each - len(rows))))
    left = each * ranks - total
    return f"{total} classes for {ranks} rank{'s' if ranks > 1 else ''}" + (
        f", rows of no class: {left}" if left else ""
    )


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
    "cvlface": cvlface,
    "linear": linear,
    "mxnet": mxnet,
    "pml": pml,
}
"""How to write for a project, by its name; each returns what to say of it."""
