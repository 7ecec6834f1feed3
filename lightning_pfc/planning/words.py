"""Names that a plan knows, for the command that must not import torch to list them."""

from __future__ import annotations

OPTIMIZERS = ("sgd", "adamw", "adagrad", "torch-sgd", "torch-adamw")
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
PRECISIONS = ("auto", "float32", "tf32", "bfloat16", "float16", "float16x3")
