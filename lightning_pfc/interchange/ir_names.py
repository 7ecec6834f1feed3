"""The IR networks of AdaFace and CVLface under the names of our IResNet and back, tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

FIRST = "input_layer.0.weight"  # by which such a network is known
_STEM = {"input_layer.0": "conv1", "input_layer.1": "bn1", "input_layer.2": "prelu"}
_END = {"output_layer.0": "bn2", "output_layer.3": "fc", "output_layer.4": "features"}
_BLOCK = {
    **dict(zip(map("res_layer.{}".format, range(6)), ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3"), strict=True)),
    "shortcut_layer.0": "downsample.0",
    "shortcut_layer.1": "downsample.1",
}
_EPS = 1e-5
_FIRST_SHORTCUT = "layer1.0.downsample"


def is_iresnet(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of an IResNet of ours."""
    return "layer1.0.conv1.weight" in tensors and "features.running_var" in tensors


def as_iresnet(tensors: Mapping[str, Tensor], what: str, *, bgr: bool) -> dict[str, Tensor]:
    """Rename an IR-18, 34, 50 or 101.

    Where theirs only leaves out places in a shortcut (the first block), ours has a layer, which gets weights that
    change nothing. Their last batch norm has neither weight nor bias.

    Args:
        tensors: its state dict.
        what: names it, for messages.
        bgr: it sees blue first; the first convolution is turned round then, as ours see red first.

    Raises:
        ValueError: it has parts that no IResNet has.
    """
    places = _places(tensors, what)
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        part, _, kind = key.rpartition(".")
        block = re.fullmatch(r"body\.(\d+)\.(.+)", part)
        name = _BLOCK.get(block[2]) if block else {**_STEM, **_END}.get(part)
        if name is None:
            raise ValueError(f"{what} has {key}, which no IResNet has; IR-18, 34, 50 and 101 can be taken, without SE.")
        found[f"{places[int(block[1])]}.{name}.{kind}" if block else f"{name}.{kind}"] = tensor
    for place in set(places.values()):
        if place.endswith(".0") and f"{place}.downsample.0.weight" not in found:
            found |= _unchanged(f"{place}.downsample", found[f"{place}.conv1.weight"].shape[0])
    if "features.running_mean" in found:
        mean = found["features.running_mean"]
        found.setdefault("features.weight", torch.ones_like(mean))
        found.setdefault("features.bias", torch.zeros_like(mean))
    if bgr:
        found["conv1.weight"] = found["conv1.weight"].flip(1)
    return found


def as_ir(tensors: Mapping[str, Tensor], what: str, *, bgr: bool) -> dict[str, Tensor]:
    """The other way: an IResNet under the names of an IR network, which computes the same.

    Weight and bias of the last batch norm, which theirs has not, go into its statistics. The shortcut of the first
    block must still be the one that changes nothing.

    Args:
        tensors: of the backbone, by its own names.
        what: names it, for messages.
        bgr: theirs sees blue first.

    Raises:
        ValueError: it is no IResNet, or theirs cannot compute it.
    """
    if not is_iresnet(tensors):
        raise ValueError(
            f"{what} should have an IResNet as backbone, which an IR network can be made of, and has none."
        )
    if (name := trained_first_shortcut(tensors)) is not None:
        raise ValueError(
            f"{what}: {name} is a layer of the first shortcut, where an IR network only leaves out places; it "
            "has been trained. Take --to insightface, whose networks have that layer."
        )
    stages = blocks_of(tensors)
    before = [sum(stages[:n]) for n in range(4)]
    outside = {ours: theirs for theirs, ours in {**_STEM, **_END}.items()}
    inside = {ours: theirs for theirs, ours in _BLOCK.items()}
    found = {}
    for key, tensor in {**tensors, **_without_affine(tensors)}.items():
        part, _, kind = key.rpartition(".")
        block = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", part)
        if part.startswith(_FIRST_SHORTCUT) or (part == "features" and kind in ("weight", "bias")):
            continue
        theirs = inside.get(block[3]) if block else outside.get(part)
        if theirs is None:
            raise ValueError(f"{what} has {key} in its backbone, which no IR network has.")
        place = f"body.{before[int(block[1]) - 1] + int(block[2])}.{theirs}" if block else theirs
        found[f"{place}.{kind}"] = tensor
    if bgr:
        found[FIRST] = found[FIRST].flip(1)
    return found


def trained_first_shortcut(tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor of an IResNet's first shortcut that does more than leave out places; None where none does."""
    for name, value in _unchanged(_FIRST_SHORTCUT, 64).items():
        if not name.endswith("num_batches_tracked") and not torch.equal(tensors[name].float(), value.float()):
            return name
    return None


def blocks_of(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """How many blocks each of the four stages of an IResNet has."""
    names = [re.fullmatch(r"layer([1-4])\.\d+\.conv1\.weight", key) for key in tensors]
    return tuple(sum(name is not None and name[1] == str(n) for name in names) for n in (1, 2, 3, 4))


def _without_affine(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Statistics of the last batch norm, of which a weight of ones and a bias of zeros make the same."""
    mean, variance = tensors["features.running_mean"], tensors["features.running_var"]
    weight, bias = tensors["features.weight"].double(), tensors["features.bias"].double()
    if bool((weight == 1).all()) and not bool(bias.any()):
        return {}
    if not bool((weight > 0).all()):
        raise ValueError(
            f"features.weight has {int((weight <= 0).sum())} numbers of 0 or below, which the batch norm of AdaFace, "
            "without weights, cannot have: export to insightface instead."
        )
    deviation = (variance.double() + _EPS).sqrt() / weight
    return {
        "features.running_mean": (mean - deviation * bias).to(mean.dtype),
        "features.running_var": (deviation.square() - _EPS).to(variance.dtype),
    }


def _places(tensors: Mapping[str, Tensor], what: str) -> dict[int, str]:
    """Block i of their one list: which stage, and which of its blocks."""
    widths = {
        int(found[1]): tensor.shape[0]
        for key, tensor in tensors.items()
        if (found := re.fullmatch(r"body\.(\d+)\.res_layer\.1\.weight", key))
    }
    if sorted(widths) != list(range(len(widths))) or list(dict.fromkeys(widths[i] for i in sorted(widths))) != [
        64,
        128,
        256,
        512,
    ]:
        raise ValueError(f"{what} is no IR network of four stages of width 64, 128, 256 and 512.")
    ends = [64, 128, 256, 512]
    places, counts = {}, dict.fromkeys(ends, 0)
    for i in range(len(widths)):
        places[i] = f"layer{ends.index(widths[i]) + 1}.{counts[widths[i]]}"
        counts[widths[i]] += 1
    return places


def _unchanged(name: str, width: int) -> dict[str, Tensor]:
    """A convolution and a batch norm that give, in evaluation, what they are given."""
    return {
        f"{name}.0.weight": torch.eye(width)[:, :, None, None].contiguous(),
        f"{name}.1.weight": torch.ones(width),
        f"{name}.1.bias": torch.zeros(width),
        f"{name}.1.running_mean": torch.zeros(width),
        f"{name}.1.running_var": torch.full((width,), 1 - _EPS),
        f"{name}.1.num_batches_tracked": torch.tensor(0),
    }
