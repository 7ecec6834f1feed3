"""Row-sparse optimizers, parameter groups and learning rate schedules."""

from lightning_pfc.optim.adamw import SparseAdamW
from lightning_pfc.optim.groups import parameter_groups
from lightning_pfc.optim.lars import LARS
from lightning_pfc.optim.rowwise_adagrad import RowWiseAdagrad
from lightning_pfc.optim.sgd import SparseSGD

__all__ = ["LARS", "RowWiseAdagrad", "SparseAdamW", "SparseSGD", "parameter_groups"]
