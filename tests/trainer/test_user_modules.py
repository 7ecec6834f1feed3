"""What people do in their own modules, under the strategy and on two processes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.trainer.connectors import accelerator_connector
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn

from lightning_pfc.optim import SparseSGD
from lightning_pfc.strategies import start
from tests.ranks import RankPool, join_group
from tests.trainer.world import TheirModule, make_loader, make_trainer, whole_state

Batch = tuple[Tensor, Tensor]
State = dict[str, Tensor]


class Manual(TheirModule):
    """Manual optimization with one optimizer for the backbone and one for the head."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        loss = self.loss(batch)
        self.losses.append(loss.item())
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        assert self.head is not None
        backbone = torch.optim.SGD(self.backbone.parameters(), lr=self.lr, momentum=0.9)
        return backbone, SparseSGD(self.head.parameters(), lr=self.lr, momentum=0.9)


class Compiled(TheirModule):
    """The backbone goes through torch.compile; the back end does no code generation, which needs a compiler."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.backbone.compile(backend="aot_eager")


class FrozenHead(TheirModule):
    def configure_model(self) -> None:
        super().configure_model()
        assert self.head is not None
        self.head.requires_grad_(False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.backbone.parameters(), lr=self.lr)


class FrozenBackbone(TheirModule):
    def configure_model(self) -> None:
        super().configure_model()
        self.backbone.requires_grad_(False)


class TwoHeads(TheirModule):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inner = nn.ModuleDict({"head": self.make_head()})

    def loss(self, batch: Batch) -> Tensor:
        assert self.head is not None
        x = self.backbone(batch[0])
        return self.head(x, batch[1]) + 0.5 * self.inner["head"](x, batch[1])


class UserDeepcopy(TheirModule):
    """A user's own moving average: a copy made before training, updated in a hook."""

    def on_fit_start(self) -> None:
        self.__dict__["average"] = deepcopy(self.head)

    def on_train_batch_end(self, *args: Any) -> None:
        assert self.head is not None
        with torch.no_grad():
            for a, b in zip(self.__dict__["average"].parameters(), self.head.parameters(), strict=True):
                a.lerp_(b, 0.5)

    def on_fit_end(self) -> None:
        self.head.load_state_dict(self.__dict__["average"].state_dict())  # type: ignore[union-attr]


KINDS = {
    cls.__name__: cls for cls in (TheirModule, Manual, Compiled, FrozenHead, FrozenBackbone, TwoHeads, UserDeepcopy)
}


def callbacks_named(name: str | None) -> list[Callback]:
    if name == "ema":
        return [EMAWeightAveraging(decay=0.5)]
    if name == "swa":
        return [StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)]
    return []


def fit(rank: int, world_size: int, kind: str, callbacks: str | None, epochs: int, fits: int = 1) -> Any:
    model = KINDS[kind]()
    if world_size > 1:
        join_group()
    for _ in range(fits):
        trainer = make_trainer(rank, world_size, max_epochs=epochs, callbacks=callbacks_named(callbacks))
        trainer.fit(model, make_loader(rank, world_size, steps=3))
    return model.losses, model.state_dict()


def compare(ranks: RankPool, kind: str, callbacks: str | None = None, epochs: int = 1, fits: int = 1) -> None:
    [(losses, expected)] = ranks.run(1, fit, kind, callbacks, epochs, fits)
    results = ranks.run(2, fit, kind, callbacks, epochs, fits, group="later")
    torch.testing.assert_close(results[0][0], losses, rtol=1e-5, atol=1e-6)
    state = whole_state([part for _, part in results])
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "TheirModule"])
def test_modules(ranks: RankPool, kind: str) -> None:
    compare(ranks, kind)


@pytest.mark.parametrize("callbacks", ["ema", "swa"])
def test_averages_of_the_weights(ranks: RankPool, callbacks: str) -> None:
    compare(ranks, "TheirModule", callbacks, epochs=3)


def test_fitting_twice(ranks: RankPool) -> None:
    compare(ranks, "TheirModule", fits=2)


