"""Any head that somebody else wrote, loaded from a file that the user points to, and run on the CPU.

The file is executed as it is. The class must be made and called as InsightFace's ``PartialFC_V2`` is::

    head = CLASS(margin_loss, embedding_size, num_classes, sample_rate, fp16)   # .weight is a Parameter (c, D)
    loss = head(embeddings, labels)                                             # () of the global batch

``margin_loss(cosines, labels)`` returns scaled logits with the margin on the targets; labels are -1 where another rank
owns them. If a file ``losses.py`` with a ``CombinedMarginLoss`` lies beside the head, as InsightFace has it, that one
is used.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def load_peer(spec: str, dim: int, classes: int, rate: float) -> nn.Module:
    """The head of ``FILE`` or ``FILE:CLASS``; needs a process group, as such heads do, and leaves ``.cuda()`` a no-op.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file has no such class, or several candidates.
    """
    file, _, wanted = spec.partition(":")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"peer={spec!r}: there is no file {path}; give FILE or FILE:CLASS.")
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[assignment,method-assign]
    module = _load(path)
    heads = {n: c for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, nn.Module)}
    if not wanted:
        named = [name for name in heads if name.lower().startswith("partialfc")]
        if len(named) != 1:
            raise ValueError(f"peer={spec!r}: which class is the head? Give FILE:CLASS, one of {', '.join(heads)}.")
        wanted = named[0]
    if wanted not in heads:
        raise ValueError(f"peer={spec!r}: {path} has no class {wanted}; it has {', '.join(heads)}.")
    return heads[wanted](_margin(path), dim, classes, rate, False)


def _margin(path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    beside = path.with_name("losses.py")
    if beside.is_file():
        maker: Any = getattr(_load(beside), "CombinedMarginLoss", None)
        if maker is not None:
            margin: Callable[[Tensor, Tensor], Tensor] = maker(64.0, 1.0, 0.5, 0.0)
            return margin
    return _arcface


def _arcface(cosine: Tensor, labels: Tensor) -> Tensor:
    rows = (labels != -1).nonzero()[:, 0]
    column = labels[rows].view(-1)
    with torch.no_grad():
        cosine[rows, column] = torch.cos(torch.arccos(cosine[rows, column]) + 0.5)
    return cosine * 64.0


def _load(path: Path) -> ModuleType:
    name = f"peer_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
