"""How many messages a step sends on the CPU, and that riding on another's changes no value and hides no error."""

from __future__ import annotations

import types
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_pfc.distributed import Comm
from lightning_pfc.distributed.agreement import Agreement, Rider
from lightning_pfc.strategies import PartialFCStrategy, steps, waiting
from tests.ranks import RankPool
from tests.trainer.world import TheirModule, make_loader, make_trainer

BATCHES, SIZES = 5, (4, 3, 5)
START, HEAD, END = "on_train_batch_start", "PartialFC.forward", "training_step"


def make(rank: int, world_size: int, broadcasts: bool, accumulated: int = 1, **options: Any) -> Any:
    """DDP sends buffers from rank 0 before each forward pass, unless that is switched off."""
    strategy = PartialFCStrategy(broadcast_buffers=broadcasts, **options)
    return make_trainer(
        rank, world_size, num_sanity_val_steps=0, strategy=strategy, accumulate_grad_batches=accumulated
    )


def fit(
    rank: int, world_size: int, kind: type[TheirModule], broadcasts: bool = True, **options: Any
) -> tuple[list[str], list[Tensor]]:
    """The messages of a fit by their tags, and what was trained."""
    said: list[str] = []
    exchange = Agreement.exchange

    def listen(self: Agreement, tag: str, *args: Any, **kwargs: Any) -> Any:
        said.append(tag)
        return exchange(self, tag, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Agreement, "exchange", listen)
        if (waits := options.pop("waits", None)) is not None:
            patch.setattr(steps, "waits_before_head", lambda model: waits)
        if (host_waits := options.pop("host_waits", None)) is not None:
            patch.setattr(waiting, "_host_waits", lambda model: host_waits)
        torch.manual_seed(0)
        module = kind()
        make(rank, world_size, broadcasts, **options).fit(
            module, make_loader(rank, world_size, BATCHES, SIZES[:world_size])
        )
    steps_only = [tag for tag in said if tag in (START, HEAD, END)]
    return steps_only, [value.clone() for value in module.state_dict().values()]


@pytest.mark.parametrize(
    ("options", "late"),
    [
        ({}, [START, HEAD, END]),
        ({"host_waits": False}, [HEAD, END]),  # as NCCL's broadcast
        ({"broadcasts": False}, [HEAD, END]),
        ({"broadcasts": False, "start_message": "always"}, [START, HEAD, END]),
        ({"broadcasts": False, "accumulated": 2}, [HEAD, END]),
        ({"broadcasts": False, "accumulated": 3}, [HEAD, END]),
    ],
)
def test_messages_of_a_step(ranks: RankPool, options: dict[str, Any], late: list[str]) -> None:
    """Until the forward after the first step of the optimizer DDP may wait for others, so a start has its message."""
    first = 1 + options.get("accumulated", 1)
    for said, _ in ranks.run(2, partial(fit, kind=TheirModule, **options), timeout=60):
        assert said == [START, HEAD, END] * first + late * (BATCHES - first)


def test_without_buckets_to_agree_on_there_is_no_message(ranks: RankPool) -> None:
    for said, _ in ranks.run(2, partial(fit, kind=TheirModule, broadcasts=False, find_unused_parameters=True)):
        assert said == [HEAD, END] * BATCHES


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_no_value_changes(ranks: RankPool, world_size: int) -> None:
    before = ranks.run(world_size, partial(fit, kind=TheirModule, waits=True), timeout=60)
    now = ranks.run(world_size, partial(fit, kind=TheirModule, waits=False), timeout=60)
    for (said, values), (fewer, others) in zip(before, now, strict=True):
        if world_size > 1:
            assert (len(said), len(fewer)) == (3 * BATCHES, 2 * BATCHES)
        for one, other in zip(values, others, strict=True):
            assert torch.equal(one, other)


