"""File formats of labelled images, all behind one indexed interface: ``EncodedImages``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_pfc.data.errors import (
    BrokenImageError,
    FormatError,
    MissingLibraryError,
    TooManyBrokenImagesError,
)
from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.formats.folder import FolderImages
from lightning_pfc.data.formats.huggingface import HuggingFaceImages
from lightning_pfc.data.formats.lists import ListImages
from lightning_pfc.data.formats.parquet import ParquetImages
from lightning_pfc.data.formats.readers import open_images
from lightning_pfc.data.formats.recordio_images import RecordIOImages
from lightning_pfc.data.formats.recordio_writer import RecordWriter
from lightning_pfc.data.formats.subset import Subset
from lightning_pfc.data.formats.webdataset import WebDatasetImages
from lightning_pfc.data.pictures.decoding import decode
from lightning_pfc.names.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_pfc.data.formats.decoded import DecodedImages

__all__ = [
    "BrokenImageError",
    "DecodedImages",
    "EncodedImages",
    "FolderImages",
    "FormatError",
    "HuggingFaceImages",
    "ListImages",
    "MissingLibraryError",
    "ParquetImages",
    "RecordIOImages",
    "RecordWriter",
    "Subset",
    "TooManyBrokenImagesError",
    "WebDatasetImages",
    "decode",
    "open_images",
]

# pictures that a service decodes need no torch
__getattr__, __dir__ = lazy_names(__name__, {"DecodedImages": "lightning_pfc.data.formats.decoded"})
