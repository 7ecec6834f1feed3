"""Whether an optimizer looks at one row at a time: it is tried on small parameters, whole and in parts."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_pfc.distributed import ClassShard, Comm
from lightning_pfc.distributed.class_rows import declare_class_rows
from lightning_pfc.optim.foreign.shard import RowShard, row_shard
from lightning_pfc.optim.foreign.whole import WholeStep, family

SIZES = ((24, 20), (288, 136))  # small, and beyond the sizes at which optimizers begin to factor their moments
_STEPS = 3
_OTHERS = (7, 5, 3, 3)  # shape of a replicated parameter, as many of its dimensions as there are

Form = Literal["whole", "part", "sharded"]


class NeedsTheWhole(RuntimeError):
    """Something as large as the whole parameter was made on one rank."""


@dataclass
class _Toy:
    param: nn.Parameter
    start: Tensor
    gradients: Tensor  # (steps, *shape)
    along: Tensor  # (steps, rows, 1): how much of a row's gradient along the row is left
    has_classes: bool  # whether it stands for a shard

    def set_gradient(self, step: int) -> None:
        # depends on the weight, as a real one does: an optimizer may go somewhere and look
        weight = self.param.detach()
        gradient = self.gradients[step] + 0.3 * weight
        if weight.dim() == 2:  # of centers it is orthogonal to them, which some optimizers look for
            unit = nn.functional.normalize(weight)
            gradient -= (1 - self.along[step]) * (gradient * unit).sum(1, keepdim=True) * unit
        self.param.grad = gradient


@dataclass(frozen=True)
class Outcome:
    """What an optimizer made of the toys: their values after some steps, and where its state has an entry per row."""

    values: list[Tensor]
    moved: list[float]
    row_keys: dict[str, bool]

    def distance(self, other: Outcome, rows: slice | None = None) -> float:
        """The largest difference of a parameter, relative to how far it moved; ``other`` may be rows of this."""
        worst = 0.0
        for value, others, moved in zip(self.values, other.values, self.moved, strict=True):
            own = value[rows] if rows is not None and value.shape != others.shape else value
            difference = float((own.double() - others.double()).norm())
            worst = max(worst, difference / max(moved * (own.numel() / value.numel()) ** 0.5, 1e-12))
        return worst if worst == worst else float("inf")


class Trial:
    """Runs a copy of an optimizer, with its options, on parameters of its own. Nothing real is read or written.

    Args:
        optimizer: what to try; it holds at least one shard.
        comm: the ranks that have the other rows.
        size: rows (about) and width of the whole toy.
    """

    def __init__(self, optimizer: Optimizer, comm: Comm, size: tuple[int, int]) -> None:
        self.optimizer, self.comm, self.width = optimizer, comm, size[1]
        even = all(shard.rows.num_classes % comm.shard_size == 0 for shard in _shards(optimizer))
        count = -(-max(size[0], 3 * comm.shard_size) // comm.shard_size) * comm.shard_size - (0 if even else 1)
        self.rows = ClassShard(count, comm.shard_rank, comm.shard_size)

    def run(self, form: Form, seed: int = 0, noise: float = 0.0) -> Outcome:
        """Some steps on whole toys, on this rank's part of them alone, or on the parts as shards (a collective).

        Raises:
            Exception: of whatever the optimizer cannot do with them.
        """
        toys, tried = self._copy(form)
        if noise:
            generator = torch.Generator().manual_seed(7)
            for toy in toys:
                flip = torch.randn(toy.gradients.shape, generator=generator).to(toy.gradients.device)
                toy.gradients *= 1 + noise * flip
        steps = 0

        def closure() -> Tensor:
            for toy in toys:
                toy.set_gradient(steps)
            return torch.tensor(1.0)

        with _on_its_own(seed), _refused_size(self.rows.num_classes * self.width if form == "sharded" else None):
            for steps in range(_STEPS):  # noqa: B007 # read by the closure
                _step(tried, closure, form == "sharded")
        values = [toy.param.detach() for toy in toys]
        moved = [float((toy.param.detach().double() - toy.start.double()).norm()) for toy in toys]
        return Outcome(values, moved, self._row_keys(tried, toys))

    @property
    def own(self) -> slice:
        """Which rows of the whole a part has."""
        return slice(self.rows.start, self.rows.stop)

    def _copy(self, form: Form) -> tuple[list[_Toy], Optimizer]:
        memo: dict[int, Any] = {}
        toys: list[_Toy] = []
        for member in family(self.optimizer):
            memo[id(member.state)] = defaultdict(dict)
            for group in member.param_groups:
                if id(group["params"]) not in memo:
                    memo[id(group["params"])] = self._toys(group["params"], form, memo, toys)
        tried = _copied(self.optimizer, memo)
        for member in family(tried):
            for group in member.param_groups:
                _set_lr(group)
        return toys, tried

    def _toys(self, params: list[nn.Parameter], form: Form, memo: dict[int, Any], toys: list[_Toy]) -> list[Tensor]:
        """Small stand-ins of the parameters of a group: of each shard, and of others one for each number of dims."""
        made: list[Tensor] = []
        others: dict[int, Tensor] = {}
        for param in params:
            sharded = row_shard(param) is not None
            if not sharded and param.dim() in others:
                memo[id(param)] = others[param.dim()]
                continue
            toys.append(self._toy(param, sharded, form, len(toys)))
            memo[id(param)] = toys[-1].param
            made.append(toys[-1].param)
            if not sharded:
                others[param.dim()] = toys[-1].param
        return made

    def _toy(self, param: Tensor, sharded: bool, form: Form, number: int) -> _Toy:
        count = self.rows.num_classes if sharded else _OTHERS[0]
        shape = (count, self.width)[: param.dim()] if sharded else _OTHERS[: param.dim()]
        generator = torch.Generator().manual_seed(number)
        start = torch.randn(shape, generator=generator) * 0.05
        gradients = torch.randn((_STEPS, *shape), generator=generator)
        along = torch.ones(_STEPS, count, 1)
        if sharded:  # parts of different lengths, orthogonal to the rows (nearly) in all, some, and none of them
            gradients *= torch.linspace(0.2, 3.0, count).view(-1, *[1] * (len(shape) - 1))
            along[0], along[1, : count // 2] = 0.05, 0.05
        rows = self.own if sharded and form != "whole" else None
        if rows is not None:
            start, gradients, along = start[rows], gradients[:, rows], along[:, rows]
        start, gradients, along = (t.to(param.device, copy=True) for t in (start, gradients, along))
        made = nn.Parameter(start.clone(), requires_grad=True)
        if sharded and form == "sharded":
            declare_class_rows(made, self.rows, self.comm)
        return _Toy(made, start, gradients, along, sharded)

    def _row_keys(self, tried: Optimizer, toys: list[_Toy]) -> dict[str, bool]:
        found: dict[str, bool] = {}
        for member in family(tried):
            for param in (toy.param for toy in toys if toy.has_classes):
                for key, value in member.state.get(param, {}).items():
                    has_rows = any(item.dim() and item.shape[0] == param.shape[0] for item in _tensors(value))
                    found[key] = found.get(key, False) or has_rows
        return found


def _shards(optimizer: Optimizer) -> list[RowShard]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [shard for param in params if (shard := row_shard(param)) is not None]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _step(tried: Optimizer, closure: Callable[[], Tensor], sharded: bool) -> None:
    takes_closure = "closure" in inspect.signature(tried.step).parameters
    arguments: dict[str, Any] = {"closure": closure} if takes_closure else {}
    closure()  # one that takes it need not call it
    if not sharded:
        tried.step(**arguments)
        return
    whole = WholeStep(tried)
    whole.enter()
    try:
        tried.step(**whole.arguments((), arguments)[1])
    finally:
        whole.leave()


def _copied(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """A copy that shares nothing: parameters and state as ``memo`` says, no hooks, no patched step of a scheduler."""
    made: Optimizer = object.__new__(type(optimizer))
    memo[id(optimizer)] = made
    for value in vars(optimizer).values():
        if isinstance(value, Optimizer):
            memo[id(value)] = _copied(value, memo)
    for name, value in vars(optimizer).items():
        if name == "step":
            continue
        is_hooks = name.startswith("_optimizer_") and isinstance(value, dict)
        made.__dict__[name] = OrderedDict() if is_hooks else copy.deepcopy(value, memo)
    return made


def _set_lr(group: dict[str, Any]) -> None:
    """A rate at which something moves: in a warm-up it may be zero."""
    lr = group.get("lr")
    if isinstance(lr, Tensor):
        lr.fill_(0.01)
    elif isinstance(lr, int | float):
        group["lr"] = 0.01


_trying: list[bool] = []


def is_trying() -> bool:
    """Whether a step that is taken now is one of a trial."""
    return bool(_trying)


@contextmanager
def _on_its_own(seed: int) -> Iterator[None]:
    _trying.append(True)
    try:
        with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
            torch.manual_seed(seed)
            yield
    finally:
        _trying.pop()


class _SizeLimit(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in _tensors(result):
            if type(item) is Tensor and not item.is_meta and item.numel() >= self.limit:
                raise NeedsTheWhole(f"{func} would gather the whole parameter on every rank")
        return result


@contextmanager
def _refused_size(limit: int | None) -> Iterator[None]:
    if limit is None:
        yield
        return
    with _SizeLimit(limit):
        yield
