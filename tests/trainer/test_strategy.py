"""The strategy on real processes against a single-process twin: weights, clipping, loss scaling, accumulation."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins import MixedPrecision, Precision
from torch import Tensor, nn

from lightning_pfc import PartialFC, PartialFCStrategy
from lightning_pfc.losses import CosFace
from lightning_pfc.optim import SparseSGD
from lightning_pfc.strategies.precision_plugins import ShardedHalfPrecision, ShardedMixedPrecision, ShardedPrecision
from tests.ranks import RankPool, join_group
from tests.trainer.world import CLASSES, DIM, WIDTH, TheirModule, make_loader, make_trainer, plain_loader, whole_state

State = dict[str, Tensor]


def fit(rank: int, world_size: int, module: dict[str, Any], trainer: dict[str, Any], loader: dict[str, Any]) -> Any:
    model = TheirModule(**module)
    if not dist.is_initialized() and world_size > 1:
        assert model.head is None or model.head.weight.shape == (CLASSES, DIM)
        assert model.head is None or not model.head.is_materialized
        join_group()
    made = make_trainer(rank, world_size, **trainer)
    made.fit(model, make_loader(rank, world_size, **loader))
    return model.losses, model.state_dict()


def compare(ranks: RankPool, module: Any = None, trainer: Any = None, loader: Any = None, world_size: int = 2) -> State:
    """Train on one process and on several, and compare all losses and weights."""
    module, trainer, loader = module or {}, trainer or {}, loader or {}
    [(expected_losses, expected)] = ranks.run(1, fit, module, trainer, loader)
    results = ranks.run(world_size, fit, module, trainer, loader, group="later")
    for losses, _ in results:
        torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    state = whole_state([part for _, part in results])
    assert state["head.weight"].shape == (CLASSES, DIM)
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
    start = TheirModule(**module).state_dict()["backbone.0.weight"].to(state["backbone.0.weight"].dtype)
    assert not torch.allclose(state["backbone.0.weight"], start, atol=1e-4), "nothing was trained"
    return state


@pytest.mark.parametrize("late", [False, True], ids=["built in __init__", "built in configure_model"])
def test_somebody_elses_module_trains_as_on_one_process(ranks: RankPool, late: bool) -> None:
    compare(ranks, {"momentum": 0.9, "weight_decay": 1e-3, "late": late})


def test_three_ranks_and_sampled_negatives(ranks: RankPool) -> None:
    compare(ranks, {"sample_rate": 0.6, "momentum": 0.9}, loader={"sizes": (4, 1, 2)}, world_size=3)


def test_adamw_and_the_optimizer_as_object(ranks: RankPool) -> None:
    compare(ranks, {"optimizer": torch.optim.AdamW, "lr": 0.01})


def test_no_process_group(ranks: RankPool) -> None:
    [(losses, state)] = ranks.run(1, fit, {}, {"strategy": "auto"}, {}, group=False)
    [(expected_losses, expected)] = ranks.run(1, fit, {}, {}, {})
    assert losses == expected_losses
    assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, SparseSGD])
@pytest.mark.parametrize("sample_rate", [1.0, 0.5])
def test_clipping_uses_one_norm(ranks: RankPool, optimizer: Any, sample_rate: float) -> None:
    module = {"optimizer": optimizer, "sample_rate": sample_rate, "momentum": 0.9}
    clipped = compare(ranks, module, {"gradient_clip_val": 0.05})
    [(_, free)] = ranks.run(1, fit, module, {}, {})
    assert not torch.allclose(clipped["backbone.0.weight"], free["backbone.0.weight"], atol=1e-3), "nothing was clipped"


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, SparseSGD])
def test_clipping_by_value(ranks: RankPool, optimizer: Any) -> None:
    compare(
        ranks,
        {"optimizer": optimizer, "sample_rate": 0.5},
        {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"},
    )


class ClipBackbone(TheirModule):
    """Writes down what clipping did to both parts."""

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, **kwargs: Any) -> None:  # type: ignore[override]
        assert self.head is not None
        shard = self.head.weight.grad.clone()
        self.clip_gradients(optimizer, gradient_clip_val, "norm")
        self.untouched = torch.equal(shard, self.head.weight.grad)
        self.norm = torch.nn.utils.get_total_norm([p.grad for p in self.backbone.parameters()]).item()


def fit_clip_backbone(rank: int, world_size: int) -> tuple[bool, float]:
    model = ClipBackbone()
    trainer = make_trainer(rank, world_size, strategy=PartialFCStrategy(clip="backbone"), gradient_clip_val=0.01)
    trainer.fit(model, make_loader(rank, world_size, steps=1))
    return model.untouched, model.norm


def test_clip_backbone_leaves_the_shards_alone(ranks: RankPool) -> None:
    for untouched, norm in ranks.run(2, fit_clip_backbone):
        assert untouched
        assert norm == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(ValueError, match="clip must be one of 'global', 'backbone'"):
        PartialFCStrategy(clip="head")  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, SparseSGD])
def test_accumulated_batches_add_up(ranks: RankPool, optimizer: Any) -> None:
    module = {"optimizer": optimizer, "sample_rate": 0.5, "momentum": 0.9}
    compare(ranks, module, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5})


def test_bf16_mixed_equals_one_process(ranks: RankPool) -> None:
    results = ranks.run(2, fit, {}, {"precision": "bf16-mixed"}, {})
    [(losses, _)] = ranks.run(1, fit, {}, {"precision": "bf16-mixed"}, {})
    whole_state([state for _, state in results])
    torch.testing.assert_close(results[0][0], losses, rtol=2e-2, atol=2e-2)


def test_64_true(ranks: RankPool) -> None:
    state = compare(ranks, {"momentum": 0.9}, {"precision": "64-true"})
    assert state["head.weight"].dtype == torch.float64


class OverflowOnOneRank(TheirModule):
    """An infinity in one shard's gradient, in the third step."""

    def on_after_backward(self) -> None:
        assert self.head is not None
        if self.global_rank == self.trainer.world_size - 1 and len(self.losses) == 3:
            gradient = self.head.weight.grad
            (gradient._values() if gradient.is_sparse else gradient).view(-1)[0] = torch.inf

    def on_train_batch_end(self, *args: Any) -> None:
        assert self.head is not None
        self.history.append(([p.detach().clone() for p in self.parameters()], self.scale()))  # type: ignore[operator, union-attr]
        states = self.optimizers().optimizer.state.values()  # type: ignore[union-attr]
        self.kept.append([v.clone() for state in states for v in state.values() if isinstance(v, Tensor)])  # type: ignore[operator, union-attr]

    def scale(self) -> float:
        return self.trainer.precision_plugin.scaler.get_scale()