def find_lr(rank: int, world_size: int, folder: str) -> tuple[float | None, State, State]:
    model = TheirModule(lr=0.01)
    if world_size > 1:
        join_group()
    before: State = {}

    class Keep(Callback):
        def on_fit_start(self, trainer: Any, module: Any) -> None:
            before.update({key: value.clone() for key, value in module.state_dict().items()})

    trainer = make_trainer(rank, world_size, max_epochs=5, default_root_dir=folder, callbacks=[Keep()])
    finder = Tuner(trainer).lr_find(model, make_loader(rank, world_size, steps=20), num_training=20, max_lr=10.0)
    assert finder is not None
    return finder.suggestion(skip_begin=2, skip_end=1), before, model.state_dict()


def test_lr_find(ranks: RankPool, tmp_path: Path) -> None:
    [(lr, _, _)] = ranks.run(1, find_lr, str(tmp_path))
    results = ranks.run(2, find_lr, str(tmp_path), group="later")
    for suggestion, before, after in results:
        assert suggestion == pytest.approx(lr, rel=1e-3)
        assert all(torch.equal(before[key], after[key]) for key in before), "the search left its traces in the weights"
    assert list(tmp_path.iterdir()) == []


SPAWN = """
import atexit
import os
from lightning_pfc.commands.imports import large_imports

with large_imports():
    import torch
    from tests.trainer.world import TheirModule, CLASSES, DIM
    from tests.trainer.test_user_modules import spawn_loader
    import lightning as L
    import lightning_pfc

def report():
    names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
    print("THREADS LEFT" if any("gloo" in name for name in names) else "ENDED", flush=True)


if __name__ == "__mp_main__":
    atexit.register(report)  # the first to be registered is the last to run

if __name__ == "__main__":
    states = []
    for devices, strategy in ((1, "auto"), (2, "STRATEGY")):
        model = TheirModule()
        trainer = L.Trainer(accelerator="cpu", devices=devices, strategy=strategy, max_epochs=3, logger=False,
                            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        trainer.fit(model, spawn_loader(32 // devices))
        assert model.head.weight.shape == (CLASSES, DIM) and not model.head.weight.is_meta
        states.append(model.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-5)
    print("SAME")
"""


def spawn_loader(batch_size: int) -> Any:
    """All samples in one batch: Lightning deals them out to the ranks in an order of its own."""
    batches = make_loader(0, 1, steps=4).dataset.batches  # type: ignore[attr-defined]
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=batch_size)


@pytest.mark.parametrize("strategy", ["pfc_spawn", "pfc_notebook"])
def test_processes_of_this_one_hand_the_whole_head_back(tmp_path: Path, strategy: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SPAWN).replace("STRATEGY", strategy))
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**_environment(), "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "SAME" in done.stdout, done.stdout + done.stderr
    # Threads of gloo that outlive the interpreter abort the process now and then: none may be left.
    assert done.stdout.count("ENDED") == (2 if strategy == "pfc_spawn" else 0), done.stdout + done.stderr


def in_a_notebook(rank: int, world_size: int) -> tuple[int, list[str]]:
    quiet: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    refused = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (start, accelerator_connector):
            patch.setattr(module, "_IS_INTERACTIVE", True)
        trainer = make_trainer(rank, world_size)
        trainer.fit(TheirModule(), make_loader(rank, world_size))
        for strategy in ("pfc", "pfc_spawn"):
            with pytest.raises(MisconfigurationException) as error:
                L.Trainer(strategy=strategy, devices=2, **quiet)
            refused.append(str(error.value))
        assert L.Trainer(strategy="pfc_notebook", devices=2, **quiet).world_size == 2
    return trainer.global_step, refused


def test_a_notebook_trains_alone_and_is_told_how_to_train_on_several(ranks: RankPool) -> None:
    """Lightning refused one device, too, and named a strategy that is refused."""
    [(steps, refused)] = ranks.run(1, in_a_notebook)
    assert steps == 6
    assert all('give Trainer(strategy="pfc_notebook")' in text for text in refused)


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
