"""A program: trains by the words it is given, on a machine that seems to have Apple's GPU."""

from __future__ import annotations

import sys

from lightning.fabric.accelerators.mps import MPSAccelerator

import lightning_pfc


def main() -> None:
    MPSAccelerator.is_available = staticmethod(lambda: True)  # type: ignore[assignment, method-assign]
    lightning_pfc.train(*sys.argv[1:])