def fit_overflow(rank: int, world_size: int, optimizer: Any, clip: float | None) -> Any:
    model = OverflowOnOneRank(optimizer, momentum=0.9)
    model.history, model.kept = [], []  # type: ignore[assignment]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1000)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    trainer = make_trainer(rank, world_size, plugins=[plugin], gradient_clip_val=clip)
    trainer.fit(model, make_loader(rank, world_size, steps=5))
    assert model.head is not None
    if world_size == 1:
        return model.history, model.kept
    return model.history, model.head.check_finite


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, SparseSGD])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_an_overflow_on_one_rank_skips_the_step_on_all(ranks: RankPool, optimizer: Any, clip: float | None) -> None:
    results = ranks.run(2, fit_overflow, optimizer, clip)
    for history, check_finite in results:
        assert not check_finite
        assert [scale for _, scale in history] == [256.0, 256.0, 128.0, 128.0, 128.0]
        for before, after, moved in ((0, 1, True), (1, 2, False), (2, 3, True)):
            same = all(torch.equal(a, b) for a, b in zip(history[before][0], history[after][0], strict=True))
            assert same is not moved
    for first, second in zip(results[0][0], results[1][0], strict=True):
        for a, b in zip(first[0][:4], second[0][:4], strict=True):
            assert torch.equal(a, b), "the replicas have drifted apart"


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, SparseSGD])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_an_overflow_on_the_only_rank_leaves_nothing_changed(
    ranks: RankPool, optimizer: Any, clip: float | None
) -> None:
    """Not one bit of parameters or of the optimizer's state, in the step that is skipped; all move in the others."""
    [(history, kept)] = ranks.run(1, fit_overflow, optimizer, clip)
    assert [scale for _, scale in history] == [256.0, 256.0, 128.0, 128.0, 128.0]
    for before, after, moved in ((0, 1, True), (1, 2, False), (2, 3, True)):
        for what in ([tensors for tensors, _ in history], kept):
            pairs = list(zip(what[before], what[after], strict=True))
            assert len(pairs) > 1
            assert all(torch.equal(a, b) for a, b in pairs) is not moved
    assert all(bool(value.isfinite().all()) for value in kept[-1])


def fit_nan(rank: int, world_size: int) -> None:
    loader = make_loader(rank, world_size)
    if rank == 1:
        loader.dataset.batches[2][0][0, 0] = torch.nan
    make_trainer(rank, world_size).fit(TheirModule(), loader)


def test_without_a_scaler_a_nan_raises_on_all_ranks(ranks: RankPool) -> None:
    for outcome in ranks.outcomes(2, fit_nan, timeout=60):
        assert outcome.error is not None
        assert outcome.error.startswith("FloatingPointError")


def fused(rank: int, world_size: int) -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    model = TheirModule(fused=True)
    make_trainer(rank, world_size, plugins=[plugin]).fit(model, make_loader(rank, world_size))


def test_fused_optimizers_under_a_scaler_are_refused(ranks: RankPool) -> None:
    for outcome in ranks.outcomes(2, fused, timeout=60):
        assert "fused=False" in (outcome.error or "")


