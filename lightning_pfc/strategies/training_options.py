"""What a Trainer and its data say that changes the numbers of a run: kept in checkpoints, compared when one goes on."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

_OF_TRAINER = (
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "overfit_batches",
    "limit_train_batches",
)
_BATCH = "global batch (batch size times ranks)"


def training_options(trainer: Any, clip: str) -> dict[str, Any]:
    """Plain values by the words that set them.

    A data module or module adds its own in ``training_options``, a mapping of words to plain values. Data modules
    without one are asked for the batch size of their loader, once there is one.

    Args:
        trainer: that trains.
        clip: of the strategy.
    """
    found: dict[str, Any] = {f"trainer.{name}": _plain(getattr(trainer, name, None)) for name in _OF_TRAINER}
    found["trainer.sync_batchnorm"] = trainer.strategy._layer_sync is not None
    found["trainer.strategy.clip"] = clip
    if (batch := _loader_batch(trainer)) is not None:
        found[_BATCH] = batch * trainer.world_size
    for owner in (getattr(trainer, "datamodule", None), trainer.lightning_module):
        own = getattr(owner, "training_options", None)
        if isinstance(own, Mapping):
            found |= {str(word): _plain(value) for word, value in own.items()}
    return found


def differing_options(before: Any, now: Mapping[str, Any]) -> list[str]:
    """Those that are others than in the checkpoint. What this run says is in force.

    Args:
        before: in the checkpoint; what only one of both has is not compared: it may be of another version.
        now: of this run.
    """
    if not isinstance(before, Mapping):
        return []
    return [
        f"{word}: {before[word]} in the checkpoint, {now[word]} in this run, in force: this run's"
        for word in sorted(before.keys() & now.keys())
        if before[word] != now[word]
    ]


def _loader_batch(trainer: Any) -> int | None:
    """Pictures per rank and step, as the loader tells."""
    loader = trainer.train_dataloader
    for owner in (loader, getattr(loader, "batch_sampler", None)):
        if isinstance(size := getattr(owner, "batch_size", None), int):
            return size
    return None


def _plain(value: Any) -> Any:
    """Numbers, words and lists of them as they are; of anything else what it calls itself, without its address."""
    if isinstance(value, Enum):
        return _plain(value.value)
    for kind in (bool, int, float, str):  # not their subclasses, which only a pickle could name
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    text = repr(value)
    if " at 0x" not in text:
        return text
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
