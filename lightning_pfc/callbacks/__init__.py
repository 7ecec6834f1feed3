"""Callbacks and the logger of the commands; each works in any Trainer."""

from __future__ import annotations

from lightning_pfc.callbacks.csv_log import CSVLogger
from lightning_pfc.callbacks.preemption import Preempted, Preemption
from lightning_pfc.callbacks.progress import ProgressBar
from lightning_pfc.callbacks.replicas import ReplicaCheck
from lightning_pfc.callbacks.run_checkpoint import RunCheckpoint
from lightning_pfc.callbacks.summary import Summary
from lightning_pfc.callbacks.throughput import Throughput
from lightning_pfc.callbacks.time_estimate import TimeEstimate
from lightning_pfc.callbacks.watchdog import Watchdog

__all__ = [
    "CSVLogger",
    "Preempted",
    "Preemption",
    "ProgressBar",
    "ReplicaCheck",
    "RunCheckpoint",
    "Summary",
    "Throughput",
    "TimeEstimate",
    "Watchdog",
]
