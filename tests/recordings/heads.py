"""Losses, gradients and updates of the head in every kind of run, written down before a change and compared after it.

    python -m tests.recordings.heads record          # writes heads.json beside this file
    python -m tests.recordings.heads compare         # bit for bit, on the machine and the libraries that recorded

A digest is of all that a run gave (embeddings' gradients, centers, states). Other processors add up in another order,
so the tests compare the losses alone, within a bound.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_pfc import PartialFC
from lightning_pfc.distributed import Comm
from lightning_pfc.optim import RowWiseAdagrad, SparseAdamW, SparseSGD
from lightning_pfc.optim.lars import LARS
from tests.ranks import RankPool
from tests.reference import uneven_split

FILE = Path(__file__).parent / "heads.json"
WORLDS = ((1, None), (3, None), (4, 2))  # ranks, and how many of them share the classes
BATCH, DIM, CLASSES, STEPS = 13, 8, 61, 3
LATER = ("defaults_version", "kernels_code")
"""What a head says of itself since it was recorded, and no number depends on here."""

LOSSES: dict[str, dict[str, Any]] = {
    "softmax": {"name": "softmax", "bias": True, "label_smoothing": 0.1},
    "normface": {"name": "normface", "scale": 80.0},  # beyond what a fixed reference can hold
    "sphereface": {"name": "sphereface", "margin": 2.0},
    "cosface": {"name": "cosface"},
    "cosface filtered": {"name": "cosface", "interclass_filter": 0.2},
    "arcface": {"name": "arcface"},
    "arcface smooth": {"name": "arcface", "margin_grad": "straight_through", "label_smoothing": 0.1},
    "combined": {"name": "combinedmargin", "m1": 1.2, "m2": 0.3, "m3": 0.1},
    "adaface": {"name": "adaface", "momentum": 0.2},
    "magface": {"name": "magface"},
    "curricularface": {"name": "curricularface", "momentum": 0.2},
    "mvsoftmax": {"name": "mvsoftmax"},
    "elasticface": {"name": "elasticface", "plus": True},
    "sphereface2": {"name": "sphereface2"},
    "uniface": {"name": "uniface"},
    "circle": {"name": "circle"},
    "dsoftmax": {"name": "dsoftmax"},
    "subcenter": {"name": "subcenterarcface"},
    "vpl": {"name": "vpl", "start": 0, "lifetime": 2},
    "adacos": {"name": "adacos"},
    "warmup": {"name": "marginwarmup", "loss": "arcface", "steps": 2},
}
OPTIMIZERS: dict[str, Any] = {
    "sparse sgd": lambda p: SparseSGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "sparse sgd bf16": lambda p: SparseSGD(p, lr=0.1, momentum=0.9, state_dtype="bfloat16"),
    "sparse adamw": lambda p: SparseAdamW(p, lr=0.01),
    "sparse adamw decay int8": lambda p: SparseAdamW(p, lr=0.01, missed_steps="decay", state_dtype="int8"),
    "rowwise adagrad": lambda p: RowWiseAdagrad(p, lr=0.1),
    "lars": lambda p: LARS(p, lr=0.5, momentum=0.9, trust=0.1),
    "sgd in backward": lambda p: SparseSGD(p, lr=0.1, momentum=0.9, update_in_backward=True),
    "adamw in backward": lambda p: SparseAdamW(p, lr=0.01, update_in_backward=True),
    "torch sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "torch adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}
SAMPLERS: dict[str, Any] = {
    "uniform corrected": {"name": "uniform", "correction": True},
    "positives": "positives_only",
    "frequency": {"name": "frequency", "correction": True},
    "retrieval": {"name": "retrieval", "refresh": 2},
    "mixed": {"name": "mixed", "refresh": 2, "correction": True},
    "recent": "recent",
    "dissection": "dissection",
    "schedule": {"name": "rateschedule", "steps": 2},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing kept": {"memory_budget": 0},
    "some kept": {"memory_budget": 2000},
    "filtered": {"gradient_filter": 0.1},
    "filtered, computed": {"gradient_filter": 0.1, "loss": LOSSES["curricularface"], "sample_rate": 1.0},
    "bfloat16": {"dtype": "bfloat16"},
    "one chunk": {"chunk_size": None},
    "triplet": {"auxiliary_losses": ["triplet", {"name": "supcon", "weight": 0.1}]},
    "center": {"auxiliary_losses": ["center"]},
}


def cases(replicated: bool) -> dict[str, dict[str, Any]]:
    """Every run by its name: what differs from a CosFace head at rate 0.3 under SparseSGD."""
    found: dict[str, dict[str, Any]] = {}
    for name, loss in LOSSES.items():
        if replicated and name == "vpl":
            continue  # its memory allows one copy of the head
        for rate in (1.0, 0.1, 0.0):
            found[f"loss {name} {rate}"] = {"loss": loss, "sample_rate": rate}
        found[f"loss {name} float32"] = {"loss": loss, "sample_rate": 0.1, "precision": torch.float32}
    for name, optimizer in OPTIMIZERS.items():
        for rate in (1.0, 0.3):
            found[f"optimizer {name} {rate}"] = {"optimizer": optimizer, "sample_rate": rate, "resume": True}
            if "bf16" in name or "int8" in name:
                found[f"optimizer {name} {rate}"]["precision"] = torch.float32
    for name, sampler in SAMPLERS.items():
        found[f"sampler {name}"] = {"sampler": sampler, "resume": True, "counts": name == "frequency"}
    for name, options in OPTIONS.items():
        if not (replicated and name == "center"):
            found[f"option {name}"] = options
    for name in ("arcface", "adaface", "elasticface"):
        found[f"mixed labels {name}"] = {"loss": LOSSES[name], "mixed": True}
    return found


def batch(step: int, dtype: torch.dtype, own: slice) -> list[Tensor]:
    """This rank's embeddings, labels, second labels and shares."""
    generator = torch.Generator().manual_seed(step)
    x = 3 * torch.randn(BATCH, DIM, generator=generator, dtype=torch.float64).to(dtype)
    labels, other = torch.randint(0, CLASSES, (2, BATCH), generator=generator)
    share = torch.rand(BATCH, generator=generator, dtype=torch.float64).to(dtype)
    return [part[own].clone() for part in (x, labels, other, share)]


