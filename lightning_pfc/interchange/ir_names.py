"""The IR networks of AdaFace and CVLface, tensor by tensor under the names of our IResNet, which computes the same."""

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
