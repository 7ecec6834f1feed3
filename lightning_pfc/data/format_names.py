"""Names of the formats of data sets, for commands that must not import the readers."""

from __future__ import annotations

READABLE = ("folder", "huggingface", "list", "parquet", "recordio", "webdataset")
WRITABLE = ("recordio", "folder", "list", "parquet", "webdataset", "huggingface")
