"""Centers in the host's memory: the same numbers as on the device, and every copy between the two on purpose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_pfc import PartialFC, losses
from lightning_pfc.buffers import host_rows
from lightning_pfc.distributed.class_rows import declare_class_rows
from lightning_pfc.heads.sampling import Retrieval, Uniform
from lightning_pfc.heads.softmax import class_chunks
from lightning_pfc.metrics.centers import nearest_centers
from lightning_pfc.optim import RowWiseAdagrad, SparseAdamW, SparseSGD, base
from tests.unit.test_fake_cuda import CUDA, Context, watch_engines

CLASSES, DIM, BATCH = 300, 16, 24


def make(loss: Any = None, **options: Any) -> PartialFC:
    given = {"sample_rate": 0.3, "chunk_size": 37, "init_std": 0.1, **options}
    return PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss=loss or losses.ArcFace(), **given)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, DIM, generator=generator), torch.randint(0, CLASSES, (BATCH,), generator=generator)


@pytest.fixture
def as_if_elsewhere(monkeypatch):
    """Take the path of another device where there is only one: rows are staged and copied, gradients brought back."""
    monkeypatch.setattr(host_rows, "is_offloaded", lambda table, device: True)
    monkeypatch.setattr(class_chunks, "is_offloaded", lambda table, device: True)


def trained(head: PartialFC, optimizer: Any) -> list[Tensor]:
    head(*batch(0))
    optimizer = optimizer(head.parameters())
    out = []
    for step in range(4):
        x, labels = batch(step)
        x.requires_grad_()
        loss = head(x, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert x.grad is not None
        out += [loss.detach(), x.grad]
    out += [parameter.detach() for parameter in head.parameters()]
    head.eval()
    return [*out, *head.target_ranks(*batch(9)), nearest_centers(head).cosine]


OPTIMIZERS = [
    lambda p: SparseSGD(p, lr=0.5, momentum=0.9, weight_decay=1e-4),
    lambda p: SparseSGD(p, lr=0.5, momentum=0.9, update_in_backward=True),
    lambda p: SparseAdamW(p, lr=0.05, state_dtype="int8"),
    lambda p: RowWiseAdagrad(p, lr=0.5),
    lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9),
]
HEADS: list[dict[str, Any]] = [
    {},
    {"sample_rate": 1.0, "memory_budget": 0},
    {"dtype": torch.bfloat16},
    {"loss": losses.Softmax(bias=True)},
    {"loss": losses.SubCenterArcFace()},
    {"loss": losses.VPL()},
    {"sampler": Uniform(correction=True)},
    {"sampler": Retrieval(refresh=2, query="target")},
]


@pytest.mark.parametrize("optimizer", range(len(OPTIMIZERS)))
@pytest.mark.parametrize("options", HEADS, ids=str)
def test_the_same_bits_as_on_the_device(options, optimizer, monkeypatch, request):
    if optimizer and options:
        options = {**options, "seed": 3}
    if options.get("loss") == losses.Softmax(bias=True) and optimizer == 1:
        pytest.skip("the bias is not updated inside the backward pass")
    usual = trained(make(**options), OPTIMIZERS[optimizer])
    request.getfixturevalue("as_if_elsewhere")
    staged = trained(make(rows_on="host", **options), OPTIMIZERS[optimizer])
    for one, other in zip(usual, staged, strict=True):
        assert torch.equal(one, other)


class Copies(TorchDispatchMode):
    """Counts the copies between devices that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        devices = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)}
        free = kwargs.get("non_blocking") or any(a is True for a in args)
        if "copy" in func._schema.name and len(devices) > 1 and not free:
            self.waited.append(f"{func} {tuple(result.shape)}")
        return result


def split_head(**options: Any) -> PartialFC:
    """A head with its centers on a fake host and everything else on a fake GPU."""
    head = make(rows_on="host", **options)
    head._ensure_storage = lambda: None  # type: ignore[method-assign]
    for name, parameter in list(head._parameters.items()):
        if parameter is not None:
            place = torch.device("cpu") if name == "weight" else CUDA
            shape = (CLASSES, *parameter.shape[1:])
            new = torch.nn.Parameter(torch.empty(shape, dtype=parameter.dtype, device=place))
            if name in head.sharded_tensors():
                declare_class_rows(new, head.shard, head.comm)
            head._parameters[name] = new
    for name, buffer in list(head._buffers.items()):
        if buffer is not None:
            head._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)
    return head


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("rate", [0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", [losses.ArcFace(), losses.CurricularFace(), losses.SubCenterArcFace()], ids=str)
def test_devices_are_never_mixed(loss, dtype, rate, in_backward, monkeypatch):
    # one wait for the numbers of the sampled rows, one for those of the targets where a loss asks for these first;
    # where exponentials are kept both come at once
    expected = 1 if loss == losses.ArcFace() else int(rate < 1) + int(isinstance(loss, losses.CurricularFace))
    # autograd's engine wants a real device; the curves that it differentiates are element by element
    monkeypatch.setattr(
        torch.autograd, "grad", lambda out, leaves, *_, **__: tuple(torch.empty_like(leaf) for leaf in leaves)
    )
    monkeypatch.setattr(base, "zero_pages", torch.zeros)  # numpy's pages are real ones
    with FakeTensorMode(allow_non_fake_inputs=False), Copies() as copies:
        head = split_head(loss=loss, sample_rate=rate, dtype=dtype)
        optimizer = SparseSGD([head.weight], lr=0.1, momentum=0.9, update_in_backward=in_backward)
        seen = watch_engines(monkeypatch)
        with torch.no_grad():
            value = head(torch.empty(BATCH, DIM, device=CUDA), torch.empty(BATCH, dtype=torch.int64, device=CUDA))
            assert value.device == CUDA
            # the row numbers, for which the host must wait; a contiguous slice needs none
            assert len(copies.waited) == expected, copies.waited
            ((function, arguments),) = seen
            context = Context(needs_input_grad=[isinstance(a, Tensor) for a in arguments])
            results = function.forward(context, *arguments)
            before = len(copies.waited)
            x_grad, weight_grad, *_ = function.backward(context, *(torch.empty_like(r) for r in results))
        assert x_grad.device == CUDA
        after = len(copies.waited) - before
        if in_backward:
            assert weight_grad is None
            assert {value.device.type for value in optimizer.state[head.weight].values()} == {"cpu"}
        else:
            assert weight_grad.device == head.weight.device == torch.device("cpu")
            assert after == 1, copies.waited[before:]
            assert weight_grad.dtype == dtype


def test_the_centers_stay_when_the_module_moves():
    head = make(rows_on="host", loss=losses.Softmax(bias=True))
    weight = head.weight
    head.to("meta")
    assert head.weight is weight
    assert (head.weight.device.type, head.bias.device.type, head.device.type) == ("cpu", "meta", "meta")
    head = make(rows_on="host").double()
    assert head.weight.dtype == torch.float64


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"rows_on='gpu'.* must be one of 'device', 'host'"):
        make(rows_on="gpu")
    with pytest.raises(ValueError, match="goes to meta: give rows_on='host'"):
        make(row_folder=tmp_path).to("meta")
    head = make(row_folder=tmp_path, rows_on="host").to("meta")
    assert (head.weight.device.type, head.device.type) == ("cpu", "meta")
