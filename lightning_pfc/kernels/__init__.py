"""Small operations of the head and of its optimizers, each in plain torch and as a Triton kernel for a GPU."""

import lightning_pfc.kernels.planted  # noqa: F401  inputs to try them on, and the judge of what was found
from lightning_pfc.kernels.exponentials import exponentials_
from lightning_pfc.kernels.targets import target_cosines, target_gradients_
from lightning_pfc.kernels.unit_rows import gather_normalize_round

__all__ = ["exponentials_", "gather_normalize_round", "target_cosines", "target_gradients_"]
