"""Every optimizer of torch and timm on a sharded head: as on one process, refused, or warned of; never silent."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_pfc import PartialFC
from lightning_pfc.distributed import Comm
from lightning_pfc.optim import LARS, SparseAdamW, SparseSGD
from lightning_pfc.optim.foreign import check_optimizer
from tests.ranks import RankPool

CLASSES, DIM, BATCH, STEPS = 23, 20, 12, 3
TABLE = Path(__file__).parents[2] / "docs" / "optimizers.md"
BFLOAT16 = ("Muon", "muon", "nmuon", "adamuon", "nadamuon")  # compute in it, and are as exact


def _is_optimizer(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer


TORCH = {name: value for name, value in vars(torch.optim).items() if _is_optimizer(value)}
NAMES = [*TORCH, *timm.optim.list_optimizers()]  # torch's begin with a capital, timm's do not


def make(name: str, params: Any) -> Any:
    if name in TORCH:
        return TORCH[name](params, lr=0.01)
    return timm.optim.create_optimizer_v2(params, opt=name, lr=0.01, weight_decay=0.01)


class Model(nn.Module):
    """A backbone and a head, and a step of both as DDP would take it."""

    def __init__(self, rank: int, world_size: int, classes: int = CLASSES, comm: Comm | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rank, self.world_size = rank, world_size
        self.head = PartialFC(embedding_dim=DIM, num_classes=classes, loss="CosFace", init_std=1.0, comm=comm)
        self.backbone = nn.Linear(8, DIM, bias=False)
        self.generator = torch.Generator().manual_seed(1)
        self.to("cpu")

    def next_batch(self) -> None:
        own = slice(self.rank * BATCH // self.world_size, (self.rank + 1) * BATCH // self.world_size)
        self.x = torch.randn(BATCH, 8, generator=self.generator)[own]
        self.labels = torch.randint(0, self.head.num_classes, (BATCH,), generator=self.generator)[own]

    def closure(self) -> Tensor:
        self.zero_grad()
        loss: Tensor = self.head(self.backbone(self.x), self.labels)
        loss.backward()
        if self.world_size > 1:
            dist.all_reduce(self.backbone.weight.grad)
            self.backbone.weight.grad /= self.world_size
        return loss

    def weights(self) -> list[Tensor]:
        return [self.backbone.weight.detach(), self.head.weight.detach()]


def train(rank: int, world_size: int, name: str) -> tuple[str, list[Tensor]]:
    model = Model(rank, world_size)
    optimizer = make(name, [model.backbone.weight, model.head.weight])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(STEPS):
            model.next_batch()
            with torch.compiler.set_stance("force_eager"):  # kron compiles itself, for minutes
                optimizer.step(model.closure)
        said = "warned" if any("norm" in str(w.message) and "shard" in str(w.message) for w in caught) else ""
        return said or check_optimizer(optimizer).kind.name, model.weights()


def outcome_of(rank: int, world_size: int, name: str) -> Any:
    try:
        return train(rank, world_size, name)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def train_all(rank: int, world_size: int, which: Sequence[str]) -> dict[str, Any]:
    return {name: outcome_of(rank, world_size, name) for name in which}


def class_of(name: str, one: Any, several: list[Any]) -> str:
    """What a table says of an optimizer; raises AssertionError for one that is silently another on several ranks."""
    if isinstance(one, str):  # cannot step a head at all, or not here
        assert all(isinstance(outcome, str) for outcome in several), (name, several)
        return "needs CUDA" if "CUDA" in one else "fails on one process too"
    if any(isinstance(outcome, str) for outcome in several):
        assert all(isinstance(text, str) and "norm" in text and "shard" in text for text in several), (name, several)
        return "refused"
    kind = several[0][0]
    if kind == "warned":
        return "warned"
    allowed = 0.03 if name in BFLOAT16 else 5e-6
    for _, (backbone, _) in several:
        torch.testing.assert_close(backbone, one[1][0], rtol=0, atol=allowed, msg=lambda m: f"{name}: {m}")
    head = torch.cat([weights[1] for _, weights in several])
    torch.testing.assert_close(head, one[1][1], rtol=0, atol=allowed, msg=lambda m: f"{name}: {m}")
    return {"BY_ROWS": "equal", "WHOLE": "equal, over all shards"}[kind]


def classes_on(ranks: RankPool, world_size: int, names: Sequence[str], one: dict[str, Any]) -> dict[str, str]:
    """The class of each on so many ranks, beside what ``train_all`` gave on one."""
    outcomes = ranks.run(world_size, train_all, names, timeout=300)
    return {name: class_of(name, one[name], [outcome[name] for outcome in outcomes]) for name in names}


def stated() -> dict[str, str]:
    """The classes that the page gives: rows of ``| class | names |``."""
    classes = "|".join(
        ["equal", "equal, over all shards", "refused", "warned", "needs CUDA", "fails on one process too"]
    )
    rows = re.findall(rf"^\| ({classes}) \| (.*) \|$", TABLE.read_text(), re.MULTILINE)
    return {name: kind for kind, names in rows for name in re.findall(r"`(\w+)`", names)}


@pytest.mark.timeout(600)  # twenty seconds of two idle cores
def test_every_optimizer_of_torch_and_timm_is_equal_refused_or_warned_of(ranks: RankPool) -> None:
    one = ranks.run(1, train_all, NAMES, timeout=200)[0]
    found: dict[str, set[str]] = {name: set() for name in NAMES}
    for world_size, names in ((2, [*TORCH, "lamb", "muon"]), (3, NAMES)):  # three shards: of eight rows, and of seven
        for name, kind in classes_on(ranks, world_size, names, one).items():
            found[name].add(kind)
    # a timm of another version has other optimizers; those that are known are as the page says
    said = stated()
    assert {name: {said[name]} for name in NAMES if name in said} == {n: k for n, k in found.items() if n in said}
    if timm.__version__ == "1.0.31":
        assert set(NAMES) == set(said)


def clip_with(how: str, parameters: list[Any]) -> float:
    """Every door to a norm of gradients that torch has, and those of others who go through it."""
    gradients = [parameter.grad for parameter in parameters]
    if how == "timm":
        timm.utils.dispatch_clip_grad(parameters, 0.05, mode="norm")
        return 0.0
    if how == "total_norm":
        norm = torch.nn.utils.get_total_norm(gradients)
        torch.nn.utils.clip_grads_with_norm_(parameters, 0.05, norm)
        return float(norm)
    if how == "foreach_norm":
        return float(torch.stack(torch._foreach_norm(gradients)).norm())
    if how == "head_alone":
        return float(torch.nn.utils.clip_grad_norm_(parameters[1:], 0.05))
    order, foreach = float(how.split("_")[0]), True if how.endswith("_foreach") else None
    return float(torch.nn.utils.clip_grad_norm_(parameters, 0.05, norm_type=order, foreach=foreach))


WAYS = ["2", "2_foreach", "1", "3", "inf", "-inf", "0", "timm", "total_norm", "foreach_norm", "head_alone"]
OPTIMIZERS = {"sgd": torch.optim.SGD, "sparse": SparseSGD, "sparse_adamw": SparseAdamW, "lars": LARS}


def clip(rank: int, world_size: int, ways: Sequence[str], group: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, make_optimizer in OPTIMIZERS.items():
        for how in ways if kind in ("sgd", "sparse") else ["2"]:
            if kind == "sparse" and how.endswith("foreach"):
                continue  # torch has no such kernel for sparse gradients, on one process either
            comm = Comm.from_group(head_group_size=group) if group else None
            model = Model(rank, world_size, comm=comm)
            model.head.sample_rate = 0.5
            optimizer = make_optimizer(model.parameters(), lr=0.1)
            norms = []
            for _ in range(2):
                model.next_batch()
                model.closure()
                norms.append(clip_with(how, [model.backbone.weight, model.head.weight]))
                optimizer.step()
            found[f"{kind} {how}"] = (norms, model.weights())
    return found


def same(one: dict[str, Any], several: list[dict[str, Any]], shards: int) -> None:
    for way in several[0]:
        norms, (backbone, head) = one[way]
        for rank in several:
            torch.testing.assert_close(rank[way][0], norms, rtol=1e-5, atol=1e-8, msg=lambda m, way=way: f"{way}: {m}")
            torch.testing.assert_close(rank[way][1][0], backbone, rtol=1e-5, atol=1e-6)
        for first in range(0, len(several), shards):
            joined = torch.cat([rank[way][1][1] for rank in several[first : first + shards]])
            torch.testing.assert_close(joined, head, rtol=1e-5, atol=1e-6, msg=lambda m, way=way: f"{way}: {m}")


def test_every_door_to_the_norm_of_gradients_gives_that_of_all_shards(ranks: RankPool) -> None:
    one = ranks.run(1, clip, WAYS)[0]
    same(one, ranks.run(2, clip, WAYS), 2)
    same(one, ranks.run(3, clip, ["2", "inf"]), 3)
    same(one, ranks.run(4, clip, ["2"], 2), 2)  # two copies of the head


def accumulate_and_thaw(rank: int, world_size: int) -> list[Tensor]:
    """Two backward passes add up; a head that was frozen at birth is watched when it is thawed."""
    model = Model(rank, world_size)
    model.head.requires_grad_(False)
    model.head.to(torch.float32)
    model.head.requires_grad_()
    model.next_batch()
    for _ in range(2):
        model.head(model.backbone(model.x), model.labels).backward()
    model.backbone.weight.grad = None
    return [
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
        model.head.weight.grad.clone().as_subclass(Tensor),
    ]


def test_accumulated_gradients_and_thawed_heads_have_the_norm_of_all_shards(ranks: RankPool) -> None:
    norm, gradient = ranks.run(1, accumulate_and_thaw)[0]
    several = ranks.run(2, accumulate_and_thaw)
    torch.testing.assert_close([rank[0] for rank in several], [norm, norm])
    torch.testing.assert_close(torch.cat([rank[1] for rank in several]), gradient)


def by_hand(rank: int, world_size: int) -> list[str]:
    model = Model(rank, world_size)
    model.next_batch()
    model.closure()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.head.weight.grad.detach().pow(2).sum()
        model.head.weight.grad.data.norm()
        model.head.weight.grad.norm()
        float(model.head.weight.grad[0, 0])
    return [str(warning.message) for warning in caught]


def test_another_reduction_is_said_to_be_of_the_shard_once(ranks: RankPool) -> None:
    assert ranks.run(1, by_hand)[0] == []
    for said in ranks.run(2, by_hand):
        assert len(said) == 2
        assert all("norm" in text and "shard" in text and "get_total_norm" in text for text in said)


def on_one_rank_only(rank: int, world_size: int) -> str:
    model = Model(rank, world_size)
    model.next_batch()
    model.closure()
    try:
        if rank == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        model.closure()
    except RuntimeError as error:
        return str(error)
    return ""


def test_a_norm_that_one_rank_takes_hangs_nobody(ranks: RankPool) -> None:
    for said in ranks.run(2, on_one_rank_only):
        assert "rank 0 is at 'norm over the shards of a gradient'" in said


class Wrapper(torch.optim.Optimizer):
    """Steps by way of another optimizer, and scales its step by the length of all parameters."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.inner = inner
        self.param_groups = inner.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.inner.step(closure)
        length = torch.stack([p.norm() for group in self.param_groups for p in group["params"]]).norm()
        for group in self.param_groups:
            for param in group["params"]:
                param.mul_(1 - 1e-3 * length)
        return loss


