"""Thresholds for a rate of false accepts, with intervals that hold on other identities."""

from __future__ import annotations

from lightning_pfc.runs.thresholds import NotCalibratedError, Threshold, Thresholds

__all__ = ["NotCalibratedError", "Threshold", "Thresholds"]
