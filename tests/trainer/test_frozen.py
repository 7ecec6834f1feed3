"""What changes after set-up: parameters that are frozen and thawed, heads, buffers, groups. Followed, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import BackboneFinetuning, Callback
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import post_localSGD_hook as post
from torch.nn.parallel import DistributedDataParallel

from lightning_pfc import PartialFC, PartialFCStrategy
from lightning_pfc.optim import SparseSGD
from lightning_pfc.optim.factory import create_optimizer
from tests.ranks import RankPool, join_group
from tests.trainer.world import DIM, WIDTH, TheirModule, make_loader, make_trainer, whole_state

State = dict[str, Tensor]


class Base(TheirModule):
    """Three epochs; what changes, changes when the second begins."""

    def change(self) -> None:
        """Once, before the second epoch."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.change()


class Tuned(Base):
    """With Lightning's BackboneFinetuning: the optimizer is made of what is trained."""

    def configure_optimizers(self) -> Any:
        return self.optimizer([p for p in self.parameters() if p.requires_grad], lr=self.lr, momentum=0.9)


class Thawed(Base):
    """The whole backbone is frozen at first, though the optimizer holds it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.backbone.requires_grad_(False)

    def change(self) -> None:
        self.backbone.requires_grad_(True)


class ThawedInPart(Base):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.backbone[0].requires_grad_(False)

    def change(self) -> None:
        self.backbone[0].requires_grad_(True)


class ThawedWithinAnEpoch(ThawedInPart):
    def change(self) -> None:
        pass

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.backbone[0].requires_grad_(True)


class Frozen(Base):
    """All is trained at first; DDP would wait for ever for what no longer has a gradient."""

    def change(self) -> None:
        self.backbone[0].requires_grad_(False)


class FrozenHead(Base):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        assert self.head is not None
        self.head.requires_grad_(False)

    def change(self) -> None:
        assert self.head is not None
        self.head.requires_grad_(True)


class NewLayer(Base):
    """A layer that nobody has seen before, with other initial values on every rank: those of rank 0 count."""

    def change(self) -> None:
        torch.manual_seed(self.global_rank)
        self.backbone.append(nn.Linear(DIM, DIM))
        self.trainer.optimizers[0].add_param_group({"params": self.backbone[-1].parameters()})


class NewHead(Base):
    """Other classes: the head, and with it the shard that is clipped, is another one."""

    def change(self) -> None:
        self.head = self.make_head()
        self.head.to("cpu")
        self.trainer.optimizers[0].add_param_group({"params": self.head.parameters()})


class NewBuffer(Base):
    """A buffer that DDP sends from rank 0, replaced by another tensor."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.backbone.insert(1, nn.BatchNorm1d(8))

    def change(self) -> None:
        self.backbone[1].running_mean = torch.full((8,), float(self.global_rank))


class Owned(Base):
    """A parameter that its owner keeps out of DDP, and that differs on purpose."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.mine = nn.Parameter(torch.zeros(()), requires_grad=False)
        self._ddp_params_and_buffers_to_ignore = ["mine"]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.mine += self.global_rank


KINDS = [Tuned, Thawed, ThawedInPart, ThawedWithinAnEpoch, Frozen, FrozenHead, NewLayer, NewHead]


def fit(rank: int, world_size: int, kind: type[Base], options: dict[str, Any], trainer: dict[str, Any]) -> Any:
    if world_size > 1:
        join_group()
    torch.manual_seed(0)
    model = kind(**options)
    start = {key: value.clone() for key, value in model.state_dict().items() if key.startswith("backbone")}
    callbacks: list[Callback] = []
    if kind is Tuned:
        callbacks = [BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.05, verbose=False)]
    made = make_trainer(rank, world_size, max_epochs=3, callbacks=callbacks, **trainer)
    made.fit(model, make_loader(rank, world_size))
    return start, model.state_dict()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_changes_is_followed_on_every_rank(ranks: RankPool, kind: type[Base]) -> None:
    sparse = kind in (Thawed, NewHead)
    options = {"optimizer": SparseSGD if sparse else torch.optim.SGD, "sample_rate": 0.6 if sparse else 1.0}
    trainer = {"gradient_clip_val": 0.5} if kind is NewHead else {}
    [(start, expected)] = ranks.run(1, fit, kind, options, trainer)
    state = whole_state([part for _, part in ranks.run(2, fit, kind, options, trainer, group="later")])
    assert set(state) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
    assert not torch.equal(state["backbone.0.weight"], start["backbone.0.weight"])


def test_a_buffer_that_was_replaced_is_still_that_of_rank_0(ranks: RankPool) -> None:
    for _, state in ranks.run(2, fit, NewBuffer, {}, {"max_steps": 7}, group="later"):
        assert float(state["backbone.1.running_mean"].abs().max()) < 0.9  # rank 1 had ones


def test_what_its_owner_keeps_apart_stays_apart(ranks: RankPool) -> None:
    states = [state for _, state in ranks.run(2, fit, Owned, {}, {}, group="later")]
    assert [float(state["mine"]) for state in states] == [0.0, 18.0]


class Lost(Thawed):
    """Unfrozen by hand, and in no optimizer."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.lr)


