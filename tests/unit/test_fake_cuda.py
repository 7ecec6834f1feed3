"""The GPU path without a GPU: the head's functions on fake CUDA tensors.

``FakeTensorMode`` without a ``ShapeEnv`` runs every operator on shapes, dtypes and devices alone. It raises where a
shape depends on values (``nonzero``, ``unique``, a boolean index), where a value is read (``item``, ``if tensor``) and
where devices are mixed. Copies between host and device it lets through, so ``NoWaiting`` looks for them. Autograd's
engine wants a real device, so forward and backward functions are called directly.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_pfc import PartialFC, losses
from lightning_pfc.distributed import ClassShard, Comm, collectives
from lightning_pfc.distributed.class_rows import class_rows, declare_class_rows
from lightning_pfc.heads import sampling
from lightning_pfc.heads.sampling import Uniform
from lightning_pfc.heads.softmax.kept_softmax import _KeptSoftmax
from lightning_pfc.heads.softmax.streamed import _StreamedSoftmax
from lightning_pfc.optim import RowWiseAdagrad, SparseAdamW, SparseSGD

CUDA = torch.device("cuda", 0)
BATCH, DIM, CLASSES = 24, 16, 1000
LOSSES = [getattr(losses, name)() for name in losses.loss_names() if name != "MarginWarmup"] + [
    losses.MarginWarmup(loss=losses.ArcFace()),
    losses.NormFace(label_smoothing=0.1),
    losses.ArcFace(interclass_filter=0.3, scale=100.0),
    losses.ArcFace(margin_grad="straight_through"),
    losses.Softmax(bias=True, label_smoothing=0.1),
]


class NoWaiting(TorchDispatchMode):
    """Raises on an operator that makes the host wait for the device: a copy from one to the other."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim() > 0}
        scalars = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim() == 0}
        made = {x.device.type for x in tree_leaves(result) if isinstance(x, Tensor)}
        # a kernel takes a 0-d tensor of the host as an argument, without waiting; only a copy brings it over
        moves = "copy" in func._schema.name and len(given | scalars | made) > 1
        if moves and not kwargs.get("non_blocking") and not any(a is True for a in args):
            raise AssertionError(
                f"{func} copies between {' and '.join(sorted(given | scalars | made))}: the host waits."
            )
        return result


class Context(SimpleNamespace):
    """What autograd hands to a Function."""

    saved_tensors: tuple[Tensor | None, ...] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...

    def mark_dirty(self, *tensors: Tensor) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...


@pytest.fixture
def fake():
    with FakeTensorMode(allow_non_fake_inputs=False) as mode, NoWaiting():
        yield mode


@pytest.fixture
def group(monkeypatch):
    """A group of 4 ranks whose collectives only look at what they are given."""

    def all_gather(out: Tensor, x: Tensor, group: Any) -> None:
        assert out.device == x.device == CUDA, "NCCL takes tensors on the device only"
        assert out.numel() == 4 * x.numel()
        assert x.is_contiguous()

    def reduce_scatter(out: Tensor, x: Tensor, group: Any) -> None:
        all_gather(x, out, group)

    def all_reduce(x: Tensor, op: Any = None, group: Any = None) -> None:
        assert x.device == CUDA, "NCCL takes tensors on the device only"

    monkeypatch.setattr(collectives, "_all_gather", all_gather)
    monkeypatch.setattr(collectives, "_reduce_scatter", reduce_scatter)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return object()


def make_batch() -> tuple[Tensor, Tensor]:
    return torch.empty(BATCH, DIM, device=CUDA), torch.empty(BATCH, dtype=torch.int64, device=CUDA)


def make_head(loss: Any, rate: float, dtype: torch.dtype = torch.float32, **kwargs: Any) -> PartialFC:
    """A head whose centers are fake tensors on the device."""
    head = PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss=loss, sample_rate=rate, dtype=dtype, **kwargs)
    shard = head.shard
    for name, parameter in list(head._parameters.items()):
        if parameter is None:
            continue
        shape = (shard.num_local, *parameter.shape[1:]) if name in head.sharded_tensors() else parameter.shape
        new = torch.nn.Parameter(torch.empty(shape, dtype=parameter.dtype, device=CUDA))
        vars(new).update({key: value for key, value in vars(parameter).items() if key == "class_rows"})
        head._parameters[name] = new
    head._ensure_storage = lambda: None  # type: ignore[method-assign]  # a fake tensor passes for one without storage
    for name, buffer in list(head._buffers.items()):
        if buffer is not None:
            head._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)
    return head


