"""Galleries: enrolled identities, kept in a database that loses nothing, searched exactly in memory."""

from lightning_pfc.gallery.errors import (
    GalleryBusyError,
    GalleryError,
    GalleryFullError,
    IdentityExistsError,
    NotAGalleryError,
    OtherModelError,
    UnknownIdentityError,
)
from lightning_pfc.gallery.gallery import Gallery
from lightning_pfc.gallery.records import GalleryInfo, Identity, Match, ModelRecord, NewPicture, Photos

__all__ = [
    "Gallery",
    "GalleryBusyError",
    "GalleryError",
    "GalleryFullError",
    "GalleryInfo",
    "Identity",
    "IdentityExistsError",
    "Match",
    "ModelRecord",
    "NewPicture",
    "NotAGalleryError",
    "OtherModelError",
    "Photos",
    "UnknownIdentityError",
]
