"""Small operations of the head and of its optimizers, each in plain torch and as a Triton kernel for a GPU."""

import lightning_pfc.kernels.planted  # noqa: F401  inputs to try them on, and the judge of what was found
from lightning_pfc.kernels.exponentials import exponentials_
from lightning_pfc.kernels.margins import margin_logits
from lightning_pfc.kernels.sums import begin_gradients, pack_sums, unpack_sums
from lightning_pfc.kernels.targets import link_equal, target_cosines, target_gradients_
from lightning_pfc.kernels.unit_embeddings import bad_rows, own_columns, unit_embeddings
from lightning_pfc.kernels.unit_rows import NORM_EPS, gather_normalize_round, project_rows_

__all__ = [
    "NORM_EPS", "bad_rows", "begin_gradients", "exponentials_", "gather_normalize_round", "link_equal", "margin_logits",
    "own_columns", "pack_sums", "project_rows_", "target_cosines", "target_gradients_", "unit_embeddings",
    "unpack_sums",
]  # fmt: skip
