"""Scripts without a Trainer that save a model with torch's own functions: no class is lost without a word."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from lightning_pfc import PartialFC
from lightning_pfc.distributed.stated_rows import _warned as rows_said_once
from lightning_pfc.optim import SparseSGD
from tests.ranks import RankPool, join_group
from tests.ranks.test_wrappers import Model, batch

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:TypedStorage")
FULL = StateDictOptions(full_state_dict=True)
SENT = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def sgd(model: Model) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def adam(model: Model) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def sparse(model: Model) -> torch.optim.Optimizer:
    return SparseSGD(model.parameters(), lr=0.1, momentum=0.9)


def train(rank: int, world_size: int, model: Model, optimizer: Any) -> None:
    for step in range(3):
        optimizer.zero_grad()
        model(*batch(rank, world_size, step)).backward()
        for param in model.backbone.parameters() if world_size > 1 else ():
            assert param.grad is not None
            dist.all_reduce(param.grad)
            param.grad /= world_size
        optimizer.step()


def trained(rank: int, world_size: int, make: Callable[..., Any], classes: int = 12) -> tuple[Model, Any]:
    if world_size > 1:
        join_group()
    model = Model(classes)
    optimizer = make(model)
    train(rank, world_size, model, optimizer)
    return model, optimizer


def fresh(make: Callable[..., Any], classes: int = 12) -> tuple[Model, Any]:
    model = Model(classes)
    for param in model.parameters():
        nn.init.zeros_(param)
    return model, make(model)


def plain(tree: Any) -> Any:
    if isinstance(tree, tuple):
        return tuple(map(plain, tree))
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return tree.detach().clone().as_subclass(Tensor) if isinstance(tree, Tensor) else tree


def content(model: Model, optimizer: Any) -> tuple[Any, Any]:
    """Everything, on every rank."""
    weights, state = plain(get_state_dict(model, optimizer, options=FULL))
    return weights, state["state"]


def saved(rank: int, world_size: int, make: Callable[..., Any], folder: str, how: str) -> Any:
    model, optimizer = trained(rank, world_size, make)
    if how == "state_dict":
        dcp.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint_id=folder)
    elif how == "async":
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        dcp.async_save(state, checkpoint_id=folder).result()  # type: ignore[union-attr]
    elif how == "copied":
        copied = {key: value.cpu().clone() for key, value in model.state_dict().items()}
        dcp.save({"model": copied, "optimizer": optimizer.state_dict()}, checkpoint_id=folder)
    else:
        both = get_state_dict(model, optimizer)
        dcp.save({"model": both[0], "optimizer": both[1]}, checkpoint_id=folder)
    return content(model, optimizer)


def loaded(rank: int, world_size: int, make: Callable[..., Any], folder: str, how: str) -> Any:
    if world_size > 1:
        join_group()
    model, optimizer = fresh(make)
    if how == "get_state_dict":
        both = get_state_dict(model, optimizer)
        state: dict[str, Any] = {"model": both[0], "optimizer": both[1]}
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=both[0], optim_state_dict=both[1])
    else:
        train(rank, world_size, model, optimizer)  # state, to be overwritten
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        dcp.load(state, checkpoint_id=folder)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    kinds = {type(value) for state in optimizer.state.values() for value in state.values()}
    assert kinds <= {Tensor, int, type(None)}, kinds
    return content(model, optimizer)


@pytest.mark.parametrize("make", [sgd, adam, sparse], ids=lambda make: make.__name__)
@pytest.mark.parametrize("how", ["state_dict", "async", "copied", "get_state_dict"])
def test_a_distributed_checkpoint_has_the_rows_of_every_rank(
    ranks: RankPool, tmp_path: Path, make: Callable[..., Any], how: str
) -> None:
    said = ranks.run(2, saved, make, str(tmp_path / "there"), how, group="later")
    assert said[0][0]["head.weight"].shape == (12, 6)
    for world_size in (3, 1):
        for here in ranks.run(world_size, loaded, make, str(tmp_path / "there"), how, group="later"):
            torch.testing.assert_close(here, said[0], rtol=0, atol=0)


def given(rank: int, world_size: int, make: Callable[..., Any], options: StateDictOptions) -> Any:
    """From all that rank 0, or every rank, has in memory to a model that begins."""
    model, optimizer = trained(rank, world_size, make)
    before: Any = copy.deepcopy(get_state_dict(model, optimizer, options=FULL))  # some of it is the model's own memory
    assert torch.equal(before[0]["head.weight"][model.head.shard.start : model.head.shard.stop], model.head.weight)
    other, its = fresh(make)
    sends = rank == 0 or not options.broadcast_from_rank0
    set_model_state_dict(other, before[0] if sends else {}, options=options)
    set_optimizer_state_dict(other, its, before[1] if sends else {}, options=options)
    train(rank, world_size, other, its)
    train(rank, world_size, model, optimizer)
    return content(model, optimizer), content(other, its)


@pytest.mark.parametrize("make", [sgd, adam, sparse], ids=lambda make: make.__name__)
@pytest.mark.parametrize("options", [FULL, SENT], ids=["full", "broadcast"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_full_state_dict_has_all_rows_and_gives_each_rank_its_own(
    ranks: RankPool, make: Callable[..., Any], options: StateDictOptions, world_size: int
) -> None:
    for there, here in ranks.run(world_size, given, make, options, group="later"):
        assert there[0]["head.weight"].shape == (12, 6)
        torch.testing.assert_close(here, there, rtol=0, atol=0)


def of_one_rank(rank: int, world_size: int) -> list[str]:
    """What is one rank's own, sent to all as if it were everybody's."""
    model, optimizer = trained(rank, world_size, adam)
    texts = []
    weights, state = model.state_dict(), get_optimizer_state_dict(model, optimizer)
    for call in (
        lambda: set_model_state_dict(model, dict(weights) if rank == 0 else {}, options=SENT),
        lambda: set_optimizer_state_dict(model, optimizer, state if rank == 0 else {}, options=SENT),
        lambda: set_model_state_dict(model, dict(weights), options=FULL),
    ):
        try:
            call()
            texts.append("")
        except RuntimeError as error:  # noqa: PERF203
            texts.append(str(error))
    return texts


def test_the_rows_of_one_rank_are_not_taken_for_everybodys(ranks: RankPool) -> None:
    for texts in ranks.run(2, of_one_rank, group="later"):
        for text in texts:
            assert "6 rows" in text
            assert "12 classes" in text
            assert "full_state_dict=True" in text


def written(rank: int, world_size: int) -> Any:
    model, _ = trained(rank, world_size, sgd)
    rows_said_once.clear()  # by whatever this process ran before
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        torch.save(get_model_state_dict(model, options=FULL), io.BytesIO())
    file.seek(0)
    back = torch.load(file, weights_only=True)
    assert {type(value) for value in back.values()} == {Tensor}
    own = torch.equal(back["head.weight"], model.head.weight)
    return own, [str(w.message) for w in caught if "PartialFC" in str(w.message)]


def test_a_file_of_one_ranks_rows_is_said_to_be_one(ranks: RankPool) -> None:
    for rank, (own, said) in enumerate(ranks.run(2, written, group="later")):
        assert own
        assert len(said) == 1
        assert f"the classes {6 * rank} to {6 * rank + 5} of 12" in said[0]
    assert ranks.run(1, written) == [(True, [])]


def test_one_process_has_ordinary_tensors() -> None:
    head = PartialFC(embedding_dim=4, num_classes=10, loss="softmax", init_std=0.1).to("cpu")
    assert type(head.state_dict()["weight"]) is Tensor
