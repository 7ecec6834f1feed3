"""What is written to a head before it has storage is refused, never lost; afterwards it stays."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from timm.utils import ModelEma, ModelEmaV2, ModelEmaV3
from torch import nn

from lightning_pfc import PartialFC

REFUSED = r"no storage yet.*head\.to\(device\).*head\.class_range"


def make(**options: Any) -> PartialFC:
    return PartialFC(embedding_dim=4, num_classes=10, **({"loss": {"name": "softmax", "bias": True}} | options))


def set_item(head: PartialFC) -> None:
    with torch.no_grad():
        head.weight[3] = 1.0


def in_place_operator(head: PartialFC) -> None:
    with torch.no_grad():
        head.weight *= 2.0


def fill_row(head: PartialFC) -> None:
    with torch.no_grad():
        head.weight[2:4].view(-1)[0].fill_(1.0)


def for_every_parameter(head: PartialFC) -> None:
    for parameter in head.parameters():
        parameter.data.uniform_(-1, 1)


def applied(head: PartialFC) -> None:
    def init(module: nn.Module) -> None:
        if hasattr(module, "weight"):
            nn.init.xavier_uniform_(module.weight)  # type: ignore[arg-type]

    nn.Sequential(nn.Linear(4, 4), head).apply(init)


def copied_without_grad(head: PartialFC) -> None:
    with torch.no_grad():
        head.weight.copy_(torch.ones(10, 4))


def from_numpy(head: PartialFC) -> None:
    head.weight.data = torch.ones(10, 4)


def through_state_dict(head: PartialFC) -> None:
    for value in head.state_dict().values():
        value.zero_()


def foreach(head: PartialFC) -> None:
    torch._foreach_mul_([head.weight.detach()], 2.0)


def out_argument(head: PartialFC) -> None:
    torch.ones(10, 4, out=head.weight.data)


def computed_data(head: PartialFC) -> None:
    head.weight.data = head.weight.data * 0.5


WRITES: list[Callable[[PartialFC], Any]] = [
    *(lambda head, init=init: init(head.weight) for init in (
        nn.init.normal_, nn.init.uniform_, nn.init.zeros_, nn.init.ones_, nn.init.eye_, nn.init.orthogonal_,
        nn.init.xavier_normal_, nn.init.kaiming_uniform_, nn.init.trunc_normal_,
    )),
    lambda head: nn.init.constant_(head.bias, 1.0),
    lambda head: head.weight.data.copy_(torch.ones(10, 4)),
    lambda head: head.weight.data.t().mul_(2.0),
    lambda head: head.weight.detach().clone().normal_() and head.weight.detach().normal_(),
    lambda head: nn.utils.vector_to_parameters(torch.zeros(50), head.parameters()),
    set_item, in_place_operator, fill_row, for_every_parameter, applied, copied_without_grad, from_numpy,
    through_state_dict, foreach, out_argument, computed_data,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_writes_are_refused(write: Callable[[PartialFC], Any]) -> None:
    with pytest.raises(RuntimeError, match=REFUSED):
        write(make())


@pytest.mark.parametrize("name", ["memory_center", "sampled_seen"])
def test_writes_to_what_is_remembered_are_refused(name: str) -> None:
    head = make(auxiliary_losses=["center"], sampler="recent", sample_rate=0.5, loss="cosface")
    with pytest.raises(RuntimeError, match=REFUSED):
        head.get_buffer(name).fill_(1)


def test_a_write_past_the_guard_is_refused_when_storage_comes() -> None:
    head = make()
    with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
        head.weight.fill_(1.0)
    with pytest.raises(RuntimeError, match=r"what was written to it is lost.*head\.to\(device\)"):
        head.to("cpu")


@pytest.mark.parametrize("way", ["to", "double", "forward"])
def test_afterwards_writes_stay(way: str) -> None:
    head = make(loss="cosface")
    weight = head.weight
    if way == "forward":
        head(torch.randn(2, 4), torch.tensor([0, 1]))
    else:
        head.to("cpu") if way == "to" else head.double()
    nn.init.constant_(head.weight, 3.0)
    head.weight.data[2] = 4.0
    head(torch.randn(2, 4, dtype=weight.dtype), torch.tensor([0, 1])).backward()
    assert head.weight is weight
    assert type(weight) is nn.Parameter
    assert weight[0].tolist() == [3.0] * 4
    assert weight[2].tolist() == [4.0] * 4


def test_numbers_at_random_are_no_centers() -> None:
    """``to_empty``, of the head or of what it is a part of, makes what is there: its own start, or what was trained."""
    wanted = make().to("cpu").weight
    made: Any
    for made in (make(), nn.Sequential(make()).to_empty(device="cpu")[0]):
        assert torch.equal(made.to_empty(device="cpu").weight, wanted)
        with torch.no_grad():
            made.weight.fill_(2.0)
        assert bool((nn.Sequential(made).to_empty(device="cpu")[0].get_parameter("weight") == 2.0).all())


def test_a_head_that_went_to_meta_is_filled_again() -> None:
    """``to("meta")``, ``to_empty`` and a state dict, as of any module: its buffers could not be copied."""
    trained = make().to("cpu")
    trained.step.fill_(7)
    again = copy.deepcopy(trained).to("meta").to_empty(device="cpu")
    again.load_state_dict(trained.state_dict())
    assert torch.equal(again.weight, trained.weight)
    assert (int(again.step), again.step.device.type) == (7, "cpu")


def test_what_only_looks_is_allowed() -> None:
    head = make()
    head.weight.requires_grad_(False).requires_grad_(True)
    head.weight.requires_grad = True
    assert (head.weight.shape, head.weight.numel(), head.weight.is_meta) == ((10, 4), 40, True)
    assert head.weight.device == torch.device("cpu"), "where it will be"
    assert repr(head.weight)
    torch.optim.AdamW(head.parameters(), lr=0.1)
    head.weight.data = head.weight.data.clone()  # as Lightning does in a process that it has spawned
    for twin in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        with pytest.raises(RuntimeError, match=REFUSED):
            twin.weight.data.zero_()
        twin(torch.randn(2, 4), torch.tensor([0, 1])).backward()
        assert torch.equal(twin.weight, head.to("cpu").weight)
        head = make()


def test_numbers_that_are_not_there_are_not_read() -> None:
    head = make()
    for read in (
        lambda w: w.sum().item(),
        lambda w: w.to("cpu"),
        lambda w: torch.ones(10, 4) + w * 2,
        lambda w: w.tolist(),
    ):
        with pytest.raises(RuntimeError, match=REFUSED):
            read(head.weight.detach())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = make(loss="cosface")  # its device is the first that others ask for
        self.net = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.head(self.net(x), labels)
        return loss


@pytest.mark.parametrize("ema", [ModelEmaV3, ModelEmaV2, ModelEma])
def test_averages_of_a_model_made_before_the_storage(ema: Any) -> None:
    """The copy has no storage either; it says so, and works once it has."""
    model = Net()
    average = ema(model)
    model(torch.randn(2, 4), torch.tensor([1, 2])).backward()
    with pytest.raises(RuntimeError, match=REFUSED):
        average.update(model)
    inner = average.ema if hasattr(average, "ema") else average.module
    inner.to("cpu")
    average.update(model)
    assert inner.head.weight.shape == (10, 4)


@pytest.mark.filterwarnings("error::UserWarning")
def test_one_device_of_fabric() -> None:
    fabric = Fabric(devices=1, accelerator="cpu")
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = fabric.setup(model, optimizer)
    fabric.backward(model(torch.randn(2, 4), torch.tensor([1, 2])))
    optimizer.step()
    assert type(model.head.weight) is nn.Parameter
