"""Whose layout a file or a folder has, by its names: so that who named the wrong project is told the right one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_pfc.interchange.files import describe, read_file
from lightning_pfc.interchange.ir_names import FIRST

OURS = "this package"
_FOLDERS = (
    (r"rank_\d+_softmax_weight\.pt|checkpoint_gpu_\d+\.pt", "insightface"),
    (r"classifier_rank\d+\.pt|pretrained_model|model\.yaml", "cvlface"),
    (r".*\.pdparams", "plsc"),
    (r"\d+_centers\.param|.*\.params", "mxnet"),
)
_MXNET = (0x112).to_bytes(8, "little")


def project_of(source: Path) -> str | None:
    """The project whose layout this has, ``"this package"`` for our own; None where it is nobody's that is known.

    Only tensors and plain values are read, and nothing is raised.
    """
    try:
        if source.is_dir():
            names = [path.name for path in source.iterdir()]
            return next((who for mark, who in _FOLDERS if any(re.fullmatch(mark, name) for name in names)), None)
        with source.open("rb") as file:
            start = file.read(len(_MXNET))
        if start == _MXNET:
            return "mxnet"
        if source.suffix in (".pdparams", ".pdopt") and start[:1] == b"\x80":
            return "plsc"
        return of_content(read_file(source))
    except (OSError, ValueError):
        return None


def of_content(content: Any) -> str | None:
    """The same of what a file of ``torch.save`` or safetensors holds."""
    if not isinstance(content, Mapping):
        return None
    names = {str(name).removeprefix("module.") for name in content}
    if "state_dict_softmax_fc" in names:
        return "insightface"
    inner = content.get("state_dict")
    if isinstance(inner, Mapping):
        ir = "head.kernel" in inner or f"model.{FIRST}" in inner
        return OURS if "lightning_pfc" in names else "adaface" if ir else None
    return _of_names(names) or _of_one_matrix(content)


def _of_names(names: set[str]) -> str | None:
    if "conv2d_1a.conv.weight" in names:
        return "facenet-pytorch"
    if names and all(name.startswith(("net.", "model.net.", "partial_fc.", "classifier.")) for name in names):
        return "cvlface"
    if "head.weight" in names and any(name.startswith("backbone.") for name in names):
        return OURS
    if FIRST in names:
        return "cvlface"
    if {"layer1.0.bn1.weight", "features.running_mean"} <= names or "conv_sep.layers.0.weight" in names:
        return "insightface"
    if {"patch_embed.proj.weight", "feature.0.weight"} <= names:
        return "insightface" if "mask_token" in names else "cvlface"
    return "pml" if names & {"W", "proxies"} and len(names) <= 4 else None


def _of_one_matrix(content: Mapping[Any, Any]) -> str | None:
    matrices = [name for name, value in content.items() if isinstance(value, Tensor) and value.dim() == 2]
    return "linear" if len(matrices) == 1 and len(content) <= 2 else None


def way_out(source: Path, project: str) -> str:
    """A sentence for who has named another project than the one whose layout a file has; empty for the same."""
    found = project_of(source)
    if found in (None, project):
        several = source.is_file() and project_of(source.parent) == project
        return f" Where it is a part of several, give their folder, {source.parent}." if several else ""
    if found == OURS:
        return " It is a file of this package: init_from= takes it as it is."
    return f" It is laid out as {found} writes: take --from {found}."


def check_is_of(source: Path, content: Any, *projects: str) -> None:
    """See that a file which could be anybody's is not known to be another project's.

    Raises:
        ValueError: it is.
    """
    if of_content(content) not in (None, *projects):
        raise ValueError(f"{source} is no file of {projects[0]}: it is {describe(content)}.")
