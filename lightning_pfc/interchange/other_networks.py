"""Projects in torch whose networks have names of their own: AdaFace, CVLface, facenet-pytorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_pfc.interchange.cvlface_networks import ours
from lightning_pfc.interchange.files import as_matrix, as_tensors, describe, read_file
from lightning_pfc.interchange.imported import HEAD, Imported, check_ranges, files_by_rank, first_of, take_backbone
from lightning_pfc.interchange.ir_names import FIRST, as_iresnet
from lightning_pfc.interchange.vit_names import is_face_vit, with_mask_token
from lightning_pfc.storage.regular import check_regular, read_regular
from lightning_pfc.storage.yaml_texts import MAX_YAML, parse_yaml

_STEMS = (FIRST, "conv1.weight", "patch_embed.proj.weight")  # of the layers that see pictures first


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def adaface(source: Path) -> Imported:
    """AdaFace's checkpoint of Lightning: ``model.`` an IR network that sees blue first, ``head.kernel`` (D, C).

    Raises:
        OSError, ValueError: naming what was found.
    """
    content = read_file(source)
    tensors = as_tensors(content.get("state_dict", content) if isinstance(content, Mapping) else content, str(source))
    network = _below(tensors, "model.") or {k: v for k, v in tensors.items() if not k.startswith("head.")}
    if FIRST not in network:
        raise ValueError(
            f"{source} should hold model.{FIRST}, as an IR network of AdaFace, and is {describe(tensors)}."
        )
    found = Imported(notes=["the first convolution turned round: theirs takes BGR, ours RGB"])
    take_backbone(found, as_iresnet(network, str(source), bgr=True), str(source))
    if "head.kernel" in tensors:
        found.parts[HEAD] = [as_matrix(tensors["head.kernel"], f"head.kernel in {source}").t()]
        found.notes.append("left out: the running mean and deviation of norms")
    return found


def cvlface(source: Path) -> Imported:
    """CVLface: a folder with ``model.pt`` or ``.safetensors`` and ``classifier_rankN.pt``, or a model's file.

    A folder of the hub has them at the top or in ``pretrained_model``. ``model.yaml`` beside the model says whether it
    sees blue first.

    Raises:
        OSError, ValueError: naming the file, and what was expected.
    """
    found, folder = Imported(), source if source.is_dir() else source.parent
    if source.is_dir():
        names = [f"{place}model.{end}" for place in ("", "pretrained_model/") for end in ("safetensors", "pt")]
        models = first_of([folder / name for name in names], found)
        heads = files_by_rank(folder, r"classifier_rank(\d+)\.pt")
    else:
        models, heads = [source], []
    if not models and not heads:
        raise ValueError(
            f"{source} should hold model.pt or model.safetensors, or classifier_rankN.pt, and has neither."
        )
    for path in models:
        _take_cvlface(found, path)
    if heads:
        found.parts[HEAD] = [_classifier(path) for path in heads]
        check_ranges(found.parts[HEAD], heads)
        found.padding = len(heads) - 1  # theirs rounds the number of classes up to a multiple of the ranks
    return found


def _take_cvlface(found: Imported, path: Path) -> None:
    tensors = as_tensors(read_file(path), str(path))
    if FIRST not in tensors and not all(key.startswith(("net.", "model.net.")) for key in tensors):
        raise ValueError(f"{path} should hold a network of CVLface, its names below net., and is {describe(tensors)}.")
    for prefix in ("model.", "net."):
        if all(key.startswith(prefix) for key in tensors):
            tensors = _below(tensors, prefix)
    if _color_space(path.with_suffix(".yaml")) == "BGR":
        first = next((name for name in _STEMS if name in tensors), None)
        if first is None:
            raise ValueError(
                f"{path} takes BGR, as the file beside it says, and which layer sees pictures first is unknown."
            )
        tensors[first] = tensors[first].flip(1)
        found.notes.append("the first convolution turned round: theirs takes BGR, ours RGB")
    if FIRST in tensors:
        tensors = as_iresnet(tensors, str(path), bgr=False)
    elif is_face_vit(tensors):
        tensors = with_mask_token(tensors)
        found.notes += [words for words in [ours(tensors)] if words]
    elif "features.running_mean" not in tensors:
        found.notes.append("no backbone of this package is of that kind: register theirs to use these weights")
    take_backbone(found, tensors, str(path))


def _color_space(path: Path) -> str:
    """Of the config beside a model; RGB without one."""
    if not path.exists():
        return "RGB"
    if check_regular(path).st_size > MAX_YAML:
        raise ValueError(f"{path} is no config of a model: it is larger than a megabyte.")
    try:
        config: Any = parse_yaml(read_regular(path, MAX_YAML).decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no YAML ({error}).") from error
    return str(config.get("color_space", "RGB")) if isinstance(config, Mapping) else "RGB"


def _classifier(path: Path) -> Tensor:
    content = read_file(path)
    tensors = as_tensors(content, str(path))
    for key in ("partial_fc.weight", "classifier.weight"):
        if key in tensors:
            return as_matrix(tensors[key], f"{key} in {path}")
    raise ValueError(f"{path} should hold partial_fc.weight or classifier.weight, and is {describe(content)}.")


def facenet_pytorch(source: Path) -> Imported:
    """The state dict of facenet-pytorch's ``InceptionResnetV1``; its classifier ``logits`` is the head.

    Raises:
        OSError, ValueError: naming what was found.
    """
    tensors = as_tensors(read_file(source), str(source))
    if "last_linear.weight" not in tensors or "conv2d_1a.conv.weight" not in tensors:
        raise ValueError(f"{source} should hold an InceptionResnetV1 of facenet-pytorch, and is {describe(tensors)}.")
    found = Imported(
        notes=["backbone=inception_resnet_v1; theirs takes pixels as (x - 127.5) / 128, ours divides by 127.5"]
    )
    take_backbone(found, {k: v for k, v in tensors.items() if not k.startswith("logits.")}, str(source))
    if "logits.weight" in tensors:
        found.parts[HEAD] = [as_matrix(tensors["logits.weight"], f"logits.weight in {source}")]
        found.notes.append("left out: logits.bias (a margin softmax has no bias)")
    return found
