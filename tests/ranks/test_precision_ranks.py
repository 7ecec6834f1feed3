"""Every loss at every rate in each precision, on 1, 2 and 3 ranks, against the same head in float64 on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lightning_pfc import losses
from lightning_pfc.distributed import Comm
from lightning_pfc.heads.partial_fc import PartialFC
from tests.ranks import RankPool

DIM, CLASSES, SPLIT = 32, 101, (7, 1, 4)
LOSSES: list[losses.Loss] = [
    getattr(losses, name)() for name in losses.loss_names() if name not in ("MarginWarmup", "Softmax")
] + [losses.MarginWarmup(loss=losses.ArcFace()), losses.Softmax(bias=True), losses.NormFace(label_smoothing=0.1)]
RATES = (1.0, 0.1, 0.0)
WORDS = ("float32", "tf32", "bfloat16", "float16", "float16x3")
ALLOWED = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 8e-2, "float16": 1.5e-2, "float16x3": 1e-4}  # of the sums


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, CLASSES, (sum(SPLIT),), generator=generator)
    labels[1] = labels[0]
    labels[-1] = CLASSES - 1
    return 3 * torch.randn(len(labels), DIM, generator=generator), labels


def step(comm: Comm, own: slice, loss: losses.Loss, rate: float, word: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Loss and gradients of a batch; those of the centers are this rank's rows."""
    head = PartialFC(
        embedding_dim=DIM, num_classes=CLASSES, loss=loss, sample_rate=rate, comm=comm, precision=word,
        dtype=dtype, chunk_size=20, init_std=1.0, seed=2, memory_budget=2000,
    ).to("cpu")  # fmt: skip
    x, labels = batch()
    leaf = x[own].to(dtype).requires_grad_()
    value = head(leaf, labels[own])
    value.backward()
    assert leaf.grad is not None
    assert head.weight.grad is not None
    return {"loss": value.detach(), "x": leaf.grad / comm.world_size, "weight": head.weight.grad}


def cases_on(world_size: int) -> list[tuple[losses.Loss, float, str]]:
    """All of them in one process; on several the two precisions that differ most."""
    words = WORDS if world_size == 1 else ("float32", "bfloat16")
    return [(loss, rate, word) for loss in LOSSES for rate in RATES for word in words]


def every_case(rank: int, world_size: int) -> list[dict[str, Tensor]]:
    comm = Comm.from_group() if dist.is_initialized() else Comm.single()
    sizes = {1: [sum(SPLIT)], 2: [SPLIT[0], SPLIT[1] + SPLIT[2]], 3: list(SPLIT)}[world_size]
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    return [step(comm, own, loss, rate, word, torch.float32) for loss, rate, word in cases_on(world_size)]


@pytest.fixture(scope="module")
def exact() -> dict[str, dict[str, Tensor]]:
    everything, alone = slice(0, sum(SPLIT)), Comm.single()
    return {
        f"{loss} {rate}": step(alone, everything, loss, rate, "float32", torch.float64)
        for loss in LOSSES for rate in RATES
    }  # fmt: skip


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_losses_and_gradients(ranks: RankPool, world_size: int, exact: dict[str, dict[str, Tensor]]) -> None:
    found = ranks.run(world_size, every_case, group=world_size > 1)
    off: list[str] = []
    for (loss, rate, word), *parts in zip(cases_on(world_size), *found, strict=True):
        wanted, allowed = exact[f"{loss} {rate}"], ALLOWED[word]
        value = abs(parts[0]["loss"].double() - wanted["loss"]).item() / max(1.0, abs(wanted["loss"].item()))
        x_grad = torch.cat([part["x"] for part in parts]).double()
        w_grad = torch.cat([part["weight"] for part in parts]).double()
        away = max(_apart(x_grad, wanted["x"]), _apart(w_grad, wanted["weight"]))
        along = min(_cosine(x_grad, wanted["x"]), _cosine(w_grad, wanted["weight"]))
        if value > allowed / 16 or away > allowed or along < 1 - allowed**2:
            off.append(f"{loss} {rate} {word}: loss {value:.2g}, gradients {away:.2g}, cosine {1 - along:.2g} from 1")
    assert not off, "\n".join(off)


def _apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def _cosine(found: Tensor, wanted: Tensor) -> float:
    return float(F.cosine_similarity(found.flatten(), wanted.flatten(), 0, eps=1e-300))
