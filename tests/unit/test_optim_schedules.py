"""Learning rate schedules against PyTorch's own, and their warm-up."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from lightning_pfc.optim import SparseSGD, lr_scaling, schedules

RUN = {"total_steps": 100, "steps_per_epoch": 10}
FACTORIES = {
    "polynomial": schedules.polynomial,
    "cosine": schedules.cosine,
    "cosine_with_restarts": lambda *a, **k: schedules.cosine_with_restarts(*a, period_epochs=2, **k),
    "multi_step": lambda *a, **k: schedules.multi_step(*a, milestones=[3, 6], **k),
    "constant": schedules.constant,
}


def rates(factory, steps=100, lr=0.4, **options):
    """Learning rates of the steps of a run."""
    optimizer = SparseSGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = factory(optimizer, **{**RUN, **options})
    return drive(optimizer, scheduler, steps)


def drive(optimizer, scheduler, steps):
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            lambda o: schedules.polynomial(o, power=2.0, **RUN),
            lambda o: lr_scheduler.PolynomialLR(o, total_iters=100, power=2.0),
        ),
        (
            lambda o: schedules.cosine(o, end_factor=0.1, **RUN),
            lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=100, eta_min=0.04),
        ),
        (
            lambda o: schedules.cosine_with_restarts(o, period_epochs=1.5, **RUN),
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=15),
        ),
        (
            lambda o: schedules.cosine_with_restarts(o, period_epochs=0.7, period_factor=2, end_factor=0.25, **RUN),
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=7, T_mult=2, eta_min=0.1),
        ),
        (
            lambda o: schedules.multi_step(o, milestones=[3, 6, 6.5], gamma=0.2, **RUN),
            lambda o: lr_scheduler.MultiStepLR(o, milestones=[30, 60, 65], gamma=0.2),
        ),
        (lambda o: schedules.constant(o, **RUN), lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    ],
)
def test_equals_pytorch_without_warmup(ours, theirs):
    seen = []
    for make in (ours, theirs):
        optimizer = SparseSGD([nn.Parameter(torch.zeros(1))], lr=0.4)
        seen.append(drive(optimizer, make(optimizer), 100))
    assert seen[0] == pytest.approx(seen[1], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", FACTORIES)
def test_warmup_begins_small_and_ends_at_the_full_rate(name):
    by_epochs = rates(FACTORIES[name], warmup_epochs=0.8)
    assert by_epochs[:8] == pytest.approx([0.05 * i for i in range(1, 9)])
    assert by_epochs[8] == pytest.approx(0.4)  # the schedule proper begins at its top
    assert max(by_epochs) == pytest.approx(0.4)
    assert rates(FACTORIES[name], warmup_steps=8) == by_epochs


def test_schedule_fills_what_the_warmup_leaves():
    polynomial = rates(schedules.polynomial, steps=130, power=1.0, warmup_steps=20)
    assert polynomial[20:100] == pytest.approx([0.4 * (1 - i / 80) for i in range(80)])
    assert polynomial[100:] == [0.0] * 30  # a run that goes on too long stands still
    assert rates(schedules.cosine, steps=101, warmup_steps=20, end_factor=0.25)[100] == pytest.approx(0.1)


def test_milestones_count_from_the_start_of_the_run():
    seen = rates(schedules.multi_step, milestones=[3], warmup_epochs=1)
    assert (seen[29], seen[30]) == pytest.approx((0.4, 0.04))


def test_groups_keep_their_proportion():
    optimizer = SparseSGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 1.0)])
    scheduler = schedules.cosine(optimizer, warmup_steps=10, **RUN)
    for _ in range(30):
        small, large = (group["lr"] for group in optimizer.param_groups)
        assert large == pytest.approx(10 * small)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", FACTORIES)
def test_resumed_run_goes_on_where_it_was(name, tmp_path):
    expected = rates(FACTORIES[name], warmup_steps=10)
    optimizer = SparseSGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = FACTORIES[name](optimizer, warmup_steps=10, **RUN)
    drive(optimizer, scheduler, 37)
    torch.save([optimizer.state_dict(), scheduler.state_dict()], tmp_path / "state.pt")

    optimizer = SparseSGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = FACTORIES[name](optimizer, warmup_steps=10, **RUN)
    for part, state in zip((optimizer, scheduler), torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    assert drive(optimizer, scheduler, 63) == pytest.approx(expected[37:])


def test_resumed_run_of_another_length_follows_the_new_length():
    optimizer = SparseSGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    state = schedules.polynomial(optimizer, power=1.0, **RUN).state_dict()
    longer = schedules.polynomial(optimizer, power=1.0, total_steps=200, steps_per_epoch=10)
    longer.load_state_dict(state)
    assert drive(optimizer, longer, 101)[100] == pytest.approx(0.2)


@pytest.mark.parametrize("name", FACTORIES)
def test_run_of_one_step_works(name):
    assert rates(FACTORIES[name], steps=1, total_steps=1, warmup_epochs=2) == pytest.approx([0.02])
    assert rates(FACTORIES[name], steps=1, total_steps=1) == pytest.approx([0.4])


def test_bad_options_are_named():
    for name, options, message in [
        ("polynomial", {"power": -1.0}, "power=-1.0"),
        ("polynomial", {"total_steps": math.inf}, "trainer.max_epochs"),
        ("cosine", {"total_steps": 0}, "total_steps=0"),
        ("cosine", {"end_factor": -0.1}, "end_factor=-0.1"),
        ("constant", {"warmup_epochs": 1.0, "warmup_steps": 3}, "both given"),
        ("constant", {"warmup_epochs": -1.0}, "warmup_epochs=-1.0"),
        ("constant", {"warmup_steps": -1}, "warmup_steps=-1"),
        ("constant", {"steps_per_epoch": 0}, "steps_per_epoch=0"),
        ("cosine_with_restarts", {"period_epochs": 0.01}, "period_epochs=0.01"),
        ("cosine_with_restarts", {"period_epochs": 1, "period_factor": 0.5}, "period_factor=0.5"),
        ("multi_step", {"milestones": [6, 3]}, "do not ascend"),
        ("multi_step", {"milestones": [3], "gamma": -1.0}, "gamma=-1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            rates(getattr(schedules, name), **options)


def test_endless_runs_where_the_end_does_not_matter():
    assert rates(schedules.constant, total_steps=math.inf, steps=2) == [0.4, 0.4]


def test_learning_rate_follows_the_batch():
    assert lr_scaling.scale_lr(0.1, global_batch=512, reference_batch=1024) == pytest.approx(0.05)
    assert lr_scaling.scale_lr(0.1, global_batch=256, reference_batch=1024, rule="sqrt") == pytest.approx(0.05)
    assert lr_scaling.scale_lr(0.1, global_batch=256, reference_batch=None) == 0.1
    assert lr_scaling.describe_lr(0.1, global_batch=256, reference_batch=1024, rule="sqrt") == (
        "lr 0.05 = 0.1 x (256 / 1024) ** 0.5, global batch 256 (sqrt rule)"
    )
    with pytest.raises(ValueError, match="rule='cubic'"):
        lr_scaling.scale_lr(0.1, global_batch=256, reference_batch=1024, rule="cubic")
    with pytest.raises(ValueError, match="reference_batch=0"):
        lr_scaling.scale_lr(0.1, global_batch=256, reference_batch=0)
