"""What other projects write, as the names that a module of ours gives its tensors: ``head.weight``, ``backbone...``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_pfc.interchange.files import as_matrix, as_tensors, describe, read_file, read_matrix
from lightning_pfc.interchange.imported import (
    HEAD,
    MOMENTUM,
    Imported,
    check_alike,
    check_ranges,
    files_by_rank,
    first_of,
    momenta_beside,
    take_backbone,
)
from lightning_pfc.interchange.mxnet_files import mxnet
from lightning_pfc.interchange.other_networks import adaface, cvlface, facenet_pytorch
from lightning_pfc.interchange.plsc_files import plsc
from lightning_pfc.interchange.recognised import OURS, check_is_of
from lightning_pfc.interchange.vit_names import is_face_vit, with_mask_token


def insightface(source: Path) -> Imported:
    """arcface_torch: a folder with the files of every rank, of either generation, or a backbone's file.

    ``rank_N_softmax_weight.pt`` (and ``..._mom.pt``) beside ``backbone.pth``; or ``checkpoint_gpu_N.pt``.

    Raises:
        OSError, ValueError: naming the file, and what was expected.
    """
    if source.is_file():
        found, content = Imported(), read_file(source)
        check_is_of(source, content, "insightface")
        take_backbone(found, content, str(source))
        return found
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is neither a file nor a folder.")
    old, new = (
        files_by_rank(source, r"rank_(\d+)_softmax_weight\.pt"),
        files_by_rank(source, r"checkpoint_gpu_(\d+)\.pt"),
    )
    if bool(old) == bool(new):
        what = "files of both generations" if old else "neither"
        raise ValueError(
            f"{source} should hold rank_N_softmax_weight.pt or checkpoint_gpu_N.pt, one for each rank, and has {what}."
        )
    return _first_generation(source, old) if old else _second_generation(new)


def _first_generation(source: Path, files: Sequence[Path]) -> Imported:
    found = Imported({HEAD: [read_matrix(path) for path in files]})
    check_ranges(found.parts[HEAD], files)
    momenta = [path.with_name(f"{path.stem}_mom.pt") for path in files]
    if momenta_beside(momenta):
        found.parts[MOMENTUM] = [read_matrix(path) for path in momenta]
        check_alike(found.parts[MOMENTUM], found.parts[HEAD], momenta)
    for path in first_of([source / "backbone.pth", source / "model.pt"], found):
        take_backbone(found, read_file(path), str(path))
    return found


def _second_generation(files: Sequence[Path]) -> Imported:
    found = Imported({HEAD: []})
    momenta: list[Tensor | None] = []
    moments: list[tuple[int | None, int | None]] = []
    for rank, path in enumerate(files):
        content = read_file(path)
        head = content.get("state_dict_softmax_fc") if isinstance(content, Mapping) else None
        if not isinstance(head, Mapping) or "weight" not in head:
            raise ValueError(
                f"{path} should hold state_dict_softmax_fc with the head's weight, and is {describe(content)}."
            )
        weight = as_matrix(head["weight"], f"state_dict_softmax_fc.weight in {path}")
        found.parts[HEAD].append(weight)
        momenta.append(_momentum(content.get("state_optimizer"), weight))
        moments.append((_number(content.get("epoch")), _number(content.get("global_step"))))
        if moments[rank] != moments[0]:
            raise ValueError(
                f"{path} is of epoch and step {moments[rank]}, and {files[0].name} of {moments[0]}: these are not the "
                "files of one moment of a run."
            )
        if rank == 0:
            take_backbone(found, content.get("state_dict_backbone"), f"state_dict_backbone in {path}")
            found.notes.append("epoch {}, step {}".format(*moments[0]))
    check_ranges(found.parts[HEAD], files)
    _take_momenta(found, momenta, files)
    return found


def _take_momenta(found: Imported, momenta: Sequence[Tensor | None], files: Sequence[Path]) -> None:
    there = [momentum for momentum in momenta if momentum is not None]
    if len(there) == len(files):
        found.parts[MOMENTUM] = there
    elif there:
        path = files[[momentum is None for momentum in momenta].index(True)]
        raise ValueError(f"{path} has no momentum of the head, and other ranks' files have: are they of one run?")
    else:
        found.notes.append("the optimizer's state holds no momentum of the head")


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _momentum(optimizer: Any, weight: Tensor) -> Tensor | None:
    """SGD's momentum of the head, which is the last parameter of theirs."""
    states = optimizer.get("state") if isinstance(optimizer, Mapping) else None
    numbered = {k: v for k, v in states.items() if isinstance(k, int)} if isinstance(states, Mapping) else {}
    last = numbered[max(numbered)] if numbered else None
    buffer = last.get("momentum_buffer") if isinstance(last, Mapping) else None
    return buffer if isinstance(buffer, Tensor) and buffer.shape == weight.shape else None


def linear(source: Path) -> Imported:
    """The weight of an ``nn.Linear`` that classifies, alone or in a state dict that has no other matrix.

    Raises:
        OSError, ValueError: naming what was found.
    """
    content = read_file(source)
    check_is_of(source, content, "linear", OURS)
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
        tensors = as_tensors(content, str(source))
        matrices = [name for name, tensor in tensors.items() if tensor.dim() == 2]
        if len(matrices) != 1:
            raise ValueError(
                f"{source} should hold one matrix, the weight of an nn.Linear; it has {len(matrices)}: "
                f"{', '.join(matrices[:6]) or describe(content)}."
            )
        found = Imported({HEAD: [as_matrix(tensors[matrices[0]], f"{matrices[0]} in {source}")]})
        left = sorted(set(tensors) - set(matrices))
        found.notes += [f"left out: {', '.join(left)} (a margin softmax has no bias)"] if left else []
        return found
    return Imported({HEAD: [as_matrix(content, str(source))]})


def lvface(source: Path) -> Imported:
    """LVFace: the state dict of a ViT; folders are those of arcface_torch.

    Raises:
        OSError, ValueError: naming what was found.
    """
    if source.is_dir():
        return insightface(source)
    tensors = as_tensors(read_file(source), str(source))
    if not is_face_vit(tensors):
        raise ValueError(f"{source} should hold a ViT of LVFace, and is {describe(tensors)}.")
    found = Imported()
    take_backbone(found, with_mask_token(tensors), str(source))
    return found


def pml(source: Path) -> Imported:
    """The state dict of a loss of pytorch-metric-learning that has a center, or several, for each class.

    ``W`` is (dimensions, classes), of SubCenterArcFace (dimensions, classes x centers); so is ``fc`` of SoftTriple.
    ``proxies`` of ProxyAnchor and ProxyNCA are (classes, dimensions).

    Raises:
        OSError, ValueError: naming what was found.
    """
    content = read_file(source)
    tensors = as_tensors(content, str(source))
    names = [name for name in ("W", "proxies", "fc") if name in tensors]
    if len(names) != 1:
        raise ValueError(
            f"{source} should hold one of W, proxies and fc, as losses of pytorch-metric-learning with classes do, and "
            f"is {describe(content)}."
        )
    [name] = names
    weight = as_matrix(tensors[name], f"{name} in {source}")
    return Imported({HEAD: [weight if name == "proxies" else weight.t()]}, several_centers=name != "proxies")


IMPORTERS: dict[str, Callable[[Path], Imported]] = {
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
"""How to read what a project wrote, by its name."""
