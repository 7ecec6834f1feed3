"""Protocols and diagnostics while a model trains: the same numbers on any number of ranks, and training as without."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_pfc import PartialFC
from lightning_pfc.callbacks.csv_log import CSVLogger, read_metrics
from lightning_pfc.callbacks.diagnostics import ClassDiagnostics
from lightning_pfc.callbacks.evaluation import EvaluateProtocols
from lightning_pfc.callbacks.throughput import Throughput
from lightning_pfc.config import compose
from lightning_pfc.evaluation import EvaluationSettings
from lightning_pfc.losses import CosFace
from lightning_pfc.metrics.centers import Collision
from tests.ranks import RankPool
from tests.trainer.world import Steps, make_trainer
from tests.unit.test_evaluator import folder  # noqa: F401  (a fixture)

CLASSES, DIM, STEPS, SIZE = 10, 8, 9, 12


class Recogniser(L.LightningModule):
    """With everything that an evaluation could disturb: running statistics, and dropout that draws numbers."""

    def __init__(self, by_name: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.input_size = (3, SIZE, SIZE)
        self.body = nn.Sequential(
            nn.AvgPool2d(3), nn.Flatten(), nn.Linear(48, DIM), nn.BatchNorm1d(DIM), nn.Dropout(0.2)
        )
        self.head = PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss=CosFace(scale=16.0), sample_rate=0.8)
        self.by_name = by_name
        self.losses: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.body(images)
        return embeddings

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        embeddings = self(batch[0])
        loss: Tensor = (
            self.head(embeddings=embeddings, labels=batch[1]) if self.by_name else self.head(embeddings, batch[1])
        )
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def loader(rank: int, world_size: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(STEPS):
        images, labels = torch.randn(12, 3, SIZE, SIZE, generator=generator), torch.arange(12) % CLASSES
        batches.append((images[rank::world_size], labels[rank::world_size]))
    return DataLoader(Steps(batches), batch_size=None)


def train(
    rank: int, world_size: int, root: str, callbacks: list[Callback], by_name: bool = False, **options: Any
) -> tuple[list[float], dict[str, float]]:
    module = Recogniser(by_name)
    if world_size > 1:
        options["strategy"] = "pfc"
    options.setdefault("max_epochs", 2)
    trainer = make_trainer(rank, world_size, default_root_dir=root, callbacks=callbacks, **options)
    torch.manual_seed(7 + rank)  # of dropout
    trainer.fit(module, loader(rank, world_size))
    return module.losses, {name: float(value) for name, value in trainer.callback_metrics.items()}


def both(rank: int, world_size: int, root: str, file: str) -> Any:
    protocols = EvaluateProtocols(
        {"set": file}, every_n_steps=5, settings=EvaluationSettings(replicates=0, num_workers=0)
    )
    return train(rank, world_size, root, [protocols, ClassDiagnostics(batches=3)])


def neither(rank: int, world_size: int, root: str) -> Any:
    return train(rank, world_size, root, [])


@pytest.mark.parametrize("world_size", [1, 2])
def test_training_goes_on_as_without_them(ranks: RankPool, folder: Path, tmp_path: Path, world_size: int) -> None:  # noqa: F811
    watched = ranks.run(world_size, both, str(tmp_path / "a"), str(folder / "set.bin"))
    alone = ranks.run(world_size, neither, str(tmp_path / "b"))
    for (losses, found), (expected, _) in zip(watched, alone, strict=True):
        assert losses == expected
        assert found == watched[0][1]
    names = {path.name for path in (tmp_path / "a" / "protocols").iterdir()}
    assert names == {"step-5.json", "step-10.json", "step-15.json", "step-18.json"}
    last = json.loads((tmp_path / "a" / "protocols" / "step-18.json").read_text())
    assert last["step"] == 18
    assert last["metrics"]["set/accuracy"] == pytest.approx(watched[0][1]["set/accuracy"])
    names = {path.name for path in (tmp_path / "a" / "diagnostics").iterdir()}
    assert names == {f"head-epoch-{epoch}.{kind}" for epoch in (1, 2) for kind in ("json", "png")}
    written = json.loads((tmp_path / "a" / "diagnostics" / "head-epoch-2.json").read_text())
    assert written["metrics"]["head/untouched"] == 0
    assert -1 < written["metrics"]["head/apcs"] < 1
    assert 1 <= len(written["nearest"]) <= CLASSES
    assert (tmp_path / "a" / "diagnostics" / "head-epoch-2.png").stat().st_size > 5000


def frozen(rank: int, world_size: int, root: str, file: str) -> dict[str, float]:
    """No step changes anything, so that what is measured is the same whatever the ranks."""

    class Frozen(Recogniser):
        def __init__(self) -> None:
            super().__init__()
            self.body[3], self.body[4] = nn.Identity(), nn.Identity()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    callbacks = [EvaluateProtocols({"set": file}, every_n_steps=STEPS), ClassDiagnostics(batches=STEPS)]
    trainer = make_trainer(rank, world_size, default_root_dir=root, callbacks=callbacks)
    trainer.fit(Frozen(), loader(rank, world_size))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_numbers_do_not_depend_on_the_ranks(ranks: RankPool, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    (alone,) = ranks.run(1, frozen, str(tmp_path), str(folder / "set.bin"))
    assert {"set/accuracy", "set/auc", "head/mics", "head/apcs", "head/amncs", "head/embedding_norm"} <= set(alone)
    assert alone["head/untouched"] == CLASSES
    for world_size in (2, 3):
        for found in ranks.run(world_size, frozen, str(tmp_path), str(folder / "set.bin")):
            assert found == pytest.approx(alone, abs=1e-6)


def monitored(rank: int, world_size: int, root: str, file: str) -> Any:
    protocols = {"set": file, "all": {"type": "all_pairs", "path": f"{root}/e.npz"}}
    saved = ModelCheckpoint(f"{root}/kept", monitor="set/accuracy", mode="max", every_n_train_steps=9)
    found = train(
        rank,
        world_size,
        root,
        [EvaluateProtocols(protocols, every_n_steps=9, at_end=False), ClassDiagnostics(every_n_epochs=2), saved],
        by_name=True,
        logger=CSVLogger(root),
        enable_checkpointing=True,
    )[1]
    return found, float(saved.best_model_score), saved.best_model_path


def test_loggers_and_checkpoints_see_the_numbers(ranks: RankPool, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = torch.eye(5).repeat_interleave(4, 0) + 0.1 * torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "e.npz", emb=rows.numpy(), label=np.arange(20) // 4)
    ((found, best, path),) = ranks.run(1, monitored, str(tmp_path), str(folder / "set.bin"))
    logged = read_metrics(tmp_path / "metrics.csv")
    accuracy = {row["step"]: row["set/accuracy"] for row in logged if "set/accuracy" in row}
    assert set(accuracy) == {9, 18}
    assert [row["step"] for row in logged if "head/apcs" in row] == [18]
    assert found["all/tar@far=1e-2"] > 0.9
    assert best == pytest.approx(max(accuracy.values()))
    state = torch.load(path, weights_only=True)
    assert state["callbacks"]["EvaluateProtocols"]["last_step"] in (9, 18)


def test_bad_settings_are_named_before_training() -> None:
    trainer = L.Trainer(accelerator="cpu", callbacks=[EvaluateProtocols()], logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match="protocols is empty"):
        trainer.fit(Recogniser(), loader(0, 1))
    with pytest.raises(ValueError, match="every_n_steps=0"):
        EvaluateProtocols({"lfw": "lfw.bin"}, 0)
    with pytest.raises(ValueError, match=r"protocols\.lfw has type 'bins'; there are: all_pairs"):
        EvaluateProtocols({"lfw": {"type": "bins"}})
    with pytest.raises(ValueError, match=r"protocols\.lfw of type bin: missing a required argument: 'path'"):
        EvaluateProtocols({"lfw": {"type": "bin"}})
    with pytest.raises(ValueError, match="batches=0"):
        ClassDiagnostics(batches=0)
    with pytest.raises(ValueError, match="collision=3"):
        ClassDiagnostics(collision=3)


def test_one_word_in_the_config_adds_them() -> None:
    config = compose(["callbacks=all", "+callbacks.evaluation.protocols.lfw=lfw.bin"])
    made = {name: instantiate(config.callbacks[name], _convert_="all") for name in ("class_diagnostics", "evaluation")}
    assert isinstance(made["class_diagnostics"], ClassDiagnostics)
    assert made["evaluation"].protocols == {"lfw": "lfw.bin"}
    assert {"checkpoint", "lr"} <= set(config.callbacks)
    for word, added in (("diagnostics", "class_diagnostics"), ("evaluation", "evaluation")):
        more = set(compose([f"callbacks={word}"]).callbacks) - set(compose([]).callbacks)
        assert more == {added}


def test_nearest_pairs_carry_the_names_of_their_classes(tmp_path: Path) -> None:
    data = SimpleNamespace(data=SimpleNamespace(class_names=["ann", "bob"]))
    options: dict[str, Any] = {"global_step": 5, "current_epoch": 0, "default_root_dir": str(tmp_path)}
    counts = {"x": torch.ones(4)}
    for number, trainer in enumerate((SimpleNamespace(datamodule=data, **options), SimpleNamespace(**options))):
        arguments: Any = (trainer, f"head{number}", {}, [Collision(0, 1, 0.5)], counts, counts, 2)
        ClassDiagnostics()._write(*arguments)
        (pair,) = json.loads((tmp_path / "diagnostics" / f"head{number}-epoch-1.json").read_text())["nearest"]
        assert pair == {"first": 0, "second": 1, "cosine": 0.5} | ({} if number else {"names": ["ann", "bob"]})


class Slow(EvaluateProtocols):
    """Takes five minutes of a clock that stands still otherwise, but for a second in every step."""

    now = 0.0

    def clock(self) -> float:
        return self.now

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.now += 300.0
        super()._evaluate(trainer, pl_module)

    def on_train_batch_start(self, *args: Any) -> None:
        self.now += 1.0


def timed(rank: int, world_size: int, root: str, file: str, last: bool) -> float:
    slow = Slow({"set": file}, every_n_steps=2, settings=EvaluationSettings(replicates=0))
    meter = Throughput(slow.clock)
    train(rank, world_size, root, [slow, meter] if last else [meter, slow])
    return meter.seconds


@pytest.mark.parametrize("last", [False, True])
def test_samples_per_second_are_those_of_training(ranks: RankPool, folder: Path, tmp_path: Path, last: bool) -> None:  # noqa: F811
    (seconds,) = ranks.run(1, timed, str(tmp_path), str(folder / "set.bin"), last)
    assert seconds in (8.0, 9.0)  # steps of a second each, between nine evaluations of five minutes


def one_misses_it(rank: int, world_size: int, root: str, file: str) -> Any:
    groups = {"type": "groups", "of": {"one": file, "two": file if rank == 0 else f"{root}/missing.bin"}}
    callback = EvaluateProtocols({"set": file, "gaps": groups}, settings=EvaluationSettings(replicates=0))
    return train(rank, world_size, root, [callback])


def test_a_missing_file_stops_every_rank_before_the_first_step(ranks: RankPool, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    for outcome in ranks.outcomes(2, one_misses_it, str(tmp_path), str(folder / "set.bin"), timeout=60):
        assert outcome.error is not None
        assert "no such file or folder: protocols.gaps: " in outcome.error
        assert "missing.bin" in outcome.error
