"""The errors of :mod:`lightning_pfc.data.errors`, under the name that they had before."""

from lightning_pfc.data.errors import (
    BrokenImageError,
    FormatError,
    MissingLibraryError,
    TooManyBrokenImagesError,
    missing_library,
)

__all__ = ["BrokenImageError", "FormatError", "MissingLibraryError", "TooManyBrokenImagesError", "missing_library"]
