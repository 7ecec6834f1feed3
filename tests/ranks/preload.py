"""What the process imports that ranks are forked from; ranks need not go over it for garbage, nor copy its pages."""

from __future__ import annotations

import importlib

from lightning_pfc.commands.imports import large_imports

with large_imports():
    for name in ("torch", "torchvision", "timm", "lightning.pytorch", "lightning_pfc.module"):
        importlib.import_module(name)
