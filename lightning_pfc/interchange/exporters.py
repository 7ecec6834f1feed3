"""The centers of a checkpoint as other projects keep them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from lightning_pfc.interchange.exported import Exported
from lightning_pfc.interchange.exported_cvlface import cvlface
from lightning_pfc.interchange.exported_networks import adaface, facenet_pytorch, plsc
from lightning_pfc.interchange.files import describe
from lightning_pfc.interchange.mxnet_files import write_centers, write_network
from lightning_pfc.interchange.ranges import even_ranges
from lightning_pfc.interchange.vit_names import is_face_vit
from lightning_pfc.interchange.writing import made_whole, save_tensors


def insightface(checkpoint: Path, target: Path, ranks: int) -> str:
    """A folder with ``rank_N_softmax_weight.pt`` for each of ``ranks`` ranks, and ``backbone.pth``."""
    source = Exported(checkpoint)
    ranges = even_ranges(source.num_classes, ranks)
    with made_whole(target) as made:
        made.mkdir()
        for rank, (start, stop) in enumerate(ranges):
            save_tensors(source.rows(start, stop).clone(), made / f"rank_{rank}_softmax_weight.pt")
        if source.backbone:
            save_tensors(source.backbone, made / "backbone.pth")
    return source.say(_for_ranks(ranks), f"{len(source.backbone)} tensors of the backbone")


def _for_ranks(ranks: int) -> str:
    return f"for {ranks} rank{'s' if ranks > 1 else ''}"


def lvface(checkpoint: Path, target: Path, ranks: int) -> str:
    """The state dict of a FaceViT, as LVFace publishes it.

    Raises:
        ValueError: the backbone is none.
    """
    source = Exported(checkpoint)
    if not is_face_vit(source.backbone):
        raise ValueError(
            f"{checkpoint} should have a FaceViT as backbone, and has {describe(source.backbone)}. "
            "Take --to insightface."
        )
    with made_whole(target) as made:
        save_tensors(source.backbone, made)
    return f"{len(source.backbone)} tensors of the backbone, left out: the head ({source.num_classes} classes)"


def linear(checkpoint: Path, target: Path, ranks: int) -> str:
    """A state dict for ``nn.Linear(dimensions, classes, bias=False)``."""
    weight = _whole(checkpoint)
    with made_whole(target) as made:
        save_tensors({"weight": weight}, made)
    return f"{weight.shape[0]} classes"


def pml(checkpoint: Path, target: Path, ranks: int) -> str:
    """A state dict for a classification loss of pytorch-metric-learning."""
    weight = _whole(checkpoint)
    with made_whole(target) as made:
        save_tensors({"W": weight.t().contiguous()}, made)
    return f"{weight.shape[0]} classes"


def _whole(checkpoint: Path) -> Tensor:
    source = Exported(checkpoint)
    return source.rows(0, source.num_classes).clone()


def mxnet(checkpoint: Path, target: Path, ranks: int) -> str:
    """A folder with ``N_centers.param`` for each of ``ranks`` ranks, and an IResNet as ``model-0000.params``.

    Raises:
        ValueError: the backbone is an IResNet that theirs cannot compute.
    """
    source = Exported(checkpoint)
    with made_whole(target) as made:
        made.mkdir()
        said = [write_centers(source, made, ranks), write_network(source, made, str(checkpoint))]
    return ", ".join(each for each in said if each)


EXPORTERS: dict[str, Callable[[Path, Path, int], str]] = {
    "insightface": insightface,
    "adaface": adaface,
    "cvlface": cvlface,
    "facenet-pytorch": facenet_pytorch,
    "linear": linear,
    "lvface": lvface,
    "mxnet": mxnet,
    "plsc": plsc,
    "pml": pml,
}
"""How to write for a project, by its name; each returns what to say of it."""
