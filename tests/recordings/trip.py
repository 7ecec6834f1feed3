"""The way of ``embeddings``, ``labels`` and ``sample_rate`` through the code of a training step, counted.

    python -m tests.recordings.trip

The forward pass of a training step on one process is run under a profiler and read as a reader follows it: into each
function of the package that holds the value, alone or inside an object, and back to its caller. Stops that follow each
other in one file are one stay; a return is a stay in a file that was left before. Names are those of arguments,
variables and attributes that hold the value.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

import lightning_pfc

PACKAGE = str(Path(lightning_pfc.__file__).parent)
LOCAL, DIM, CLASSES = 7, 11, 101  # sizes that nothing else has
RATE = 0.37


@dataclass
class Trip:
    """Stays in order, and the names on the way."""

    stays: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def stop(self, file: str, names: set[str]) -> None:
        """A call that is handed the value."""
        self.names |= names
        if not self.stays or self.stays[-1] != file:
            self.stays.append(file)

    def __str__(self) -> str:
        returns = sum(file in self.stays[:i] for i, file in enumerate(self.stays))
        return f"{len(self.stays)} stays, {len(set(self.stays))} files, {returns} returns, {len(self.names)} names"


def is_embeddings(value: Any) -> bool:
    """The batch's embeddings and what is made of them: norms, scores, logits, sums."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.shape[:1] == (LOCAL,)


def is_labels(value: Any) -> bool:
    """The batch's labels, or columns made of them."""
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.shape[:1] == (LOCAL,) and value.dim() < 3


def is_rate(value: Any) -> bool:
    """The rate, or the number of classes that it comes to."""
    return (isinstance(value, float) and value == RATE) or (type(value) is int and value == round(RATE * CLASSES))


def names_of(arguments: dict[str, Any], wanted: Callable[[Any], bool]) -> set[str]:
    """Names of arguments that are the value, and of attributes of arguments that hold it."""
    found = set()
    for name, value in arguments.items():
        if name in (
            "self",
            "cls",
            "like",
        ):  # an object that has it is handed nothing, and a model of a tensor is not it
            continue
        if wanted(value):
            found.add(name)
        elif not isinstance(value, Tensor | nn.Module | type):
            fields = {key: getattr(value, key, None) for key in getattr(value, "_fields", ())} or getattr(
                value, "__dict__", {}
            )
            found |= {key for key, item in fields.items() if wanted(item)} if isinstance(fields, dict) else set()
    return found


def trips(step: Callable[[], None]) -> dict[str, Trip]:
    """What was handed where during ``step``."""
    wanted = {"embeddings": is_embeddings, "labels": is_labels, "sample_rate": is_rate}
    found = {name: Trip() for name in wanted}

    def profile(frame: FrameType | None, event: str, argument: Any) -> None:
        if event == "return" and frame is not None:
            frame = frame.f_back  # where the reader goes on
        if event not in ("call", "return") or frame is None or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        for name, is_wanted in wanted.items():
            names = names_of(dict(frame.f_locals), is_wanted)
            if names:
                found[name].stop(str(Path(frame.f_code.co_filename).relative_to(PACKAGE)), names)

    sys.setprofile(profile)
    try:
        step()
    finally:
        sys.setprofile(None)
    return found


def main() -> None:
    """Print the three trips."""
    from lightning_pfc import PartialFCModule
    from lightning_pfc.losses import CosFace

    torch.manual_seed(0)
    images, labels = torch.randn(LOCAL, 3, 4, 4), torch.randint(0, CLASSES, (LOCAL,))

    net = nn.Sequential(nn.Flatten(), nn.Linear(48, DIM))
    module = PartialFCModule(
        backbone=net, num_classes=CLASSES, embedding_dim=DIM, neck="none", input_size=4, sample_rate=RATE,
        loss=CosFace(),
    )  # fmt: skip
    module.log = lambda *args, **options: None  # type: ignore[method-assign,assignment]
    module(images)
    module.head.to("cpu")

    def step() -> None:
        module.training_step((images, labels), 0)

    for name, trip in trips(step).items():
        print(f"{name}: {trip}")
        if "-v" in sys.argv:
            print("   ", " -> ".join(trip.stays))
            print("   ", ", ".join(sorted(trip.names)))


if __name__ == "__main__":
    main()
