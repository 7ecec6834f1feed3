"""A checkpoint as CVLface keeps it: the head of every rank, and the network with its config."""

from __future__ import annotations

from pathlib import Path

import yaml
from torch import Tensor

from lightning_pfc.interchange.cvlface_networks import heads_of, theirs
from lightning_pfc.interchange.equal_parts import in_equal_parts
from lightning_pfc.interchange.exported import Exported
from lightning_pfc.interchange.writing import made_whole, save_tensors


def cvlface(checkpoint: Path, target: Path, ranks: int) -> str:
    """A folder with ``classifier_rankN.pt`` for each of ``ranks`` ranks, and ``model.pt`` with ``model.yaml``.

    Raises:
        ValueError: the backbone is an IResNet or a FaceViT, and none of their networks computes it.
    """
    source = Exported(checkpoint)
    network = theirs(source.backbone, heads_of(source.hyper_parameters), str(checkpoint))
    with made_whole(target) as made:
        made.mkdir()
        said = in_equal_parts(source, made, ranks, _write)
        if network is not None:
            save_tensors({f"net.{name}": tensor for name, tensor in network.tensors.items()}, made / "model.pt")
            (made / "model.yaml").write_text(yaml.safe_dump(network.config(), sort_keys=False), encoding="utf-8")
    if network is not None:
        return f"{said}, the backbone as {network.kind}/{network.name}"
    left = len(source.backbone)
    return (
        f"{said}, left out: the backbone ({left} tensors), which is neither an IResNet nor a FaceViT" if left else said
    )


def _write(folder: Path, rank: int, rows: Tensor) -> None:
    save_tensors({"partial_fc.weight": rows}, folder / f"classifier_rank{rank}.pt")
