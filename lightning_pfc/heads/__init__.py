"""The sharded head: a thin module over a functional core of gather, sample, cosine, margin, cross entropy."""

from lightning_pfc.heads.partial_fc import PartialFC, iter_heads

__all__ = ["PartialFC", "iter_heads"]
