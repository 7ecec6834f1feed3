"""Which errors of a command are said in one line, and which are shown with the place where they happened."""

from __future__ import annotations

import sys

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException


def cause(error: BaseException) -> BaseException:
    """What went wrong inside a constructor that Hydra called."""
    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def is_the_users(error: BaseException) -> bool:
    """Whether a message says enough: of values, files, checkpoints, Trainers and numbers that diverged; else not."""
    said: list[type[BaseException]] = [ValueError, TypeError, OSError, ImportError, OmegaConfBaseException]
    said.append(FloatingPointError)  # of a head whose embeddings are not finite
    if "torch" in sys.modules:  # before, no checkpoint was read
        from lightning_pfc.checkpoint.errors import CheckpointError

        said.append(CheckpointError)
    if "lightning" in sys.modules:  # of a Trainer that cannot be: no such device, words that exclude others
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        said.append(MisconfigurationException)
    return isinstance(cause(error), tuple(said))
