"""Class centers as a gallery: the classes that were trained, by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lightning_pfc.deploy.description import ModelDescription
from lightning_pfc.deploy.engines import Floats
from lightning_pfc.deploy.errors import ExportError
from lightning_pfc.deploy.folder import checked_file


class CenterGallery:
    """Centers (C, D) with names.

    Args:
        centers: (C K, D) float32; of length one for ``"cosine"``. Of the K of a class, side by side, the nearest
            counts.
        names: of each class.
        bias: (C,) float32, for a loss with a bias.
        cosine: whether a score is a cosine, or a dot product with the embedding as it is.
    """

    def __init__(self, centers: Floats, names: list[str], bias: Floats | None = None, *, cosine: bool = True) -> None:
        if not names or len(centers) % len(names):
            raise ExportError(f"{len(centers)} centers have {len(names)} names; export again")
        self.centers, self.names, self.bias, self.cosine = centers, names, bias, cosine

    def __len__(self) -> int:
        return len(self.names)

    def nearest(self, row: Floats, k: int) -> tuple[list[str], list[float]]:
        """Names and scores of the k best classes for an embedding (D,), the best first."""
        if self.cosine:
            row = row / max(float(np.linalg.norm(row)), 1e-12)
        scores = (self.centers @ row.astype(np.float32)).reshape(len(self.names), -1).max(1)
        if self.bias is not None:
            scores = scores + self.bias
        count = min(k, len(scores))
        best = np.argpartition(-scores, count - 1)[:count]
        best = best[np.lexsort((best, -scores[best]))]
        return [self.names[i] for i in best.tolist()], [float(scores[i]) for i in best.tolist()]

    @classmethod
    def load(cls, folder: Path | None, description: ModelDescription) -> CenterGallery:
        """The centers of an export.

        Raises:
            ExportError: it holds none, or a file of them is missing or was changed.
        """
        about = description.centers
        if about is None or folder is None:
            raise ExportError("holds no class centers; export with --centers", folder)
        from safetensors.numpy import load_file

        found = load_file(checked_file(folder, about.file, description))
        centers = found.get("centers")
        if centers is None or centers.shape != (about.classes * about.per_class, description.model.width):
            raise ExportError(f"{about.file} does not hold the {about.classes} centers; export again", folder)
        names = read_names(checked_file(folder, about.names, description))
        return cls(centers.astype(np.float32), names, found.get("bias"), cosine=about.score == "cosine")


def read_names(path: Path) -> list[str]:
    """The name of class i in line i; what :func:`write_names` wrote."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    return [_plain(line) for line in text.split("\n")[:-1]]


def write_names(path: Path, names: Iterable[str]) -> None:
    """One name a line; line breaks and backslashes within a name are written as escapes."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.writelines(f"{_escaped(name)}\n" for name in names)


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def _plain(line: str) -> str:
    if "\\" not in line:
        return line
    parts = line.split("\\\\")
    return "\\".join(part.replace("\\n", "\n").replace("\\r", "\r") for part in parts)
