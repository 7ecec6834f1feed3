"""Starting from what exists: the weights of another run, of a file or of a hub in a module that begins anew."""

from __future__ import annotations

from lightning_pfc.transfer.callback import InitFrom
from lightning_pfc.transfer.class_means import fill_with_class_means
from lightning_pfc.transfer.finetuning import FineTune
from lightning_pfc.transfer.lora import Lora
from lightning_pfc.transfer.means_callback import ClassMeans
from lightning_pfc.transfer.starting import Report, init_from

__all__ = ["ClassMeans", "FineTune", "InitFrom", "Lora", "Report", "fill_with_class_means", "init_from"]
