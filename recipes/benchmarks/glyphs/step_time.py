"""Where a training step of ``pfc-train`` spends its time: loader, backbone, head, optimizer.

Usage: python recipes/benchmarks/glyphs/step_time.py [OVERRIDES of pfc-train]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lightning_pfc.config import compose
from lightning_pfc.optim.factory import create_optimizer
from lightning_pfc.runs.choices import choose

WARM_UP, STEPS = 5, 30


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    config = compose(sys.argv[1:])
    choose(config, sys.argv[1:])  # precision and scale, as the run would
    data = instantiate(config.data, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    module = instantiate(
        config.model, num_classes=data.num_classes, input_size=list(data.input_size), _convert_="all"
    ).train()
    settings: Any = OmegaConf.to_container(config.optimizer, resolve=True)
    optimizer = create_optimizer(
        module, settings, row_sparse=config.head.sample_rate < 1, global_batch=config.data.batch_size
    )
    seconds: dict[str, list[float]] = {}
    half = torch.autocast("cpu", torch.bfloat16, enabled=config.trainer.precision == "bf16-mixed")

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds.setdefault(name, []).append(time.perf_counter() - start)

    batches = iter(data.train_dataloader())
    for _ in range(WARM_UP + STEPS):
        with timed("loader"):
            images, labels = next(batches)
        with timed("backbone forward"), half:
            embeddings = module(images)
        cut = embeddings.detach().requires_grad_()
        with timed("head forward"), half:
            loss = module.head(cut, labels)
        with timed("head backward"):
            loss.backward()
        with timed("backbone backward"):
            embeddings.backward(cut.grad)
        with timed("optimizer"):
            optimizer.step()
            optimizer.zero_grad()
    total = 0.0
    for name, values in seconds.items():
        typical = median(values[WARM_UP:])
        total += typical
        print(f"{name:18} {typical * 1e3:8.1f} ms")
    print(f"{'sum':18} {total * 1e3:8.1f} ms, {config.data.batch_size / total:,.0f} images/s")
    print(f"{'loader alone':18} {config.data.batch_size / median(seconds['loader'][WARM_UP:]):8,.0f} images/s")


if __name__ == "__main__":
    main()
