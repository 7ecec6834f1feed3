"""Which tensors have a row per class: said once, on the tensor, by whoever makes it."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_pfc.distributed.comm import Comm
from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.distributed.stated_rows import warn_of_one_ranks_file
from lightning_pfc.names.renamed import warn_renamed

_ATTRIBUTE = "class_rows"


@dataclass(frozen=True, eq=False)
class GivenRows:
    """The rows of a gradient in COO layout as its head made it: ascending, each once but for padding.

    Autograd puts such a gradient into ``.grad`` without saying so, and a GPU would have to be waited for to see it.

    Attributes:
        index: (K,) int64, the very storage that the gradient's row numbers are in.
        num_real: () int64 tensor, how many leading entries are real; what follows is zeros. None for all.
        is_every: whether these are all rows of the tensor.
        kernels: which operations ran as kernels when it was made; None: those that are found good.
    """

    index: Tensor
    num_real: Tensor | None
    is_every: bool
    kernels: Container[str] | None


@dataclass(eq=False)
class ClassRows:
    """What head, optimizer and checkpoint know of a tensor whose first dimension is classes.

    Attributes:
        shard: which classes its rows are.
        comm: the ranks that have the others; None of a tensor on its way into a checkpoint.
        files: where a head keeps the rows, or None for memory; read it by
            :func:`~lightning_pfc.storage.row_files.row_files`.
        is_sparse: whether its head gives it gradients in COO layout, of the sampled rows alone.
        update: what steps its rows inside the backward pass, or None; read it by
            :func:`~lightning_pfc.optim.row_update.row_update`.
        given: the rows of the gradient in COO layout that its head made last, or None.
        stepped: the first row of the dense gradient that an optimizer last took, as every reduction had left it.
    """

    shard: ClassShard
    comm: Comm | None = None
    files: Any = None  # of whoever sets it: nothing here knows an optimizer or a file
    is_sparse: bool = False
    update: Any = None
    given: GivenRows | None = None
    stepped: Tensor | None = None
    _sparse_for: int | None = None

    def be_sparse_for(self, param: Tensor, holder: object) -> None:
        """Give row-sparse gradients until ``holder`` is gone, unless another has asked for them since."""
        self.is_sparse = True
        if self._sparse_for != id(holder):
            self._sparse_for = id(holder)
            # The finalizer holds the parameter as long as its holder does; a weak reference would forbid swap_tensors.
            weakref.finalize(holder, _be_dense, param, id(holder)).atexit = False

    def __reduce__(self) -> Any:
        """Nothing of it is in a file: what is read from one belongs to no head, and is read without this class."""
        if self.shard.world_size > 1:
            warn_of_one_ranks_file(self.shard)
        return OrderedDict, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return OrderedDict()  # as in a file, where nothing is written


def declare_class_rows(tensor: Tensor, shard: ClassShard, comm: Comm | None = None) -> ClassRows:
    """Say that row i of ``tensor`` is class ``shard.start + i``; what else is known of it stays.

    It is an attribute of this very object: a view or a copy has none, and neither has what is read from a file.
    """
    record = class_rows(tensor)
    if record is None:
        record = ClassRows(shard)
        setattr(tensor, _ATTRIBUTE, record)
    record.shard, record.comm = shard, comm
    return record


def class_rows(tensor: Tensor | None) -> ClassRows | None:
    """What was declared of ``tensor``; None of one without a row per class."""
    record = getattr(tensor, _ATTRIBUTE, None)
    if not isinstance(record, ClassRows):
        return None
    if "row_sparse" in vars(tensor):
        warn_renamed("param.row_sparse", "lightning_pfc.distributed.class_rows.class_rows(param).is_sparse", 4)
        record.is_sparse = bool(vars(tensor).pop("row_sparse"))
    return record


def is_row_sparse(tensor: Tensor | None) -> bool:
    """Whether an optimizer of this package holds ``tensor``, so that its gradient is to be row-sparse; None: no."""
    record = class_rows(tensor)
    return record is not None and record.is_sparse


def _be_dense(param: Tensor, holder: int) -> None:
    record = class_rows(param)
    if record is not None and record._sparse_for == holder:
        record.is_sparse, record._sparse_for = False, None