class Sharpness(torch.optim.Optimizer):
    """SAM: climbs along the normalised gradient, and steps by what it finds there."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any) -> None:  # type: ignore[override]
        with torch.enable_grad():
            closure()
        params = [param for group in self.param_groups for param in group["params"]]
        length = torch.stack([param.grad.norm() for param in params]).norm()
        for param in params:
            self.state[param]["climb"] = param.grad * (0.05 / length)
            param.add_(self.state[param]["climb"])
        with torch.enable_grad():
            closure()
        for param in params:
            param.sub_(self.state[param]["climb"])
            param.sub_(param.grad, alpha=0.1)


def of_their_own(rank: int, world_size: int) -> list[list[Tensor]]:
    found = []
    for kind in ("wrapper", "wrapped lamb", "lookahead", "lookahead lamb", "sam", "tensor lr"):
        model = Model(rank, world_size)
        params: list[dict[str, Any]] = [{"params": [model.backbone.weight]}, {"params": [model.head.weight]}]
        if kind.startswith("wrap"):
            optimizer: Any = Wrapper(make("lamb" if "lamb" in kind else "SGD", params))
        elif kind.startswith("lookahead"):
            name = "lookahead_" + ("lamb" if "lamb" in kind else "sgd")
            optimizer = timm.optim.create_optimizer_v2(params, opt=name, lr=0.1)
        elif kind == "sam":
            optimizer = Sharpness(params)
        else:
            optimizer = torch.optim.Adafactor(params, lr=torch.tensor(0.01))
        scheduler = None if kind.startswith("lookahead") else torch.optim.lr_scheduler.LinearLR(optimizer, 0.5)
        for _ in range(8):  # lookahead looks after six
            model.next_batch()
            optimizer.step(model.closure)
            if scheduler is not None:
                scheduler.step()
        found.append(model.weights())
    return found


def test_optimizers_that_this_package_has_never_heard_of(ranks: RankPool) -> None:
    one = ranks.run(1, of_their_own)[0]
    several = ranks.run(2, of_their_own)
    for kind, (backbone, head) in enumerate(one):
        for rank in several:
            torch.testing.assert_close(rank[kind][0], backbone, rtol=1e-5, atol=2e-6, msg=lambda m, k=kind: f"{k}: {m}")
        torch.testing.assert_close(torch.cat([rank[kind][1] for rank in several]), head, rtol=1e-5, atol=2e-6)


class Ranked(torch.optim.SGD):
    """Sorts all numbers of a parameter, which no rank can do alone."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                threshold = param.grad.flatten().sort().values[param.numel() // 2]
                param.sub_(torch.where(param.grad > threshold, param.grad, 0.0))


class Unruly(torch.optim.SGD):
    """Cannot be copied."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        self.lock = __import__("threading").Lock()


def refused_and_warned(rank: int, world_size: int) -> list[str]:
    said = []
    for kind in (Ranked, Unruly):
        model = Model(rank, world_size)
        optimizer = kind(model.parameters())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.next_batch()
            model.closure()
            try:
                optimizer.step()
                optimizer.step()
                said.append("; ".join(str(warning.message) for warning in caught))
            except ValueError as error:
                said.append(f"ValueError: {error}")
    return said


def test_what_cannot_be_made_right_is_refused_and_what_cannot_be_tried_is_warned_of(ranks: RankPool) -> None:
    for refused, warned in ranks.run(2, refused_and_warned):
        assert refused.startswith("ValueError: Ranked takes a norm")
        assert "shard" in refused
        assert warned.startswith("Unruly could not be tried")
        assert warned.count("norm") == 1
        assert "shard" in warned
