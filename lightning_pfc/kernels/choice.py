"""Which operations run as kernels: chosen once, when a head is set up, by a word and by comparing them with torch.

A kernel is never used because it is there: on the device at hand it must give what plain torch gives on planted inputs.
One that raises, or that differs by more than its bound, is left out with a warning that names it, and plain torch does
its work. What was chosen is written down and kept when a run is resumed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.kernels.library import JUDGES, OPERATIONS, Operation, has_triton, interpreted
from lightning_pfc.kernels.tiles import chip_of

WORDS = ("auto", "torch", "triton")
OLDEST_CHIP = 80
"""The first chip with bfloat16 products; older ones take plain torch."""

Planted = Callable[[torch.device], Sequence[tuple[Any, ...]]]
_PLANTED: dict[str, Planted] = {}
_COMPARED: dict[tuple[str, torch.device], bool] = {}

NUMBERED = (
    "adagrad_rows_", "adamw_rows_", "bad_rows", "begin_gradients", "draw_uniform", "exponentials_",
    "gather_normalize_round", "link_equal", "margin_logits", "own_columns", "pack_sums", "sgd_rows_", "target_cosines",
    "target_gradients_", "unit_embeddings", "unit_embeddings_backward", "unpack_sums", "project_rows_",
)  # fmt: skip
"""The operations in the order of their bits in a checkpoint; a new one goes to the end, and none is taken out."""
NOT_CHOSEN = -1
_CHIP_SHIFT = 48

BOUNDS = {
    torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 2e-3, torch.int8: 2e-2,
    torch.uint8: 2e-2,
}  # fmt: skip
"""How far a kernel may be from plain torch: norm of the difference over the norm, by the type of what is compared.

Two correct float32 computations differ by their order of sums, in float64 by the last bit of a logarithm; rounded to
fewer bits, by the few numbers that lay at the edge between two. Integers must be equal.
"""


@dataclass(frozen=True)
class Kernels:
    """The operations that run as kernels.

    Attributes:
        names: of the operations; empty for plain torch.
        chip: compute capability times ten of the device that they were compared on, 0 for none.
    """

    names: frozenset[str] = frozenset()
    chip: int = 0

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.names))

    def __str__(self) -> str:
        if not self.names:
            return "plain torch"
        left_out = sorted(OPERATIONS.keys() - self.names)
        return f"Triton kernels on sm_{self.chip}" + (f", but {', '.join(left_out)} in torch" if left_out else "")

    @property
    def code(self) -> int:
        """What a checkpoint keeps: the chip, and a bit for each operation."""
        return self.chip << _CHIP_SHIFT | sum(1 << NUMBERED.index(name) for name in self.names)

    @classmethod
    def of_code(cls, code: int) -> Kernels | None:
        """The choice that :attr:`code` described, without names that are no operations now; None for none."""
        if code < 0:
            return None
        names = {name for place, name in enumerate(NUMBERED) if code >> place & 1}
        return cls(frozenset(names & OPERATIONS.keys()), code >> _CHIP_SHIFT)


TORCH = Kernels()


def planted(name: str) -> Callable[[Planted], Planted]:
    """Decorator: arguments of a few calls of an operation by which its kernel is compared with its twin."""

    def register(made: Planted) -> Planted:
        _PLANTED[name] = made
        return made

    return register


def choose(word: str, device: torch.device, kept: Kernels | None = None) -> Kernels:
    """The operations that run as kernels on a device.

    Args:
        word: ``"torch"``, ``"triton"``, or ``"auto"``: kernels on a GPU with Triton and compute capability 8.0.
        device: where the head computes.
        kept: the choice of the run that is resumed. On the same chip nothing is added to it, so that the bits of a step
            stay; what gives other numbers now is left out.

    Raises:
        ValueError: for another word, or where ``"triton"`` cannot be had.
    """
    if word not in WORDS:
        raise ValueError(f"kernels={word!r} is unknown; use one of {', '.join(WORDS)}.")
    chip = chip_of(device) if device.type == "cuda" else 0
    obstacle = _obstacle(device, chip)
    if word == "triton" and obstacle is not None:
        raise ValueError(f"kernels='triton' cannot be had: {obstacle}; use 'auto' or 'torch'.")
    if word == "torch" or obstacle is not None:
        return TORCH
    among = kept.names if kept is not None and kept.chip == chip else OPERATIONS.keys()
    return Kernels(frozenset(name for name in sorted(among) if _found_good(name, device)), chip)


def is_good(name: str, device: torch.device) -> bool:
    """Whether an operation's kernel is used on a GPU by default; compared with plain torch the first time."""
    return _obstacle(device, chip_of(device)) is None and _found_good(name, device)


JUDGES.append(is_good)


def _found_good(name: str, device: torch.device) -> bool:
    """Compared once a process, so that a kernel that is left out is named once, however many heads there are."""
    if device.type == "cuda" and not torch.cuda.is_available():  # fake tensors: nothing can be compared
        return True
    key = (name, device)
    if key not in _COMPARED:
        _COMPARED[key] = _agrees(name, device)
    return _COMPARED[key]


def _obstacle(device: torch.device, chip: int) -> str | None:
    if not has_triton():
        return "Triton is not installed"
    if device.type == "cpu" and interpreted():
        return None
    if device.type != "cuda":
        return f"they run on a GPU, and the head is on {device}"
    if chip < OLDEST_CHIP:
        return f"the GPU has compute capability {chip / 10}, and they need 8.0"
    return None


def _agrees(name: str, device: torch.device) -> bool:
    """Whether an operation's kernel gives what its twin gives; a warning if not."""
    try:
        found = max(difference(name, arguments) for arguments in _PLANTED[name](device))
    except Exception as error:
        reason = f"raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    else:
        if found <= 1.0:
            return True
        reason = f"differs from plain torch by {found:.2g} times what is allowed"
    warnings.warn(f"The kernel {name} {reason}; plain torch does its work on {device}.", stacklevel=2)
    return False


def difference(name: str, arguments: tuple[Any, ...]) -> float:
    """Largest difference between an operation's kernel and its twin over what :data:`BOUNDS` allows.

    Results are compared, and arguments that are written.
    """
    operation = OPERATIONS[name]
    ours, twins = (tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments) for _ in range(2))
    found, expected = operation(*ours, kernels=OPERATIONS), operation.twin(*twins)
    pairs = zip(_outcome(operation, found, ours), _outcome(operation, expected, twins), strict=True)
    return max(_apart(one, other) for one, other in pairs)


def _apart(found: Tensor, expected: Tensor) -> float:
    if expected.dtype not in BOUNDS:
        return 0.0 if torch.equal(found, expected) else math.inf
    size = float(expected.double().norm())
    away = float((found.double() - expected.double()).norm())
    return math.inf if math.isnan(away) else away / (size or 1.0) / BOUNDS[expected.dtype]


def _outcome(operation: Operation, results: Any, arguments: Sequence[Any]) -> list[Tensor]:
    """Results, and the arguments that the operation writes."""
    every = results if isinstance(results, tuple) else (results,)
    written = [value for value, writes in zip(arguments, operation.writes, strict=True) if writes]
    return [value for value in (*every, *written) if isinstance(value, Tensor)]
