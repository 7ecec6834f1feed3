"""What goes wrong with a checkpoint; without torch, so that every command can catch it."""

from __future__ import annotations


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used, or could not be written; the message names the file and the way out."""
