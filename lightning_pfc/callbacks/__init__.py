"""Callbacks and the logger of the commands; each works in any Trainer."""

from __future__ import annotations

from lightning_pfc.callbacks.csv_log import CSVLogger
from lightning_pfc.callbacks.progress import ProgressBar
from lightning_pfc.callbacks.throughput import Throughput

__all__ = ["CSVLogger", "ProgressBar", "Throughput"]
