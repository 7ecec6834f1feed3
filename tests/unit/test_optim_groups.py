"""Parameter groups put every trainable parameter in one place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_pfc.distributed.class_rows import declare_class_rows
from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.optim import SparseSGD, parameter_groups


class Head(nn.Module):
    """What parameter_groups sees of a head: a sharded weight, without storage, and more."""

    def __init__(self, bias=False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(10, 4, device="meta"))
        declare_class_rows(self.weight, ClassShard(len(self.weight)))
        self.bias = nn.Parameter(torch.empty(10, device="meta")) if bias else None


class Model(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.PReLU(8)
        self.tokens = Tokens()
        self.fixed = nn.Parameter(torch.ones(3), requires_grad=False)
        self.head = Head(bias)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 5, 8))

    def no_weight_decay(self):
        return {"position"}


def names(module, groups):
    by_param = {param: name for name, param in module.named_parameters()}
    return {group["name"]: {by_param[param] for param in group["params"]} for group in groups}


def test_head_and_backbone():
    model = Model()
    backbone, head = parameter_groups(model, lr=0.1, weight_decay=5e-4)
    assert (backbone["lr"], backbone["weight_decay"]) == (head["lr"], head["weight_decay"]) == (0.1, 5e-4)
    assert names(model, [backbone, head]) == {
        "backbone": {"conv.weight", "conv.bias", "norm.weight", "norm.bias", "act.weight", "tokens.position"},
        "head": {"head.weight"},
    }
    optimizer = SparseSGD([backbone, head], momentum=0.9)
    assert [group["name"] for group in optimizer.param_groups] == ["backbone", "head"]


def test_head_has_its_own_options():
    _, head = parameter_groups(Model(), lr=0.1, weight_decay=5e-4, head_lr_scale=10.0, head_weight_decay=0.0)
    assert (head["lr"], head["weight_decay"]) == (1.0, 0.0)
    _, head = parameter_groups(Model(), lr=0.1, weight_decay=5e-4, head_lr=0.3)
    assert (head["lr"], head["weight_decay"]) == (0.3, 5e-4)


def test_norms_and_biases_without_decay():
    model = Model(bias=True)
    groups = parameter_groups(model, lr=0.1, weight_decay=5e-4, head_lr=0.2, no_decay_on_norm_and_bias=True)
    assert names(model, groups) == {
        "backbone": {"conv.weight"},
        "backbone_no_decay": {"conv.bias", "norm.weight", "norm.bias", "act.weight", "tokens.position"},
        "head": {"head.weight"},
        "head_no_decay": {"head.bias"},
    }
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0, 5e-4, 0.0]
    assert [group["lr"] for group in groups] == [0.1, 0.1, 0.2, 0.2]


def test_works_without_a_head_and_for_a_head_alone():
    assert [group["name"] for group in parameter_groups(nn.Linear(2, 2), lr=0.1, weight_decay=0.0)] == ["backbone"]
    assert [group["name"] for group in parameter_groups(Head(), lr=0.1, weight_decay=0.0)] == ["head"]


def test_bad_options_are_named():
    for options, message in [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"head_weight_decay": -1.0}, "head_weight_decay=-1.0"),
        ({"head_lr_scale": -1.0}, "head_lr_scale=-1.0"),
        ({"head_lr": 0.1, "head_lr_scale": 2.0}, "twice"),
    ]:
        with pytest.raises(ValueError, match=message):
            parameter_groups(Model(), **{"lr": 0.1, "weight_decay": 0.0, **options})


def test_nothing_trainable_is_an_error():
    with pytest.raises(ValueError, match="nothing to optimize"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), lr=0.1, weight_decay=0.0)
