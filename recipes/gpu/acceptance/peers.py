"""Test 9: the heads of others, ours timed before and after them."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from acceptance.bench import Bench

Step = Callable[[Tensor, Tensor], object]
RATIOS = {
    "linear_ce": (1.3, 1.8),
    "insightface": (7.0, 10.0),
    "insightface_tf32": (3.0, 4.5),
    "insightface_fp16": (3.0, 4.5),
}
"""How many times our step's time theirs is to be: must, aim."""


def peers(bench: Bench) -> None:
    """Times of a step of others over ours, 10^6 classes, 1,024 rows, rate 1."""
    classes, rows = bench.size(1_000_000, 20_000), bench.size(1024, 32)
    head = bench.head(num_classes=classes, precision="bfloat16")
    optimizer = bench.sgd(head, update_in_backward=True)
    x, labels = bench.batch(head, rows)
    mine = bench.in_turns(head, optimizer, [(x, labels)])
    before = bench.milliseconds(mine)
    found = {name: _time_of(bench, name, make, x, labels) for name, make in _contestants(bench, classes).items()}
    ours = (before + bench.milliseconds(mine)) / 2
    bench.tell(ours_ms=ours, **{name: time / ours for name, time in found.items() if not isinstance(time, str)})
    left_out = [f"{name} ({why})" for name, why in found.items() if isinstance(why, str)]
    if left_out:
        bench.note("left out: " + "; ".join(left_out))


def _time_of(bench: Bench, name: str, make: Callable[[], Step], x: Tensor, labels: Tensor) -> float | str:
    """Milliseconds of a step of somebody else's head; or why it is left out."""
    try:
        with _group_of_one(bench) if name.startswith("insightface") else nullcontext():
            step = make()
            return bench.milliseconds(lambda: step(x, labels))
    except (ImportError, FileNotFoundError) as missing:
        return str(missing)
    except Exception as error:  # what theirs needs may not be there, or not fit
        return f"{type(error).__name__}: {error}"


@contextmanager
def _group_of_one(bench: Bench) -> Iterator[None]:
    """The process group that InsightFace's head asks for, met through a file."""
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if bench.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _contestants(bench: Bench, classes: int) -> dict[str, Callable[[], Step]]:
    found: dict[str, Callable[[], Step]] = {"linear_ce": lambda: _linear(bench, classes, _cross_entropy)}
    found["linear_cross_entropy"] = lambda: _linear(
        bench, classes, _fused("torch.nn.functional", "linear_cross_entropy")
    )
    found["cce"] = lambda: _linear(bench, classes, _fused("cut_cross_entropy", "linear_cross_entropy"))
    found["liger"] = lambda: _linear(bench, classes, _liger())
    for name, tf32, half in (
        ("insightface", False, False),
        ("insightface_tf32", True, False),
        ("insightface_fp16", True, True),
    ):
        found[name] = lambda tf32=tf32, half=half: _insightface(bench, classes, tf32, half)  # type: ignore[misc]
    return found


def _linear(bench: Bench, classes: int, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Step:
    """A linear layer and a loss in bfloat16, with a dense SGD."""
    weight = nn.Parameter(torch.empty(classes, bench.size(512, 64), device=bench.device))
    if not bench.fake:
        nn.init.normal_(weight, std=0.01)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)

    def step(x: Tensor, labels: Tensor) -> None:
        x.grad = None
        loss(x.bfloat16(), weight.bfloat16(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _cross_entropy(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(x @ weight.t(), labels)


def _fused(module: str, name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise ImportError("not installed")
    found: Any = getattr(importlib.import_module(module), name, None)
    if found is None:
        raise ImportError(f"{module} {torch.__version__} has no {name}" if "torch" in module else f"no {name}")
    return lambda x, weight, labels: found(x, weight, labels)


def _liger() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if importlib.util.find_spec("liger_kernel") is None:
        raise ImportError("not installed")
    loss = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
    return lambda x, weight, labels: loss(weight, x, labels)


def _insightface(bench: Bench, classes: int, tf32: bool, half: bool) -> Step:
    """``partial_fc_v2.py`` of a folder that the user names; the file is executed as it is."""
    if bench.peer is None:
        raise FileNotFoundError("no --peer FOLDER")
    file = next(iter(sorted(bench.peer.rglob("partial_fc_v2.py"))), None)
    if file is None:
        raise FileNotFoundError(f"no partial_fc_v2.py under {bench.peer}")
    if bench.device.type != "cuda":
        raise FileNotFoundError("it needs a GPU")
    margin = _load(file.with_name("losses.py")).CombinedMarginLoss(64.0, 1.0, 0.0, 0.4)
    head = _load(file).PartialFC_V2(margin, bench.size(512, 64), classes, 1.0, half).to(bench.device)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)

    def step(x: Tensor, labels: Tensor) -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        x.grad = None
        head(x, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.set_float32_matmul_precision(before)

    return step


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