class Skips(TheirModule):
    """The head is not called in the fourth step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 3:
            return self.backbone(batch[0]).square().mean()
        return super().training_step(batch, batch_idx)


def test_without_a_head_in_a_step_they_ride_on_its_last_message(ranks: RankPool) -> None:
    for said, _ in ranks.run(2, partial(fit, kind=Skips, waits=False), timeout=60):
        assert said == [HEAD, END] * 3 + [END] + [HEAD, END]


class Drifts(TheirModule):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2 and self.global_rank == 1:
            with torch.no_grad():
                self.backbone[0].weight[0, 0] += 1  # type: ignore[index, operator]


class FreezesAlone(TheirModule):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2 and self.global_rank == 1:
            self.backbone[0].bias.requires_grad_(False)  # type: ignore[index]


class RaisesBetween(TheirModule):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3 and self.global_rank == 1:
            raise OSError("the disk has gone")


class RaisesEarly(TheirModule):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2 and self.global_rank == 1:
            raise OSError("the disk has gone")


KINDS = {"drifts": Drifts, "freezes": FreezesAlone, "raises": RaisesBetween, "raises early": RaisesEarly}


def fails(rank: int, world_size: int, kind: str, accumulated: int = 1, **options: Any) -> tuple[str, bool]:
    trainer = make(rank, world_size, broadcasts=False, accumulated=accumulated, **options)
    try:
        trainer.fit(KINDS[kind](), make_loader(rank, world_size, BATCHES, SIZES))
        text = ""
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    return text, Comm.from_group().agreement.rider is None


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("drifts", "parameter backbone.0.weight of rank 1 is not that of the other ranks at step 2"),
        ("freezes", "backbone.0.bias is trained on rank 0 and frozen on rank 1"),
        ("raises", "the disk has gone"),
    ],
)
def test_what_rides_is_named_on_every_rank(ranks: RankPool, kind: str, said: str) -> None:
    results = ranks.run(3, fails, kind, timeout=60)
    for text, is_cleared in results:
        assert said in text
        assert is_cleared, "nothing of it rides with a later message"
    if kind == "raises":
        assert results[0][0] == results[2][0] == "OSError: rank 1: the disk has gone"


@pytest.mark.parametrize("accumulated", [1, 2, 3])
def test_an_error_while_ddp_agrees_on_its_buckets(ranks: RankPool, accumulated: int) -> None:
    """That of batch 2 is before the forward in which it does, with gradients of two batches accumulated."""
    said = [text for text, _ in ranks.run(2, partial(fails, kind="raises early", accumulated=accumulated), timeout=60)]
    assert said == ["OSError: rank 1: the disk has gone", "OSError: the disk has gone"]


def ride(rank: int, world_size: int) -> list[Any]:
    agreement, heard = Comm.from_group().agreement, list[list[list[int]]]()
    agreement.rider = None
    if rank == 1:
        agreement.rider = Rider([7], heard.append)
    agreement.exchange("one", [rank])  # rank 0 has none: it stays
    alone = (list(heard), agreement.rider is not None)
    agreement.rider = Rider([rank, -5], heard.append)
    numbers = agreement.exchange("two", [10 + rank])
    agreement.exchange("three")

    def judge(said: Any) -> None:
        raise ValueError(f"of {[each[0] for each in said]}")

    agreement.rider = Rider([rank], judge)
    with pytest.raises(ValueError, match="of") as caught:
        agreement.exchange(f"at {rank}")  # what rides is judged before it is said that the tags differ
    assert agreement.knows(caught.value)
    dist.barrier()
    return [alone, heard, [each[0] for each in numbers], str(caught.value), agreement.rider]


def test_riders(ranks: RankPool) -> None:
    for rank, (alone, heard, numbers, error, rider) in enumerate(ranks.run(2, ride)):
        assert alone == ([], rank == 1)
        assert heard == [[[0, -5, 0, 0], [1, -5, 0, 0]]]
        assert numbers == [10, 11]
        assert error == "of [0, 1]"
        assert rider is None


def test_where_a_host_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(cuda: bool, syncs: bool = True, child: nn.Module | None = None, **options: bool) -> bool:
        model = DistributedDataParallel.__new__(DistributedDataParallel)
        nn.Module.__init__(model)
        vars(model).update(
            modules_buffers=[types.SimpleNamespace(is_cuda=cuda)],
            process_group=None,
            parameters_to_ignore=set(),
            will_sync_module_buffers=lambda: syncs,
            **{"find_unused_parameters": False, "static_graph": False, "_has_rebuilt_buckets": True, **options},
        )
        model.module = nn.Sequential(child or nn.BatchNorm1d(1))
        return waiting.waits_before_head(model)

    backend = "nccl"
    monkeypatch.setattr(dist, "get_backend", lambda group=None: backend)
    for name in waiting._BLOCKING:
        monkeypatch.delenv(name, raising=False)
    assert not waiting.waits_before_head(nn.Linear(1, 1)), "no DDP"
    assert waits(cuda=True, _has_rebuilt_buckets=False), "it agrees on its buckets"
    assert waits(cuda=True, _has_rebuilt_buckets=False, find_unused_parameters=True, static_graph=True)
    assert not waits(cuda=True, _has_rebuilt_buckets=False, find_unused_parameters=True), "it never does"
    assert not waits(cuda=True)
    assert waits(cuda=True, child=nn.SyncBatchNorm(1))
    assert waits(cuda=False)
    assert not waits(cuda=False, syncs=False)
    assert waits(cuda=False, syncs=False, child=nn.SyncBatchNorm(1))
    backend = "gloo"
    assert waits(cuda=True)
    backend = "cpu:gloo,cuda:nccl"
    assert not waits(cuda=True)
    monkeypatch.setenv("TORCH_NCCL_BLOCKING_WAIT", "1")
    assert waits(cuda=True)