# --- the detectors detect ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wait", "error"),
    [
        (lambda x: x.nonzero(), DynamicOutputShapeException),
        (lambda x: x.unique(), DynamicOutputShapeException),
        (lambda x: x[x > 0], DynamicOutputShapeException),
        (lambda x: x.sum().item(), DataDependentOutputException),
        (lambda x: 1 if x.sum() else 2, DataDependentOutputException),
        (lambda x: x.cpu(), AssertionError),
        (lambda x: x.new_tensor(3), AssertionError),
        (lambda x: torch.tensor([1.0, 2.0]).to(x.device), AssertionError),
        (lambda x: x + torch.ones(4), RuntimeError),
    ],
)
def test_a_wait_is_noticed(fake, wait, error):
    with pytest.raises(error):
        wait(torch.empty(4, device=CUDA))


def test_ordinary_work_is_not_taken_for_a_wait(fake):
    x = torch.empty(4, device=CUDA)
    torch.where(x > 0, x, 0.0).sum().mul_(3.0).clamp_(min=torch.finfo(x.dtype).min)
    x.copy_(x.double().float()).add_(torch.zeros((), device="cpu"))


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 4])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.7, 1.0])
def test_sampling_has_static_shapes(fake, rate, world_size):
    labels = make_batch()[1]
    shard = ClassShard(CLASSES, world_size - 1, world_size)
    budget = sampling.class_budget(rate, CLASSES)
    step = torch.empty((), dtype=torch.int64, device=CUDA)
    drawn = sampling.sample_uniform(labels, labels, shard, budget, 0, step)
    assert drawn.columns.shape == (BATCH,)
    assert drawn.columns.device == drawn.num_sampled.device == CUDA
    if rate < 1:
        assert drawn.index.shape == drawn.valid.shape == (sampling.capacity(BATCH, shard, budget),)
        assert drawn.index.device == CUDA


# --- forward and backward ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_forward_and_backward_never_wait(fake, loss, monkeypatch):
    check_functions(make_head(loss, 0.2, chunk_size=200), True, monkeypatch)


def test_the_corrected_uniform_sampler_never_waits(fake, monkeypatch):
    check_functions(make_head(losses.ArcFace(), 0.2, sampler=Uniform(correction=True)), True, monkeypatch)


@pytest.mark.parametrize(
    ("rate", "budget", "dtype", "sparse"),
    [(0.2, 0, torch.bfloat16, True), (0.2, 1 << 30, torch.float32, False), (1.0, 0, torch.float32, False)],
)
@pytest.mark.parametrize("loss", [losses.ArcFace(), losses.Softmax(bias=True, label_smoothing=0.1)], ids=str)
def test_storage_and_layout_never_wait(fake, loss, rate, budget, dtype, sparse, monkeypatch):
    check_functions(make_head(loss, rate, dtype, memory_budget=budget, chunk_size=400), sparse, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_update_in_the_backward_pass_never_waits(fake, dtype, monkeypatch):
    head = make_head(losses.ArcFace(), 0.2, dtype, chunk_size=200)
    optimizer = SparseSGD([head.weight], lr=0.1, momentum=0.9, update_in_backward=True)
    function, context, results = call_forward(head, monkeypatch)
    grads = function.backward(context, *(torch.empty_like(r) for r in results))
    assert grads[0].shape == (BATCH, DIM)
    assert grads[1] is None
    optimizer.step()
    assert optimizer.state[head.weight]["step"] == 1


def check_functions(head: PartialFC, sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward of the Function of the head's sums, and what gradients come out."""
    for parameter in head.parameters():
        if (record := class_rows(parameter)) is not None:
            record.is_sparse = sparse
    function, context, results = call_forward(head, monkeypatch)
    # autograd's engine wants a real device; the curves that it differentiates are element by element
    monkeypatch.setattr(
        torch.autograd, "grad", lambda out, leaves, *_, **__: tuple(torch.empty_like(leaf) for leaf in leaves)
    )
    with torch.no_grad():
        x_grad, weight_grad, bias_grad, *_ = function.backward(context, *(torch.empty_like(r) for r in results))
    assert x_grad.shape == (BATCH, DIM)
    assert (bias_grad is None) == (head.bias is None)
    # what a loss remembers of the classes is sharded too, and has no gradient
    parameters = [tensor for tensor in head.sharded_tensors().values() if isinstance(tensor, torch.nn.Parameter)]
    for parameter, grad in zip(parameters, (weight_grad, bias_grad), strict=False):
        assert grad.shape == parameter.shape
        assert grad.dtype == parameter.dtype
        assert grad.device == CUDA
        assert grad.is_sparse == sparse


def watch_engines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, tuple[Any, ...]]]:
    """The Functions of the softmax that are called from now on, with their arguments."""
    seen: list[tuple[Any, tuple[Any, ...]]] = []

    def watch(function: Any) -> None:
        real = function.apply
        monkeypatch.setattr(function, "apply", lambda *args: (seen.append((function, args)), real(*args))[1])  # type: ignore[func-returns-value]

    watch(_KeptSoftmax)
    watch(_StreamedSoftmax)
    return seen


