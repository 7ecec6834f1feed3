"""Networks, with their heads, for projects that give them names of their own: AdaFace, facenet-pytorch, PLSC."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightning_pfc.interchange.array_pickles import write_arrays
from lightning_pfc.interchange.exported import Exported
from lightning_pfc.interchange.imported import HEAD
from lightning_pfc.interchange.ir_names import as_ir
from lightning_pfc.interchange.ranges import even_ranges
from lightning_pfc.interchange.writing import made_whole, save_tensors

_STATISTICS = {"running_mean": "_mean", "running_var": "_variance"}


def adaface(checkpoint: Path, target: Path, ranks: int) -> str:
    """A checkpoint of AdaFace: an IR network that sees blue first, and ``head.kernel`` (D, C).

    Raises:
        ValueError: the backbone is no IResNet, or has a layer in its first block that an IR network has not.
    """
    source = Exported(checkpoint)
    state = {f"model.{name}": tensor for name, tensor in as_ir(source.backbone, str(checkpoint), bgr=True).items()}
    state["head.kernel"] = source.rows(0, source.num_classes).t().contiguous()
    state |= {"head.t": torch.zeros(1), "head.batch_mean": _norms(source, "mean", 20.0)}
    state["head.batch_std"] = _norms(source, "std", 100.0)
    with made_whole(target) as made:
        save_tensors({"epoch": 0, "global_step": 0, "state_dict": state}, made)
    return source.say(f"{len(source.backbone)} tensors of the backbone", "the first convolution turned round to BGR")


def _norms(source: Exported, which: str, otherwise: float) -> Tensor:
    """A running statistic of norms; what AdaFace begins with for another loss."""
    return source.rest.get(f"head.loss_{which}", torch.tensor(otherwise)).reshape(1).float()


def facenet_pytorch(checkpoint: Path, target: Path, ranks: int) -> str:
    """A state dict of ``InceptionResnetV1(classify=True)``; its classifier gets a bias of zeros.

    Raises:
        ValueError: the backbone is none.
    """
    source = Exported(checkpoint)
    missing = [name for name in ("conv2d_1a.conv.weight", "last_linear.weight") if name not in source.backbone]
    if missing:
        raise ValueError(
            f"{checkpoint} should have an InceptionResnetV1 of facenet-pytorch as backbone, and has no {missing[0]}. "
            "Take --to linear for the head alone."
        )
    state = {name: tensor for name, tensor in source.backbone.items() if not name.startswith("logits.")}
    state["logits.weight"] = source.rows(0, source.num_classes).clone()
    state["logits.bias"] = torch.zeros(source.num_classes)
    with made_whole(target) as made:
        save_tensors(state, made)
    return source.say(f"{len(source.backbone)} tensors of the backbone", "logits.bias is zero")


def plsc(checkpoint: Path, target: Path, ranks: int) -> str:
    """A folder with ``latest.pdparams``, and for several ranks ``latest_rankN.pdparams`` with their rows."""
    source = Exported(checkpoint)
    ranges = even_ranges(source.num_classes, ranks)
    main = _in_paddle(source.backbone)
    if ranks == 1:
        main[HEAD] = source.rows(0, source.num_classes)
    with made_whole(target) as made:
        made.mkdir()
        for rank, (start, stop) in enumerate(ranges if ranks > 1 else ()):
            write_arrays(made / f"latest_rank{rank}.pdparams", {HEAD: source.rows(start, stop)})
        if main:
            write_arrays(made / "latest.pdparams", main)
    said = f"for {ranks} rank{'s' if ranks > 1 else ''}"
    return source.say(said, f"{len(source.backbone)} tensors of the backbone")


def _in_paddle(backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Paddle's names and layouts: linear layers have (in, out), statistics and slopes of PReLU an underscore."""
    found = {}
    for name, tensor in backbone.items():
        part, _, kind = name.rpartition(".")
        if kind == "num_batches_tracked":
            continue
        if kind == "weight" and tensor.dim() == 1 and f"{part}.bias" not in backbone:
            kind = "_weight"
        turned = tensor.t().contiguous() if kind == "weight" and tensor.dim() == 2 else tensor
        found[f"{part}.{_STATISTICS.get(kind, kind)}" if part else name] = turned
    return found
