"""Thresholds by name, which lie in runs and exports."""

from lightning_pfc.runs.thresholds import Kind, NotCalibratedError, Threshold, Thresholds

__all__ = ["Kind", "NotCalibratedError", "Threshold", "Thresholds"]