def call_forward(head: PartialFC, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Context, tuple[Tensor, ...]]:
    """A whole forward; then that of the Function of the head's sums by hand: the Function, its context, its results."""
    seen = watch_engines(monkeypatch)
    with torch.no_grad():
        value = head(*make_batch())
        assert value.shape == ()
        assert value.device == CUDA
        ((function, arguments),) = seen
        context = Context(needs_input_grad=[isinstance(a, Tensor) for a in arguments])
        results = function.forward(context, *arguments)
    assert all(r.device == CUDA and r.shape[0] == BATCH for r in results)
    return function, context, results


@pytest.mark.parametrize("rate", [1.0, 0.2, 0.0])
@pytest.mark.parametrize("loss", [losses.ArcFace(), losses.Softmax(bias=True), losses.SphereFace2()], ids=str)
def test_labels_of_several_positives_never_wait(fake, loss, rate, monkeypatch):
    x, labels = make_batch()
    monkeypatch.setitem(globals(), "make_batch", lambda: (x, labels[:, None].expand(-1, 3).contiguous()))
    check_functions(make_head(loss, rate), True, monkeypatch)


@pytest.mark.parametrize("loss", [losses.ArcFace(), losses.CurricularFace(), losses.SphereFace2()], ids=str)
def test_the_forward_of_a_group_never_waits(fake, loss, group, monkeypatch):
    sizes = [BATCH, 1, 7, BATCH]
    agreement = SimpleNamespace(exchange=lambda tag, values=(), error=None: [[size, *values[1:]] for size in sizes])
    comm = Comm(rank=3, world_size=4, group=group, shard_rank=3, shard_size=4, shard_group=group, agreement=agreement)
    monkeypatch.setattr(PartialFC, "attach", lambda self, comm, device=None: setattr(self, "_comm", comm))
    head = make_head(loss, 0.2, comm=comm)
    with torch.no_grad():
        assert head(*make_batch()).shape == ()


@pytest.mark.parametrize("loss", [losses.ArcFace(), losses.Softmax(bias=True), losses.SubCenterArcFace()], ids=str)
def test_evaluation_never_waits(fake, loss):
    head = make_head(loss, 0.2).eval()
    with torch.no_grad():
        assert head.target_ranks(*make_batch()).rank.shape == (BATCH,)


@pytest.mark.parametrize("sizes", [[BATCH] * 4, [BATCH, 1, 7, 3]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gather_and_its_backward_stay_on_the_device(fake, group, sizes, dtype):
    x, labels = make_batch()
    context = Context()
    gathered, all_labels = collectives._GatherBatch.forward(context, x.to(dtype), labels, tuple(sizes), group, 4.0)
    assert gathered.shape == (sum(sizes), DIM)
    assert gathered.dtype == dtype
    assert all_labels.shape == (sum(sizes),)
    grad, *_ = collectives._GatherBatch.backward(context, torch.empty_like(gathered), None)
    assert grad.shape == x.shape
    assert grad.device == CUDA


# --- optimizers -------------------------------------------------------------------------------------------------------

OPTIMIZERS = [
    functools.partial(SparseSGD, lr=0.1),
    functools.partial(SparseSGD, lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True),
    functools.partial(SparseAdamW, lr=0.1),
    functools.partial(RowWiseAdagrad, lr=0.1, weight_decay=1e-4),
    functools.partial(SparseSGD, lr=0.1, momentum=0.9, state_dtype="bfloat16"),
    functools.partial(SparseSGD, lr=0.1, momentum=0.9, state_dtype="int8"),
    functools.partial(SparseAdamW, lr=0.1, state_dtype="int8"),
]


@pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda m: f"{m.func.__name__}-{m.keywords.get('state_dtype')}")
@pytest.mark.parametrize(("dtype", "accumulated"), [(torch.float32, False), (torch.bfloat16, True)])
def test_row_steps_never_wait(fake, make, dtype, accumulated):
    weight = torch.nn.Parameter(torch.empty(CLASSES, DIM, dtype=dtype, device=CUDA))
    declare_class_rows(weight, ClassShard(len(weight)))
    optimizer = make([weight])
    count = 50
    entries = count * (2 if accumulated else 1)
    grad = torch.sparse_coo_tensor(
        torch.empty((1, entries), dtype=torch.int64, device=CUDA),
        torch.empty((entries, DIM), dtype=dtype, device=CUDA),
        weight.shape,
        is_coalesced=False,
        check_invariants=False,
    )
    for _ in range(2):
        weight.grad = grad
        optimizer.step()
    devices = {k: v.device.type for k, v in optimizer.state[weight].items()}
    assert devices.pop("step") == "cpu"
    assert set(devices.values()) <= {"cuda"}
