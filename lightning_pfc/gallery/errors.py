"""What can go wrong with a gallery; each message is one line that names the way out."""

from __future__ import annotations


class GalleryError(ValueError):
    """A gallery cannot do what was asked."""


class NotAGalleryError(GalleryError):
    """The path holds no gallery, a damaged one, or one of a newer version."""


class OtherModelError(GalleryError):
    """Vectors of one model were to meet vectors of another."""


class UnknownIdentityError(GalleryError):
    """No identity has this name."""


class IdentityExistsError(GalleryError):
    """An identity of this name is there already."""


class GalleryBusyError(GalleryError):
    """Another process holds the gallery, or writes to it for too long."""


class GalleryFullError(GalleryError):
    """The disk is full; what was asked for did not happen, and nothing else was lost."""