class LostByConfig(Thawed):
    def configure_optimizers(self) -> Any:
        return create_optimizer(self, {"name": "sgd", "lr": 0.1}, row_sparse=False)


class Divided(ThawedInPart):
    def change(self) -> None:
        if self.global_rank == 1:
            super().change()


class LostHead(Base):
    def change(self) -> None:
        self.head = self.make_head()


def refused(rank: int, world_size: int, kind: type[Base]) -> str:
    if world_size > 1:
        join_group()
    try:
        make_trainer(rank, world_size, max_epochs=3).fit(kind(), make_loader(rank, world_size))
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        (Lost, "backbone.0.weight (and 3 more)", "add_param_group"),
        (LostByConfig, "backbone.0.weight (and 3 more)", "add_param_group"),
        (LostHead, "head.weight", "add_param_group"),
        (Divided, "backbone.0.bias", "trained on rank 1 and frozen on rank 0"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_followed_is_refused_on_every_rank(
    ranks: RankPool, kind: type[Base], name: str, said: str
) -> None:
    errors = ranks.run(2, refused, kind, group="later")
    if kind is not Divided:
        errors += ranks.run(1, refused, kind)
    for error in errors:
        assert error.startswith(name)
        assert said in error
        assert "frozen" in error


def without_a_trainer(rank: int, world_size: int) -> tuple[str, bool]:
    backbone = nn.Linear(WIDTH, DIM)
    head = PartialFC(embedding_dim=DIM, num_classes=11, loss="CosFace")
    module = nn.ModuleList([backbone, head])
    module.to("cpu")
    backbone.requires_grad_(False)
    optimizer = create_optimizer(module, {"name": "sgd", "lr": 0.1}, row_sparse=True)
    said = ""
    for step in range(3):
        head(backbone(torch.randn(4, WIDTH)), torch.tensor([1, 2, 3, 9])).backward()
        try:
            optimizer.step()
        except ValueError as error:
            said = str(error)
            optimizer.add_param_group({"params": list(backbone.parameters())})
            optimizer.step()
        if step == 0:
            before = backbone.weight.clone()
            backbone.requires_grad_(True)
    return said, torch.equal(before, backbone.weight)


def test_create_optimizer_tells_of_what_was_frozen_then(ranks: RankPool) -> None:
    for said, unchanged in [*ranks.run(1, without_a_trainer), *ranks.run(2, without_a_trainer)]:
        assert said.startswith("0.weight (and 1 more) was frozen")
        assert not unchanged


class OnCPUToo(PartialFCStrategy):
    def _register_ddp_hooks(self) -> None:
        assert isinstance(self.model, DistributedDataParallel)
        self.model.register_comm_hook(self._ddp_comm_state, self._ddp_comm_hook)  # Lightning's: on CUDA only


def local_sgd(rank: int, world_size: int) -> list[Any]:
    join_group()
    state = post.PostLocalSGDState(process_group=None, subgroup=dist.new_subgroups(1)[0], start_localSGD_iter=1)
    strategy = OnCPUToo(ddp_comm_state=state, ddp_comm_hook=post.post_localSGD_hook, model_averaging_period=4)
    model = TheirModule()
    seen: list[Any] = []

    class Look(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            seen.append(model.backbone[0].weight.detach().clone())  # type: ignore[operator]

    make_trainer(rank, world_size, strategy=strategy, callbacks=[Look()]).fit(model, make_loader(rank, world_size))
    return seen


def test_replicas_that_differ_on_purpose_are_let_be_and_averages_leave_shards_alone(ranks: RankPool) -> None:
    one, other = ranks.run(2, local_sgd, group="later")
    assert not torch.equal(one[3], other[3])
    torch.testing.assert_close(one[5], other[5])
