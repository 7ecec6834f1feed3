"""Centers updated inside the backward pass: what would come too late for them is refused when training is set up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_pfc import PartialFCStrategy
from lightning_pfc.optim import SparseSGD
from tests.ranks import RankPool
from tests.trainer.world import TheirModule, make_loader, make_trainer


def run(rank: int, world_size: int, clip: Any, options: dict[str, Any], factors: dict[int, int] | None) -> str:
    module = TheirModule(optimizer=SparseSGD, sample_rate=0.5, update_in_backward=True)
    if options.pop("scaled", False):
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))]
    callbacks = [GradientAccumulationScheduler(factors)] if factors else []
    trainer = make_trainer(rank, world_size, strategy=PartialFCStrategy(clip=clip), callbacks=callbacks, **options)
    try:
        trainer.fit(module, make_loader(rank, world_size))
    except ValueError as error:
        return str(error)
    return f"{trainer.global_step} steps"


@pytest.mark.parametrize(
    ("clip", "options", "factors", "found"),
    [
        ("global", {}, None, "6 steps"),
        ("backbone", {"gradient_clip_val": 1.0}, None, "6 steps"),
        ("global", {"gradient_clip_val": 1.0}, None, 'PartialFCStrategy(clip="backbone")'),
        ("backbone", {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, None, "no clipping"),
        ("global", {"accumulate_grad_batches": 3}, None, "accumulate_grad_batches=3"),
        ("global", {}, {0: 1, 1: 4}, "accumulate_grad_batches=4"),
        ("global", {"scaled": True}, None, "precision='bf16-mixed'"),
    ],
)
def test_what_comes_too_late_is_refused(
    ranks: RankPool, clip: str, options: dict[str, Any], factors: dict[int, int] | None, found: str
) -> None:
    for text in ranks.run(2, run, clip, options, factors, timeout=60):
        assert found in text
        assert text.endswith("steps") or "update_in_backward=False" in text
