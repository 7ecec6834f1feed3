"""Decoding and augmentation by NVIDIA DALI: the plain loader's batches, made by another library.

Which images make a batch, and every random number, stay what they are without DALI: both are functions of (seed, epoch,
index) that are computed here and given to DALI as arguments of each image. So nothing depends on DALI's own readers,
shuffling or random numbers, and an epoch goes on where it was left.
"""

from __future__ import annotations

from lightning_pfc.data.dali.choice import Dali, has_dali, make_loader
from lightning_pfc.data.dali.loader import DaliLoader

__all__ = ["Dali", "DaliLoader", "has_dali", "make_loader"]
