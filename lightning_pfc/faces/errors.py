"""What can be wrong with a photo of faces."""

from __future__ import annotations


class NoFaceError(ValueError):
    """A photo in which no face was found."""
