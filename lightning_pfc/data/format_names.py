"""Formats of data sets and bounds of pictures, for commands that must not import the readers."""

from __future__ import annotations

READABLE = ("folder", "huggingface", "list", "parquet", "recordio", "webdataset")
WRITABLE = ("recordio", "folder", "list", "parquet", "webdataset", "huggingface")

MOST_PIXELS = 1 << 27  # that max_pixels may be: Pillow refuses larger pictures
MAX_PIXELS = 1 << 24  # decoded; a picture of 4096 x 4096. A damaged header must not fill the memory
