"""The gradient of a shard, of which torch's own functions take the norm over all shards."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_pfc.distributed.class_rows import class_rows
from lightning_pfc.optim.rows import is_summed

if TYPE_CHECKING:
    from lightning_pfc.distributed import Comm

_PICK = frozenset({"__getitem__", "select", "take", "index_select", "squeeze"})  # one number, and not one of all
_JOIN = frozenset({"cat", "concat", "concatenate", "hstack", "vstack", "stack"})
_told: set[str] = set()


class ShardGradient(Tensor):
    """A gradient of which the other ranks have the other rows: an ordinary tensor but for its norm.

    ``torch.linalg.vector_norm`` and ``torch._foreach_norm``, of which ``torch.nn.utils.clip_grad_norm_`` and
    ``get_total_norm`` are made, and with them the clipping of Fabric, timm and others, give the norm over all ranks.
    Each is one message of every rank to every rank (1 KiB, on the CPU) and one all-reduce of a number, so all ranks
    have to call it, as they have to call the unscaling of a ``torch.amp.GradScaler``, which finds any rank's overflow.
    Another reduction to one number is over this rank's rows, which is said in a warning.

    May be dense or row-sparse. What is computed from it is an ordinary tensor, but for copies of the same shape.
    """

    comm: Comm

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """As for any tensor, but for what the class says."""
        options = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch._foreach_norm:
                return _norms(*args, **options)
            if func is torch.linalg.vector_norm and _over_everything(args, options):
                return _norms([args[0]], *args[1:2], **options)[0]
            result = func(*args, **options)
            if func is torch._amp_foreach_non_finite_check_and_unscale_:
                _share_overflow(*args[:2])
        return _followed(func, args, result)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A copy is nobody's gradient any more."""
        return plain(self).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled as the tensor that it is: what is on disk belongs to no run."""
        return plain(self).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


def mark_gradient(param: Tensor) -> None:
    """After a backward pass: makes the gradient of a watched parameter a :class:`ShardGradient`."""
    record = class_rows(param)
    comm = None if record is None else record.comm
    if comm is not None and comm.shard_size > 1 and param.grad is not None:
        param.grad = _marked(param.grad, comm)


def plain(tensor: Tensor) -> Tensor:
    """The same memory as an ordinary tensor."""
    if not isinstance(tensor, ShardGradient):
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return Tensor._make_subclass(Tensor, tensor)


def _marked(tensor: Tensor, comm: Comm) -> ShardGradient:
    marked: ShardGradient = Tensor._make_subclass(ShardGradient, tensor)
    marked.comm = comm
    return marked


def _over_everything(args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    return len(args) <= 2 and not {"dim", "keepdim", "out"} & set(options)


def _norms(tensors: Sequence[Tensor], ord: float = 2.0, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Norms of several tensors, those of shards over all ranks."""
    order = float(ord)
    found = [torch.linalg.vector_norm(_values(tensor), order, dtype=dtype) for tensor in tensors]
    shards = [index for index, tensor in enumerate(tensors) if isinstance(tensor, ShardGradient)]
    if not shards:
        return found
    comm: Comm = tensors[shards[0]].comm  # type: ignore[attr-defined]
    comm.agreement.exchange("norm over the shards of a gradient", [len(shards)])
    for index in shards:
        found[index] = _over_ranks(found[index], order, comm)
    return found


def _share_overflow(tensors: Sequence[Tensor], found: Tensor) -> None:
    """What a loss scaler finds in one rank's shard counts on all: who stepped alone would go apart from the others.

    Gradients that DDP has averaged overflow on every rank at once, those of a shard on one.
    """
    comm: Comm | None = next((each.comm for each in tensors if isinstance(each, ShardGradient)), None)
    if comm is not None:
        comm.agreement.exchange("overflow in the gradients, by a loss scaler", [])
        dist.all_reduce(found, dist.ReduceOp.MAX, group=comm.group)


def _over_ranks(norm: Tensor, order: float, comm: Comm) -> Tensor:
    if order in (float("inf"), float("-inf")):
        dist.all_reduce(norm, dist.ReduceOp.MAX if order > 0 else dist.ReduceOp.MIN, group=comm.shard_group)
        return norm
    power = 1.0 if order == 0.0 else order
    total = norm.to(torch.promote_types(norm.dtype, torch.float32)).pow(power)
    dist.all_reduce(total, group=comm.shard_group)
    return total.pow(1.0 / power).to(norm.dtype)


def _values(tensor: Tensor) -> Tensor:
    if not tensor.is_sparse:
        return tensor
    return (tensor if is_summed(tensor) else tensor.coalesce())._values()


def _followed(func: Any, args: tuple[Any, ...], result: Any) -> Any:
    """What has all of the shard's numbers, or one for each row, is of the shard too; what is made of all is told."""
    first, name = args[0] if args else None, getattr(func, "__name__", "")
    if type(result) is not Tensor or not result.is_floating_point():
        return result
    if name in _JOIN and isinstance(first, list | tuple) and any(isinstance(each, ShardGradient) for each in first):
        _warn(name)
    if not isinstance(first, ShardGradient):
        if result.dim() == 0 and any(isinstance(each, ShardGradient) for each in args):  # einsum, and the like
            _warn(name)
        return result
    if result.is_sparse == first.is_sparse and (
        result.shape == first.shape or (not result.is_sparse and result.numel() == first.numel())
    ):
        return _marked(result, first.comm)
    if result.dim() and (name in ("values", "_values") or result.shape[:1] == first.shape[:1]):
        return _marked(result, first.comm)
    if result.dim() == 0 and first.numel() > 1 and name not in _PICK and not name.startswith("new_"):
        _warn(name)
    return result


def _warn(name: str) -> None:
    if name in _told:
        return
    _told.add(name)
    warnings.warn(
        f"{name}() of the gradient of a PartialFC head is taken over this rank's shard only: a norm made of it differs "
        "from rank to rank and must not scale what is replicated. torch.nn.utils.get_total_norm and clip_grad_norm_ "
        "know the other shards.",
        stacklevel=4,
    )
