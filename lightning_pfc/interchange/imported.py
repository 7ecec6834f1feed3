"""What every importer makes: tensors by our names, and the files of ranks put in order and checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_pfc.interchange.files import as_tensors

HEAD, MOMENTUM, BACKBONE = "head.weight", "momentum.head.weight", "backbone."


@dataclass
class Imported:
    """Tensors by our names, each in the parts in which the peer keeps it, and what is to be said of them.

    Attributes:
        parts: each tensor as the list of its rows' parts, one after the other.
        notes: lines for the user.
        padding: at most so many rows at the end may belong to no class.
        several_centers: a class may have several rows, side by side.
    """

    parts: dict[str, list[Tensor]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    padding: int = 0
    several_centers: bool = False

    @property
    def num_classes(self) -> int:
        """Rows of the head; 0 without one."""
        return sum(part.shape[0] for part in self.parts.get(HEAD, ()))

    def cut(self, classes: int) -> None:
        """Leave out rows at the end that are of no class, or join those of one, where theirs may have such."""
        surplus = self.num_classes - classes
        if self.several_centers and surplus > 0 and classes > 0 and self.num_classes % classes == 0:
            [weight] = self.parts[HEAD]
            self.notes.append(f"{len(weight) // classes} centers a class, side by side in a row")
            self.parts[HEAD] = [weight.reshape(classes, -1)]
            return
        if not 0 < surplus <= self.padding:
            return
        for name in {HEAD, MOMENTUM} & set(self.parts):
            left = surplus
            parts = self.parts[name]
            while left:
                rows = min(left, parts[-1].shape[0])
                last = parts.pop()
                left -= rows
                if rows < last.shape[0]:
                    parts.append(last[: last.shape[0] - rows])
        self.notes.append(f"rows without a class left out: {surplus}")


def take_backbone(found: Imported, value: Any, what: str) -> None:
    """Add a state dict's tensors.

    Raises:
        ValueError: if it is none, or two tensors have one name here.
    """
    for key, tensor in as_tensors(value, what).items():
        name = BACKBONE + key.removeprefix(BACKBONE)
        if name in found.parts:
            raise ValueError(f"{what} has two tensors that are {name} here, one of them {key}. Save the one meant.")
        found.parts[name] = [tensor]


def first_of(paths: Sequence[Path], found: Imported) -> list[Path]:
    """The first of several files of one thing that is there, or none; the others are said to be left out."""
    there = [path for path in paths if path.exists()]
    if len(there) > 1:
        found.notes.append(f"the backbone of {there[0].name}; left out: {', '.join(path.name for path in there[1:])}")
    return there[:1]


def files_by_rank(folder: Path, pattern: str) -> list[Path]:
    """The files of ranks 0, 1, 2, ...

    Raises:
        ValueError: naming one that is missing, or two of one rank.
    """
    numbers: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(pattern, path.name)
        if match and (other := numbers.setdefault(int(match[1]), path)) is not path:
            raise ValueError(f"{other} and {path.name} are both of rank {int(match[1])}. Take one of them away.")
    for rank in range(len(numbers)):
        if rank not in numbers:
            name = pattern.replace("(\\d+)", str(rank)).replace("\\", "")
            raise ValueError(f"{folder / name} is missing: there are files of the ranks {sorted(numbers)}.")
    return [numbers[rank] for rank in range(len(numbers))]


def momenta_beside(paths: Sequence[Path]) -> bool:
    """Whether the files of the ranks' momenta are there.

    Args:
        paths: those that there would be, one for each rank.

    Raises:
        ValueError: some are, naming the first that is not.
    """
    missing = [path for path in paths if not path.exists()]
    if missing and len(missing) < len(paths):
        raise ValueError(
            f"{missing[0]} is missing, and {len(paths) - len(missing)} other ranks have theirs. Copy it too, or take "
            "all of them away: momenta then begin at zero."
        )
    return not missing


def check_ranges(parts: Sequence[Tensor], files: Sequence[Path]) -> None:
    """Classes are dealt out evenly, the first ranks have one more: what does not fit is of another run, or not all.

    Raises:
        ValueError: naming the first file that does not fit.
    """
    total, ranks = sum(part.shape[0] for part in parts), len(parts)
    for rank, (part, path) in enumerate(zip(parts, files, strict=True)):
        rows = total // ranks + (rank < total % ranks)
        if part.shape != (rows, parts[0].shape[1]) or part.dtype != parts[0].dtype:
            raise ValueError(
                f"{path} has a head of shape {tuple(part.shape)} in {part.dtype}; of {total} classes on {ranks} ranks "
                f"it should be ({rows}, {parts[0].shape[1]}) in {parts[0].dtype}. Are these the files of one run, all "
                "of them?"
            )


def check_alike(parts: Sequence[Tensor], others: Sequence[Tensor], files: Sequence[Path]) -> None:
    """See that momenta have the shapes of their weights.

    Raises:
        ValueError: naming the file of one that has not.
    """
    for part, other, path in zip(parts, others, files, strict=True):
        if part.shape != other.shape:
            raise ValueError(f"{path} has shape {tuple(part.shape)}, and its weights have {tuple(other.shape)}.")
