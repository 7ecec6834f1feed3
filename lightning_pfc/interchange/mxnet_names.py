"""The LResNets of arcface_mxnet and of Partial FC for MXNet (``fresnet``) under the names of our IResNet, and back.

Those with blocks of version 3 and output E, which their recipes train. Theirs sees ``(pixel - 127.5) / 128`` and adds
2e-5 to variances, ours ``/ 127.5`` and 1e-5: the first convolution and the statistics make up for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_OUTSIDE = {"conv0": "conv1", "bn0": "bn1", "relu0": "prelu", "bn1": "bn2", "pre_fc1": "fc", "fc1": "features"}
_INSIDE = {
    "bn1": "bn1", "conv1": "conv1", "bn2": "bn2", "relu1": "prelu", "conv2": "conv2", "bn3": "bn3",
    "conv1sc": "downsample.0", "sc": "downsample.1",
}  # fmt: skip
_KINDS = {"moving_mean": "running_mean", "moving_var": "running_var", "gamma": "weight", "beta": "bias"}
_TURNED = {ours: theirs for theirs, ours in _KINDS.items()}
_STEM, _LAST = "conv1.weight", "features"
_SCALE = 127.5 / 128
_MORE = 2e-5 - 1e-5  # added to variances by theirs
_STORED = ("moving_mean", "moving_var")  # which theirs calls auxiliary


def as_iresnet(arrays: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Rename the network of a ``.params`` file; None where it holds none, or one of another kind.

    Args:
        arrays: by their names, without ``arg:`` and ``aux:``, and without the head's.
    """
    found: dict[str, Tensor] = {}
    for key, array in arrays.items():
        name = _ours(key)
        if name is None:
            return None
        found[name] = array.float()
    if _STEM not in found or f"{_LAST}.running_var" not in found or "fc.weight" not in found:
        return None
    found[_STEM] = found[_STEM] * _SCALE
    for name in [name for name in found if name.endswith("running_var")]:
        found[name] = found[name] + _MORE
        found[f"{name.rpartition('.')[0]}.num_batches_tracked"] = torch.tensor(0)
    found[f"{_LAST}.weight"] = torch.ones_like(found[f"{_LAST}.bias"])  # theirs is fixed, whatever the file says
    return found


def _ours(key: str) -> str | None:
    match = re.fullmatch(r"(?:stage(\d)_unit(\d+)_)?(.+?)_(weight|bias|gamma|beta|moving_mean|moving_var)", key)
    if match is None:
        return None
    stage, unit, part, kind = match.groups()
    name = _INSIDE.get(part) if stage else _OUTSIDE.get(part)
    return name and f"{f'layer{stage}.{int(unit) - 1}.' if stage else ''}{name}.{_KINDS.get(kind, kind)}"


def as_mxnet(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """The other way: an IResNet as the arrays of a ``.params`` file, ``arg:`` and ``aux:`` before their names.

    Raises:
        ValueError: theirs cannot compute it.
    """
    if not bool((tensors[f"{_LAST}.weight"] == 1).all()):
        raise ValueError(f"{what}: {_LAST}.weight is not 1, where MXNet's is fixed. Take --to insightface.")
    outside = {ours: theirs for theirs, ours in _OUTSIDE.items()}
    inside = {ours: theirs for theirs, ours in _INSIDE.items()}
    found = {}
    for name, tensor in tensors.items():
        part, _, kind = name.rpartition(".")
        block = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", part)
        theirs = inside.get(block[3]) if block else outside.get(part)
        if kind == "num_batches_tracked":
            continue
        if theirs is None:
            raise ValueError(f"{what} has {name} in its backbone, which no LResNet has. Take --to linear for the head.")
        array = _with_their_eps(name, tensor, what) if kind == "running_var" else tensor
        kind = _kind(part, kind, norm=f"{part}.running_var" in tensors)
        place = f"stage{block[1]}_unit{int(block[2]) + 1}_{theirs}" if block else theirs
        found[f"{'aux' if kind in _STORED else 'arg'}:{place}_{kind}"] = array
    found["arg:conv0_weight"] = found["arg:conv0_weight"] / _SCALE
    found["arg:fc1_gamma"] = torch.ones_like(found["arg:fc1_beta"])
    return found


def _kind(part: str, kind: str, *, norm: bool) -> str:
    return _TURNED[kind] if norm or part.rpartition(".")[2] == "prelu" else kind


def _with_their_eps(name: str, variance: Tensor, what: str) -> Tensor:
    if not bool((variance > _MORE).all()):
        raise ValueError(
            f"{what}: {name} has numbers below {_MORE:.0e}, and MXNet adds more than that to a variance: theirs would "
            "compute something else. Take --to insightface."
        )
    return variance - _MORE