def validate(rank: int, world_size: int, late: bool) -> tuple[list[State], float]:
    model = TheirModule(late=late)
    trainer = make_trainer(rank, world_size)
    trainer.validate(model, make_loader(rank, world_size), verbose=False)
    first = {key: value.clone() for key, value in model.state_dict().items()}
    trainer.validate(model, make_loader(rank, world_size), verbose=False)
    return [first, model.state_dict()], trainer.callback_metrics["val_loss"].item()


@pytest.mark.parametrize("late", [False, True])
def test_validate_without_fit_leaves_the_shards_alone(ranks: RankPool, late: bool) -> None:
    [([expected, _], loss)] = ranks.run(1, validate, late)
    results = ranks.run(2, validate, late)
    for place in range(2):
        state = whole_state([states[place] for states, _ in results])
        assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert results[0][1] == pytest.approx(loss, rel=1e-4)


class HeadOnly(L.LightningModule):
    """Nothing is left for DDP: the features are fixed, and the buffer must still be rank 0's."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.backbone = nn.Linear(WIDTH, DIM).requires_grad_(False)
        nn.init.constant_(self.backbone.weight, 0.1 + rank)
        self.register_buffer("offset", torch.full((1,), float(rank)))
        self.head = PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss=CosFace(scale=8.0))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.head(self.backbone(batch[0]) + self.offset, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.head.weight], 0.1)


def fit_head_only(rank: int, world_size: int) -> State:
    model = HeadOnly(rank)
    torch.nn.init.zeros_(model.backbone.bias)
    make_trainer(rank, world_size).fit(model, make_loader(rank, world_size))
    return model.state_dict()


def test_a_model_with_nothing_to_replicate(ranks: RankPool) -> None:
    [expected] = ranks.run(1, fit_head_only)
    state = whole_state(ranks.run(2, fit_head_only))
    torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-6)


class NoHead(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layer = nn.Linear(WIDTH, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit_no_head(rank: int, world_size: int, strategy: str) -> State:
    model = NoHead()
    trainer = make_trainer(rank, world_size, strategy=strategy, gradient_clip_val=0.1)
    trainer.fit(model, make_loader(rank, world_size))
    return model.state_dict()


def test_a_model_without_a_head_trains_as_under_ddp(ranks: RankPool) -> None:
    ours, stock = ranks.run(2, fit_no_head, "pfc"), ranks.run(2, fit_no_head, "ddp")
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def fit_groups(rank: int, world_size: int) -> Any:
    model = TheirModule(momentum=0.9)
    join_group()
    strategy = PartialFCStrategy(head_group_size=2)
    trainer = make_trainer(rank, world_size, strategy=strategy, gradient_clip_val=0.1)
    trainer.fit(model, make_loader(rank, world_size, sizes=(2, 3, 1, 2)))
    return model.losses, model.state_dict()


def test_heads_shared_by_groups_of_two(ranks: RankPool) -> None:
    [(losses, expected)] = ranks.run(1, fit, {"momentum": 0.9}, {"gradient_clip_val": 0.1}, {"sizes": (2, 3, 1, 2)})
    results = ranks.run(4, fit_groups, group="later")
    for pair in (results[:2], results[2:]):
        torch.testing.assert_close(whole_state([s for _, s in pair]), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[3][0], losses, rtol=1e-5, atol=1e-6)
    for a, b in ((0, 2), (1, 3)):
        assert torch.equal(results[a][1]["head.weight"], results[b][1]["head.weight"])


def plain_fit(rank: int, world_size: int, **options: Any) -> None:
    make_trainer(rank, world_size, **options).fit(TheirModule(), plain_loader())


def group_of_three(rank: int, world_size: int) -> None:
    plain_fit(rank, world_size, strategy=PartialFCStrategy(head_group_size=3))


def test_a_group_size_that_does_not_divide_is_refused(ranks: RankPool) -> None:
    for outcome in ranks.outcomes(2, group_of_three, timeout=60):
        assert "head_group_size=3 does not divide the 2 ranks" in (outcome.error or "")


@pytest.mark.parametrize("strategy", ["pfc", PartialFCStrategy(), PartialFCStrategy(clip="backbone")])
@pytest.mark.parametrize(
    ("precision", "kind"),
    [(None, ShardedPrecision), ("bf16-mixed", ShardedMixedPrecision), ("bf16-true", ShardedHalfPrecision)],
)
def test_the_trainers_precision_counts_whatever_form_the_strategy_has(
    strategy: Any, precision: Any, kind: type[Precision]
) -> None:
    strategy = copy.deepcopy(strategy)
    trainer = L.Trainer(strategy=strategy, precision=precision, accelerator="cpu", logger=False)
    assert type(trainer.precision_plugin) is kind
    assert trainer.precision == (precision or "32-true")
