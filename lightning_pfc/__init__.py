"""Partial FC for PyTorch Lightning: margin-softmax heads whose class centers are split over all ranks."""

from __future__ import annotations

__version__ = "0.1.0"
