"""What a step makes a device do: launches, bytes and floating-point operations, counted operator by operator.

The operators need not compute anything: on fake or meta tensors a step of a million classes is counted in a second on a
machine without a GPU. Views and host scalars are left out, since a device sees nothing of them. An operation of this
package counts as many launches as its kernels take; one of torch counts one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lightning_pfc.kernels.library import NAMESPACE, OPERATIONS

# make room or look at a tensor's size, and start nothing
_NOTHING = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "set_", "resize_",
    "record_stream", "lift_fresh", "_reshape_alias", "sparse_coo_tensor", "_sparse_coo_tensor_unsafe",
    "_sparse_coo_tensor_with_dims_and_tensors", "_coalesced_", "_nnz", "_indices", "_values", "is_coalesced",
    "_has_same_storage_numel", "is_same_size", "sym_size", "sym_stride", "sym_numel", "result_type",
    "device", "scalar_tensor", "_validate_sparse_coo_tensor_args", "sparse_resize_", "_sparse_coo_tensor_with_dims",
}  # fmt: skip
# read the rows that an index names, and not the whole of their first argument
_GATHERS = {"index_select", "gather", "index", "embedding", "take"}
# write the rows that an index names, and read what was there where they add
_SCATTERS = {"index_add_", "index_copy_", "index_put_", "scatter_", "scatter_add_", "index_add", "index_fill_"}
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}


class Work(NamedTuple):
    """One operator that a device sees.

    Attributes:
        name: of the operator.
        launches: of kernels.
        bytes: read and written, each once.
        flops: of matrix products.
        dtype: of a product's operands; None where there is none.
        waits: whether the host waits for the device.
    """

    name: str
    launches: int
    bytes: int
    flops: int = 0
    dtype: torch.dtype | None = None
    waits: bool = False


class WorkLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While open, lists what this thread makes a device do.

    Args:
        device_type: of the tensors that count; None: of all but those on the CPU.

    Attributes:
        works: in order.
    """

    def __init__(self, device_type: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device_type = device_type
        self.works: list[Work] = []

    @property
    def launches(self) -> int:
        """Of kernels, in all."""
        return sum(work.launches for work in self.works)

    @property
    def bytes(self) -> int:
        """Read and written, in all."""
        return sum(work.bytes for work in self.works)

    @property
    def flops(self) -> int:
        """Of matrix products, in all."""
        return sum(work.flops for work in self.works)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        work = self._describe(func, args, kwargs, result)
        if work is not None:
            self.works.append(work)
        return result

    def _describe(self, func: Any, args: Any, kwargs: Any, result: Any) -> Work | None:
        name = func._schema.name.partition("::")[2]
        read = {key: value for key, value in kwargs.items() if key != "out"}  # written only, and among the results
        given = [leaf for leaf in tree_leaves((args, read)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if func.is_view or name in _NOTHING or not any(self._counts(x) for x in (*given, *made)):
            return None
        if func.namespace == NAMESPACE:
            return Work(name, OPERATIONS[name].count_launches(args), operation_bytes(name, args, made))
        flops = int(flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)) if _counted(func) else 0
        dtype = given[-1].dtype if flops else None
        return Work(name, 1, _bytes(name, given, made), flops, dtype, name in _WAITS)

    def _counts(self, tensor: Tensor) -> bool:
        kind = tensor.device.type
        return kind != "cpu" if self.device_type is None else kind == self.device_type


def _counted(func: Any) -> bool:
    return func.overloadpacket in flop_registry


def size_of(*tensors: Tensor | None) -> int:
    """Bytes of some tensors."""
    return sum(x.numel() * x.element_size() for x in tensors if x is not None and x.layout == torch.strided)


def _bytes(name: str, given: Sequence[Tensor], made: Sequence[Tensor]) -> int:
    if name in _GATHERS:
        return size_of(*given[1:]) + 2 * size_of(*made)
    if name in _SCATTERS:
        return size_of(*given[1:]) + (2 if "add" in name else 1) * size_of(given[-1])
    return size_of(*given) + size_of(*made)


Formula = Callable[[Sequence[Any], Sequence[Tensor]], int]
_FORMULAS: dict[str, Formula] = {}


def operation_bytes(name: str, args: Sequence[Any], made: Sequence[Tensor]) -> int:
    """Bytes that an operation of this package reads and writes: of big tensors the rows that it touches."""
    return _FORMULAS[name](args, made)


def _formula(name: str) -> Callable[[Formula], Formula]:
    def register(formula: Formula) -> Formula:
        _FORMULAS[name] = formula
        return formula

    return register


@_formula("gather_normalize_round")
def _unit_rows(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    weight, index = args[0], args[1]
    return int(made[0].numel() * weight.element_size()) + size_of(index, *made)


@_formula("project_rows_")
def _project_rows(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    grad, weight, index = args
    return 2 * size_of(grad) + int(grad.numel() * weight.element_size()) + size_of(index)


@_formula("exponentials_")
def _exponentials(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    scores, out, _, _, targets, offsets, _ = args
    return size_of(scores, out, targets, offsets, *made)


@_formula("target_cosines")
def _target_cosines(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    x, weight, _, targets = args[:4]
    return size_of(x, targets, *made) + int(targets.numel() * weight.shape[1] * weight.element_size())


@_formula("target_gradients_")
def _target_gradients(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    x, weight, _, targets, grad, x_grad, row_grad, *_ = args
    entries, width = int(targets.numel()), int(weight.shape[1])
    total = 2 * size_of(targets, grad)
    if x_grad is not None:
        total += 2 * size_of(x_grad) + entries * width * weight.element_size()
    if row_grad is not None:
        total += size_of(x) + 2 * entries * width * row_grad.element_size() + entries * 8
    return total


@_formula("link_equal")
def _link_equal(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    return size_of(*args, *made)


def _every_tensor(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    return size_of(*(x for x in args if isinstance(x, Tensor)), *made)


_VECTORS = ("unit_embeddings", "unit_embeddings_backward", "bad_rows", "own_columns", "pack_sums", "unpack_sums")
_FORMULAS.update(dict.fromkeys((*_VECTORS, "begin_gradients", "margin_logits"), _every_tensor))


def _update(tensors: Sequence[Tensor | None], grad: Tensor, index: Tensor | None) -> int:
    """Rows of the tensors read and written, the gradient read."""
    count = grad.shape[0]
    rows = sum(2 * count * (x[0].numel() if x.dim() > 1 else 1) * x.element_size() for x in tensors if x is not None)
    return rows + size_of(grad, index)


@_formula("sgd_rows_")
def _sgd(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    return _update(args[:3], args[3], args[4])


@_formula("adamw_rows_")
def _adamw(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    return _update(args[:6], args[6], args[7])


@_formula("adagrad_rows_")
def _adagrad(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    return _update(args[:2], args[2], args[3])


@_formula("draw_uniform")
def _draw(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    all_labels, labels, _, classes = args[:4]
    length, table = int(args[9]), -(-int(classes) // 8)
    # the bits are cleared, looked up and set for every candidate (a word each), and those of this rank read twice
    return size_of(all_labels, labels, *made) + 3 * table + 3 * 8 * length