def run(comm: Comm, own: slice, case: dict[str, Any]) -> dict[str, Any]:
    """The losses of a run, and a digest of everything that it gave on this rank."""
    usual: dict[str, Any] = {"loss": LOSSES["cosface"], "sample_rate": 0.3, "chunk_size": 7, "init_std": 0.5, "seed": 3}
    case = usual | case
    precision, mixed = case.pop("precision", torch.float64), case.pop("mixed", False)
    make_optimizer, resume = case.pop("optimizer", OPTIMIZERS["sparse sgd"]), case.pop("resume", False)
    counts = case.pop("counts", False)
    case.setdefault("dtype", str(precision).removeprefix("torch."))

    def make() -> tuple[PartialFC, Any]:
        head = PartialFC(embedding_dim=DIM, num_classes=CLASSES, comm=comm, **case)
        head.attach(comm)
        if counts:
            head.set_class_counts(torch.arange(CLASSES) % 7 + 1)
        return head, make_optimizer(head.parameters())

    head, optimizer = make()
    losses, digest = [], hashlib.sha256()
    for step in range(STEPS + 2 * resume):
        if step == STEPS:
            states = head.state_dict(), optimizer.state_dict()
            head, optimizer = make()
            head.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
        x, labels, *second = batch(step, precision, own)
        x.requires_grad_()
        loss = head(x, labels, *(second if mixed else []))
        optimizer.zero_grad()
        loss.backward()
        if head.weight.grad is not None:
            _add(digest, head.weight.grad)
        optimizer.step()
        losses.append(loss.item())
        _add(digest, loss, x.grad)
    _add(digest, *(value for name, value in sorted(head.state_dict().items()) if name not in LATER))
    for state in optimizer.state_dict()["state"].values():
        _add(digest, *(value for _, value in sorted(state.items()) if isinstance(value, Tensor)))
    return {"losses": losses, "digest": digest.hexdigest()}


def _add(digest: Any, *tensors: Tensor | None) -> None:
    for tensor in tensors:
        assert tensor is not None
        dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
        digest.update(
            dense.contiguous().view(torch.uint8).numpy().tobytes() if dense.dim() else repr(dense.item()).encode()
        )


def record_rank(rank: int, world_size: int, group_size: int | None) -> dict[str, dict[str, Any]]:
    """Every run, on this rank."""
    comm = Comm.from_group(head_group_size=group_size) if dist.is_initialized() else Comm.single()
    sizes = uneven_split(BATCH, world_size)
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    return {name: run(comm, own, case) for name, case in cases(comm.num_replicas > 1).items()}


def record(pool: RankPool, world_size: int, group_size: int | None) -> dict[str, dict[str, Any]]:
    """Losses of every run, and one digest over all ranks."""
    by_rank = pool.run(world_size, record_rank, group_size, timeout=500, group=world_size > 1)
    found = {}
    for name, first in by_rank[0].items():
        every = "".join(rank[name]["digest"] for rank in by_rank)
        found[name] = {"losses": first["losses"], "digest": hashlib.sha256(every.encode()).hexdigest()[:16]}
    return found


def key(world_size: int, group_size: int | None) -> str:
    """The name of a set-up in the file."""
    return f"{world_size}" if group_size is None else f"{world_size} by {group_size}"


def bound(name: str) -> float:
    """How far losses may be off on another machine, relative."""
    return 1e-3 if name.endswith("float32") or "bfloat16" in name or "bf16" in name or "int8" in name else 1e-6


def main() -> int:
    """Record or compare; 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    pool = RankPool()
    try:
        found = {key(*world): record(pool, *world) for world in WORLDS}
    finally:
        pool.close()
    if options.what == "record":
        options.file.write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")
        print(f"{sum(map(len, found.values()))} runs")
        return 0
    kept = json.loads(options.file.read_text(encoding="utf-8"))
    differing = [
        f"{world}: {name}: {runs[name]['losses']} was {kept[world][name]['losses']}"
        for world, runs in found.items()
        for name in runs
        if runs[name] != kept[world][name]
    ]
    missing = [name for world in kept for name in kept[world] if name not in found[world]]
    print(
        "\n".join(differing),
        f"\n{len(differing)} of {sum(map(len, found.values()))} runs differ, {len(missing)} missing",
    )
    return int(bool(differing or missing))


def agree(found: list[float], kept: list[float], name: str) -> bool:
    """Whether losses are those of the recording, within the bound."""
    return all(math.isclose(a, b, rel_tol=bound(name), abs_tol=1e-9) for a, b in zip(found, kept, strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
