"""LARS against its formula, for layers and for centers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_pfc import PartialFC
from lightning_pfc.distributed.class_rows import declare_class_rows
from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.losses import CosFace
from lightning_pfc.optim import LARS, SparseSGD
from lightning_pfc.optim.factory import create_optimizer

OPTIONS = {"lr": 0.7, "momentum": 0.9, "weight_decay": 0.05}


def by_hand(weight, grads, *, trust, clip, lr, momentum, weight_decay, nesterov=False):
    """One layer, or one row, in float64 and plain arithmetic."""
    w, velocity = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    for grad in grads:
        g = grad.double()
        ratio = 1.0
        if w.norm() > 0 and g.norm() > 0:
            ratio = float(trust * w.norm() / (g.norm() + weight_decay * w.norm()))
            ratio = min(ratio, lr) / lr if clip else ratio
        g = ratio * (g + weight_decay * w)
        velocity = momentum * velocity + g
        w = w - lr * (g + momentum * velocity if nesterov else velocity)
    return w


@pytest.mark.parametrize(("trust", "clip"), [(0.01, False), (3.0, False), (3.0, True), (0.01, True)])
@pytest.mark.parametrize("nesterov", [False, True])
def test_layers(trust, clip, nesterov):
    torch.manual_seed(0)
    layer = nn.Linear(5, 4)
    nn.init.zeros_(layer.bias)
    start = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = LARS(layer.parameters(), trust=trust, clip=clip, nesterov=nesterov, **OPTIONS)
    grads = [{name: torch.randn_like(p) for name, p in layer.named_parameters()} for _ in range(4)]
    for grad in grads:
        for name, p in layer.named_parameters():
            p.grad = grad[name].clone()
        optimizer.step()
    want = by_hand(start["weight"], [g["weight"] for g in grads], trust=trust, clip=clip, nesterov=nesterov, **OPTIONS)
    torch.testing.assert_close(layer.weight.detach().double(), want, rtol=1e-5, atol=1e-6)
    bias = nn.Parameter(start["bias"])
    plain = torch.optim.SGD([bias], nesterov=nesterov, **OPTIONS)
    for grad in grads:
        bias.grad = grad["bias"].clone()
        plain.step()
    torch.testing.assert_close(layer.bias, bias)


@pytest.mark.parametrize("in_backward", [False, True])
def test_centers(in_backward):
    """Each row by itself; one that was not sampled keeps weight and velocity."""
    torch.manual_seed(0)
    head = PartialFC(embedding_dim=6, num_classes=40, loss=CosFace(scale=8.0), sample_rate=0.2, init_std=1.0).to("cpu")
    twin = PartialFC(embedding_dim=6, num_classes=40, loss=CosFace(scale=8.0), sample_rate=0.2, init_std=1.0).to("cpu")
    optimizer = LARS(head.parameters(), trust=0.5, update_in_backward=in_backward, **OPTIONS)
    seen: dict[int, list[torch.Tensor]] = {}
    start = head.weight.detach().clone()
    for _ in range(3):
        x, labels = torch.randn(5, 6), torch.randint(0, 40, (5,))
        with torch.no_grad():
            twin.weight.copy_(head.weight)
        gradient = torch.autograd.grad(twin(x, labels), [twin.weight])[0]
        index = head._sample(labels, labels).index.tolist()
        for row in index:
            seen.setdefault(row, []).append(gradient[row])
        optimizer.zero_grad()
        head(x, labels).backward()
        optimizer.step()
    assert 8 < len(seen) < 40
    for row in range(40):
        want = by_hand(start[row], seen.get(row, []), trust=0.5, clip=False, **OPTIONS)
        torch.testing.assert_close(head.weight[row].detach().double(), want, rtol=1e-5, atol=1e-6)
    state = optimizer.state_dict()
    other = LARS(head.parameters(), trust=0.5, **OPTIONS)
    other.load_state_dict(state)
    torch.testing.assert_close(other.state[head.weight], optimizer.state[head.weight])


@pytest.mark.parametrize(("lr", "rate"), [(0.05, 0.02), (0.01, 0.01), (0.0, 0.0)])
def test_clip_is_larc(lr, rate):
    """LARC's rate is min(trust |w| / |g|, lr), here with a quotient of 0.02; of a layer, and of a center."""
    for rows in (1, 2):
        weight = nn.Parameter(torch.eye(rows, 4))
        if rows == 2:
            declare_class_rows(weight, ClassShard(len(weight)))
        optimizer = LARS([weight], lr=lr, trust=0.02, clip=True)
        weight.grad = torch.eye(rows, 4)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), torch.eye(rows, 4) * (1 - rate))


def test_no_length_and_no_gradient_are_steps_of_sgd():
    for weight, grad in ((torch.zeros(3, 2), torch.ones(3, 2)), (torch.ones(3, 2), torch.zeros(3, 2))):
        ours, theirs = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
        for optimizer, p in ((LARS([ours], **OPTIONS), ours), (SparseSGD([theirs], **OPTIONS), theirs)):
            p.grad = grad.clone()
            optimizer.step()
        assert torch.equal(ours, theirs)


def test_factory_and_arguments():
    module = nn.ModuleDict(
        {"body": nn.Linear(3, 3), "head": PartialFC(embedding_dim=3, num_classes=9, loss=CosFace(), sample_rate=0.5)}
    )
    optimizer = create_optimizer(module, {"name": "lars", "lr": 1.0, "trust": 0.02, "clip": True}, row_sparse=False)
    assert isinstance(optimizer, LARS)
    assert {group["trust"] for group in optimizer.param_groups} == {0.02}
    assert all(group["clip"] for group in optimizer.param_groups)
    for wrong in (0.0, -1.0):
        with pytest.raises(ValueError, match="trust"):
            LARS([nn.Parameter(torch.ones(2, 2))], trust=wrong)


def test_a_copy_keeps_its_own_options():
    optimizer = LARS(nn.Linear(5, 4).parameters(), trust=0.02, clip=True, **OPTIONS)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert (copied.param_groups[0]["trust"], copied.param_groups[0]["clip"]) == (0.02, True)
        copied.add_param_group({"params": [nn.Parameter(torch.zeros(2, 2))]})
        assert copied.param_groups[1]["trust"] == 0.02
