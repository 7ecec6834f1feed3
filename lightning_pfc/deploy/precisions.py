"""What an export can compute in."""

from __future__ import annotations

PRECISIONS = ("float32", "float16", "bfloat16", "int8")
