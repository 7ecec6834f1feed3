"""Checkpoints in class coordinates: any number of ranks, bit for bit, whole or absent, and never code."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import threading
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader

from lightning_pfc import PartialFC, PartialFCModule, PartialFCStrategy
from lightning_pfc.callbacks import RunCheckpoint
from lightning_pfc.checkpoint import CheckpointError, Manifest, verify_folder
from lightning_pfc.checkpoint.manifest import MANIFEST, _digest
from lightning_pfc.checkpoint.publish import prepare_folder, run_of
from lightning_pfc.checkpoint.reader import read_checkpoint
from lightning_pfc.losses import CosFace
from lightning_pfc.optim import RowWiseAdagrad, SparseAdamW, SparseSGD
from lightning_pfc.strategies import saving
from tests.file_limit import no_file_over
from tests.ranks import RankPool
from tests.trainer.world import CLASSES, DIM, TheirModule, make_loader, make_trainer

State = dict[str, Tensor]
SIZES = (3, 1, 2, 2)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"optimizer": torch.optim.SGD, "momentum": 0.9},
    "AdamW": {"optimizer": torch.optim.AdamW, "lr": 0.01},
    "SparseSGD": {"optimizer": SparseSGD, "momentum": 0.9},
    "SparseAdamW": {"optimizer": partial(SparseAdamW, missed_steps="decay"), "lr": 0.01},
    "RowWiseAdagrad": {"optimizer": RowWiseAdagrad, "lr": 0.05},
}


def split_sizes(world_size: int) -> tuple[int, ...]:
    """The same global batch of eight, whoever reads it."""
    return {1: (8,), 2: (4, 4), 3: (3, 3, 2), 4: SIZES}[world_size]


class Snapshot(Callback):
    """Writes down what a run starts with, after everything was restored, and what it ends with."""

    def __init__(self) -> None:
        self.start: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = snapshot(trainer, pl_module)


def snapshot(trainer: Any, module: Any) -> Any:
    weights = {key: value.clone() for key, value in module.state_dict().items()}
    [optimizer] = trainer.optimizers
    state = optimizer.state_dict()["state"]
    names = [name for name, _ in module.named_parameters()]
    rows = {
        f"{names[index]}:{key}": torch.as_tensor(value).clone()
        for index, values in state.items()
        for key, value in values.items()
        if value is not None
    }
    return weights, rows


def run(
    rank: int, world_size: int, module: dict[str, Any], load: str | None, save: str | None, steps: int, until: int
) -> Any:
    model = TheirModule(**module)
    seen = Snapshot()
    trainer = make_trainer(rank, world_size, callbacks=[seen], max_steps=until, max_epochs=-1)
    trainer.fit(model, make_loader(rank, world_size, steps=steps, sizes=split_sizes(world_size)), ckpt_path=load)
    if save is not None:
        trainer.save_checkpoint(save)
    return seen.start, snapshot(trainer, model), model.losses


def whole(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of all ranks joined, copies compared."""
    result = {}
    for key, first in parts[0].items():
        name, _, kind = key.partition(":")
        if name.endswith("head.weight") and kind != "step" and first.dim() > 0:
            result[key] = torch.cat([part[key] for part in parts])
        else:
            assert all(torch.equal(first, part[key]) for part in parts), key
            result[key] = first
    return result


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype, key
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_number_of_ranks_reads_what_any_other_wrote(ranks: RankPool, tmp_path: Path, name: str) -> None:
    """4 -> 3 -> 1 -> 2 ranks; 11 classes, which none of them divides. Every hop is bit-equal, and training goes on."""
    module = {**OPTIMIZERS[name], "sample_rate": 0.6}
    [(_, end, losses)] = ranks.run(1, run, module, None, None, 8, 8)
    path: str | None = None
    written: Any = None
    seen: list[float] = []
    for hop, world_size in enumerate((4, 3, 1, 2)):
        target = str(tmp_path / f"{hop}.ckpt")
        # Each hop takes two steps. The loader has eight batches, of which Lightning skips those done by number.
        results = ranks.run(world_size, run_hop, module, path, target, hop)
        if written is not None:
            for place in range(2):
                assert_same(whole([start[place] for start, _, _ in results]), written[place])
        written = [whole([stop[place] for _, stop, _ in results]) for place in range(2)]
        assert written[0]["head.weight"].shape == (CLASSES, DIM)
        assert any(key.startswith("head.weight:") for key in written[1])
        seen += results[0][2]
        path = target
        assert Path(target).is_dir() is (world_size > 1)
    torch.testing.assert_close(seen, losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(written[0], end[0], rtol=1e-4, atol=1e-5)


def run_hop(rank: int, world_size: int, module: dict[str, Any], load: str | None, save: str, hop: int) -> Any:
    model = TheirModule(**module)
    seen = Snapshot()
    trainer = make_trainer(rank, world_size, callbacks=[seen], max_epochs=hop + 1, limit_train_batches=2)
    loader = make_loader(rank, world_size, steps=8, sizes=split_sizes(world_size))
    loader.dataset.batches = loader.dataset.batches[2 * hop : 2 * hop + 2]
    trainer.fit(model, loader, ckpt_path=load)
    trainer.save_checkpoint(save)
    return seen.start, snapshot(trainer, model), model.losses


# -- Lightning's own doors


def checkpointing(rank: int, world_size: int, folder: str, save_last: Any, asynchronous: bool) -> Any:
    model = TheirModule(momentum=0.9)
    keep = ModelCheckpoint(
        folder, filename="{step}", monitor="step", mode="max", save_top_k=2, save_last=save_last, every_n_train_steps=1
    )
    strategy = PartialFCStrategy(async_save=asynchronous)
    trainer = make_trainer(rank, world_size, enable_checkpointing=True, callbacks=[keep], strategy=strategy)
    trainer.fit(model, make_loader(rank, world_size, steps=5))
    return keep.best_model_path, keep.last_model_path, model.state_dict()


def resume_last(rank: int, world_size: int, folder: str, path: str) -> Any:
    model = TheirModule(momentum=0.9)
    keep = ModelCheckpoint(folder, save_last=True)
    trainer = make_trainer(rank, world_size, enable_checkpointing=True, callbacks=[keep], max_epochs=1)
    trainer.fit(model, make_loader(rank, world_size, steps=5, sizes=split_sizes(world_size)), ckpt_path=path)
    return trainer.global_step, model.state_dict()


@pytest.mark.parametrize("save_last", ["link", True])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["", "async"])
def test_model_checkpoint(ranks: RankPool, tmp_path: Path, save_last: Any, asynchronous: bool) -> None:
    results = ranks.run(2, checkpointing, str(tmp_path), save_last, asynchronous)
    best, last, _ = results[0]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["last.ckpt", "step=4.ckpt", "step=5.ckpt"], "nothing hidden or half-written is left"
    assert Path(best).name == "step=5.ckpt"
    assert (tmp_path / "last.ckpt").is_symlink() is (save_last == "link")
    for name in names:
        assert verify_folder(tmp_path / name).info["global_step"] == (4 if name == "step=4.ckpt" else 5)
    expected = torch.cat([state["head.weight"] for _, _, state in results])
    for path in ("last", last, best):
        [(steps, state)] = ranks.run(1, resume_last, str(tmp_path), path)
        assert steps == 5
        assert torch.equal(state["head.weight"], expected)


def two_runs(rank: int, world_size: int, folder: str, steps: int, load: str | None = None) -> Any:
    keep = RunCheckpoint(folder, filename="{step}", save_top_k=1, save_last=True, every_n_train_steps=1)
    trainer = make_trainer(
        rank, world_size, enable_checkpointing=True, callbacks=[keep], max_steps=steps, max_epochs=-1
    )
    trainer.fit(TheirModule(), make_loader(rank, world_size, steps=5, sizes=split_sizes(world_size)), ckpt_path=load)
    return trainer.strategy.run_id, keep.last_model_path


@pytest.mark.parametrize("world_size", [1, 2])
def test_last_is_that_of_the_newest_run_and_written_once(ranks: RankPool, tmp_path: Path, world_size: int) -> None:
    last = tmp_path / "last.ckpt"
    runs = [ranks.run(world_size, two_runs, str(tmp_path), steps)[0] for steps in (3, 2, 1)]
    assert {path for _, path in runs} == {str(last)}
    owners = {path.name: run_of(path) for path in tmp_path.glob("last*.ckpt")}
    assert owners == {"last-v1.ckpt": runs[0][0], "last-v2.ckpt": runs[1][0], "last.ckpt": runs[2][0]}
    parts = lambda path: sorted(path.iterdir()) if path.is_dir() else [path]  # noqa: E731
    for one, other in zip(parts(last), parts(tmp_path / "step=1.ckpt"), strict=True):
        assert os.path.samefile(one, other), "one file of two names"
    # A run that goes on has its own last.ckpt again, also where Lightning does not know that it was its own.
    (run, path), *_ = ranks.run(world_size, two_runs, str(tmp_path), 4, str(tmp_path / "step=1.ckpt"))
    assert (run, path) == (runs[2][0], str(last))
    assert run_of(last) == run
    assert sorted(each.name for each in tmp_path.glob("last*")) == ["last-v1.ckpt", "last-v2.ckpt", "last.ckpt"]


class Worsens(TheirModule):
    """Is best after the second epoch."""

    def on_train_epoch_end(self) -> None:
        self.log("error", torch.tensor(float(abs(self.current_epoch - 1))))


def a_watched_run(rank: int, world_size: int, folder: str, options: dict[str, Any]) -> tuple[int, list[str]]:
    keep = RunCheckpoint(folder, filename="{step}", monitor="error", save_last=True, **options)
    trainer = make_trainer(rank, world_size, enable_checkpointing=True, callbacks=[keep], max_epochs=5)
    writes: list[str] = []
    save = trainer.strategy.save_checkpoint

    def noted(state: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        writes.append(f"{Path(path).name} {state['global_step']}")
        save(state, path, storage_options)

    setattr(trainer.strategy, "save_checkpoint", noted)  # noqa: B010  a method for mypy
    trainer.fit(Worsens(), make_loader(rank, world_size, steps=2, sizes=split_sizes(world_size)))
    return read_checkpoint(Path(keep.last_model_path))["global_step"], writes


@pytest.mark.parametrize("world_size", [1, 2])
def test_last_is_the_last_where_a_metric_is_watched(ranks: RankPool, tmp_path: Path, world_size: int) -> None:
    """Lightning's is that of the best epoch, so that a run that was killed would do the others again."""
    for step, writes in ranks.run(world_size, a_watched_run, str(tmp_path), {"save_top_k": 1}):
        assert step == 10
        assert writes == ["step=2.ckpt 2", "step=4.ckpt 4", "last.ckpt 6", "last.ckpt 8", "last.ckpt 10"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".ckpt") == ["last.ckpt", "step=4.ckpt"]


def test_last_alone_is_written_once_an_epoch(ranks: RankPool, tmp_path: Path) -> None:
    (step, writes), *_ = ranks.run(1, a_watched_run, str(tmp_path), {"save_top_k": 0, "every_n_epochs": 2})
    assert (step, writes) == (8, ["last.ckpt 4", "last.ckpt 8"])


class SavesLate(Callback):
    """Saves after the second step; the thread that writes is kept waiting until the fourth has ended."""

    def __init__(self, path: str, write: Callable[..., None]) -> None:
        self.path, self.write = path, write
        self.seen = torch.zeros(3)  # what callbacks keep changes, too
        self.later = threading.Event()
        self.then: Any = None

    def save_folder(self, *args: Any) -> None:
        assert self.later.wait(60)
        self.write(*args)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.seen += 1
        if trainer.global_step == 2:
            states = pl_module.state_dict(), trainer.optimizers[0].state_dict(), self.state_dict()
            self.then = copy.deepcopy(states)
            trainer.save_checkpoint(self.path)
        elif trainer.global_step == 4:
            self.later.set()


def saving_late(rank: int, world_size: int, path: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        late = SavesLate(path, saving.save_folder)
        patch.setattr(saving, "save_folder", late.save_folder)
        model = TheirModule(momentum=0.9)
        trainer = make_trainer(rank, world_size, callbacks=[late], strategy=PartialFCStrategy(async_save=True))
        trainer.fit(model, make_loader(rank, world_size, steps=5))
    return late.then


def test_what_is_written_later_is_what_was_there_when_it_was_saved(ranks: RankPool, tmp_path: Path) -> None:
    results = ranks.run(2, saving_late, str(tmp_path / "late.ckpt"))
    found = read_checkpoint(tmp_path / "late.ckpt")
    (module, optimizer, callback), (other, other_optimizer, _) = results
    for key, value in module.items():
        expected = torch.cat([value, other[key]]) if key == "head.weight" else value
        assert torch.equal(found["state_dict"][key], expected), key
    for index, values in optimizer["state"].items():
        for key, value in values.items():
            mine = found["optimizer_states"][0]["state"][index][key]
            theirs = other_optimizer["state"][index][key]
            assert torch.equal(mine, value) or torch.equal(mine, torch.cat([value, theirs])), (index, key)
    (kept,) = [state for name, state in found["callbacks"].items() if "SavesLate" in name]
    assert kept["seen"].tolist() == callback["seen"].tolist() == [2, 2, 2]


def save_weights(rank: int, world_size: int, path: str) -> State:
    model = TheirModule()
    trainer = make_trainer(rank, world_size)
    trainer.fit(model, make_loader(rank, world_size))
    trainer.save_checkpoint(path, weights_only=True)
    return model.state_dict()


def test_weights_only_saves_and_validation_from_a_checkpoint(ranks: RankPool, tmp_path: Path) -> None:
    path = str(tmp_path / "weights.ckpt")
    expected = torch.cat([state["head.weight"] for state in ranks.run(2, save_weights, path)])
    assert not any(key.startswith("optimizer_states") for key in Manifest.read(Path(path)).tensors)
    states = ranks.run(3, evaluate_three, path)
    assert torch.equal(torch.cat([state["head.weight"] for state in states]), expected)


def evaluate_three(rank: int, world_size: int, path: str) -> State:
    model = TheirModule(late=True)
    loader = make_loader(rank, world_size, sizes=(2, 2, 2))
    make_trainer(rank, world_size).validate(model, loader, ckpt_path=path, verbose=False)
    return model.state_dict()


class SaveAfter(Callback):
    """Saves after some steps, and keeps what the averages were then."""

    def __init__(self, path: str, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            average = next(c for c in trainer.callbacks if isinstance(c, EMAWeightAveraging))._average_model
            self.seen = (clone(pl_module.state_dict()), clone(average.module.state_dict()))


class SeeAverage(Snapshot):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        average = next(c for c in trainer.callbacks if isinstance(c, EMAWeightAveraging))._average_model
        self.seen = (clone(pl_module.state_dict()), clone(average.module.state_dict()))


def clone(state: State) -> State:
    return {key: value.clone() for key, value in state.items()}


def run_averaged(rank: int, world_size: int, path: str, load: bool) -> Any:
    model = TheirModule(momentum=0.9)
    watch: Any = SeeAverage() if load else SaveAfter(path, 2)
    trainer = make_trainer(
        rank,
        world_size,
        callbacks=[EMAWeightAveraging(decay=0.5), watch],
        max_epochs=2 if load else 1,
        limit_train_batches=2,
    )
    trainer.fit(model, make_loader(rank, world_size, sizes=split_sizes(world_size)), ckpt_path=path if load else None)
    return watch.seen


def test_averages_are_resharded_too(ranks: RankPool, tmp_path: Path) -> None:
    path = str(tmp_path / "ema.ckpt")
    written = ranks.run(2, run_averaged, path, False)
    read = ranks.run(3, run_averaged, path, True)
    for place in range(2):
        assert_same(whole([seen[place] for seen in read]), whole([seen[place] for seen in written]))
    assert not torch.equal(written[0][0]["head.weight"], written[0][1]["head.weight"])


# -- whole or absent, and never code


@pytest.fixture
def saved(ranks: RankPool, tmp_path: Path) -> Path:
    """A folder with two checkpoints of two ranks."""
    for step in (1, 2):
        ranks.run(2, run, {"momentum": 0.9}, None, str(tmp_path / f"{step}.ckpt"), 6, step)
    return tmp_path


def resume(rank: int, world_size: int, path: str, fall_back: bool = False) -> Any:
    model = TheirModule(momentum=0.9)
    seen = Snapshot()
    strategy = PartialFCStrategy(fall_back=fall_back)
    trainer = make_trainer(rank, world_size, strategy=strategy, callbacks=[seen], max_steps=3, max_epochs=-1)
    trainer.fit(model, make_loader(rank, world_size, sizes=split_sizes(world_size)), ckpt_path=path)
    return trainer.global_step, seen.start[0]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def cut(path: Path, place: int) -> None:
    path.write_bytes(path.read_bytes()[:place])


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("name", ["rank-00001.safetensors", "rank-00000.pt", MANIFEST])
def test_a_damaged_file_is_named_on_every_rank(ranks: RankPool, saved: Path, damage: Any, name: str) -> None:
    damage(saved / "2.ckpt" / name, -5)
    for outcome in ranks.outcomes(2, resume, str(saved / "2.ckpt"), timeout=60):
        assert outcome.error is not None
        assert outcome.error.startswith("CheckpointError")
        assert name in outcome.error
    with pytest.raises(CheckpointError, match=name):
        verify_folder(saved / "2.ckpt")
    verify_folder(saved / "1.ckpt")


def test_a_missing_file_is_named_and_the_run_may_fall_back(ranks: RankPool, saved: Path) -> None:
    (saved / "2.ckpt" / "rank-00001.safetensors").unlink()
    for outcome in ranks.outcomes(2, resume, str(saved / "2.ckpt"), timeout=60):
        assert "rank-00001.safetensors" in (outcome.error or "")
    results = ranks.run(2, resume, str(saved / "2.ckpt"), True)
    assert [steps for steps, _ in results] == [3, 3]
    [(_, other)] = ranks.run(1, resume, str(saved / "1.ckpt"))
    assert torch.equal(torch.cat([state["head.weight"] for _, state in results]), other["head.weight"])


class Bomb:
    """What an attacker would put into a pickle."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("place", ["file", "small", "manifest"])
def test_a_pickle_bomb_is_refused(ranks: RankPool, saved: Path, place: str) -> None:
    sign = saved / "exploded"
    bomb = pickle.dumps({"state_dict": Bomb(str(sign))})
    target = saved / "2.ckpt"
    if place == "file":
        target = saved / "bomb.ckpt"
        torch.save({"state_dict": Bomb(str(sign))}, target)
    elif place == "manifest":
        (target / MANIFEST).write_bytes(bomb)
    else:  # with a manifest that an attacker has made to fit
        torch.save({"state_dict": Bomb(str(sign))}, target / "rank-00000.pt")
        data = (target / "rank-00000.pt").read_bytes()
        content = json.loads((target / MANIFEST).read_text())
        content["files"]["rank-00000.pt"] = {"size": len(data), "crc32": [zlib.crc32(data)]}
        content.pop("sha256")
        (target / MANIFEST).write_text(json.dumps({"sha256": _digest(content), **content}))
    for outcome in ranks.outcomes(2, resume, str(target), timeout=60):
        assert outcome.error is not None
    assert not sign.exists()


def test_a_manifest_cannot_name_files_elsewhere(saved: Path) -> None:
    path = saved / "2.ckpt" / MANIFEST
    content = json.loads(path.read_text())
    content.pop("sha256")
    content["files"]["../1.ckpt/rank-00000.pt"] = content["files"]["rank-00000.pt"]
    path.write_text(json.dumps({"sha256": _digest(content), **content}))
    with pytest.raises(CheckpointError, match="which is not a file of this checkpoint"):
        Manifest.read(saved / "2.ckpt")


def test_torchs_own_reader_and_safetensors_can_open_the_data(saved: Path) -> None:
    manifest = Manifest.read(saved / "2.ckpt")
    metadata = HuggingFaceStorageReader(str(saved / "2.ckpt")).read_metadata()
    assert set(metadata.state_dict_metadata) == set(manifest.tensors)
    for key, entry in manifest.tensors.items():
        assert list(metadata.state_dict_metadata[key].size) == entry.shape  # type: ignore[union-attr]


def fill_disk(rank: int, world_size: int, path: str) -> str:
    """Saves once with room, and once where rank 1 has none."""
    model = TheirModule(momentum=0.9)
    trainer = make_trainer(rank, world_size, max_steps=2, max_epochs=-1)
    trainer.fit(model, make_loader(rank, world_size))
    trainer.save_checkpoint(path)
    with no_file_over(100) if rank == 1 else contextlib.nullcontext():
        try:
            trainer.save_checkpoint(path)
        except CheckpointError as error:
            return str(error)
    return ""


def test_a_full_disk_stops_with_the_old_checkpoint_intact(ranks: RankPool, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    for text in ranks.run(2, fill_disk, str(path)):
        assert "could not be written" in text
        assert "rank 1" in text
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
    verify_folder(path)


def another_size(rank: int, world_size: int, path: str) -> None:
    class Larger(TheirModule):
        def make_head(self) -> Any:
            return PartialFC(embedding_dim=DIM, num_classes=CLASSES + 2, loss=CosFace())

    make_trainer(rank, world_size).fit(Larger(momentum=0.9), make_loader(rank, world_size), ckpt_path=path)


def test_another_number_of_classes_says_what_to_do(ranks: RankPool, saved: Path) -> None:
    for outcome in ranks.outcomes(2, another_size, str(saved / "2.ckpt"), timeout=60):
        assert f"has {CLASSES} classes in head.weight" in (outcome.error or "")
        assert "pfc-ckpt" in (outcome.error or "")


# -- what opens a folder


def fit_package_module(rank: int, world_size: int, path: str) -> State:
    torch.manual_seed(3)
    model = PartialFCModule(
        backbone="test_resnet.r160_in1k", num_classes=CLASSES, embedding_dim=DIM, input_size=(3, 32, 32)
    )
    images = torch.randn(8, 3, 32, 32)
    data = torch.utils.data.TensorDataset(images, torch.arange(8))
    trainer = make_trainer(rank, world_size)
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=4))
    trainer.save_checkpoint(path)
    return model.state_dict()


def test_the_packages_module_opens_a_folder_by_itself(ranks: RankPool, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    states = ranks.run(2, fit_package_module, str(path))
    model = PartialFCModule.load_from_checkpoint(path, map_location="cpu")
    for key, value in model.state_dict().items():
        expected = states[0][key] if key != "head.weight" else torch.cat([state[key] for state in states])
        assert torch.equal(value, expected), key
    assert model.hparams["num_classes"] == CLASSES


def stock_resume(rank: int, world_size: int, path: str) -> None:
    trainer = make_trainer(rank, world_size, strategy="auto")
    trainer.fit(TheirModule(momentum=0.9), make_loader(rank, world_size), ckpt_path=path)


def test_a_stock_strategy_says_what_to_do_about_a_folder(ranks: RankPool, saved: Path) -> None:
    [outcome] = ranks.outcomes(1, stock_resume, str(saved / "2.ckpt"), group=False)
    assert 'strategy="pfc"' in (outcome.error or "")
    assert "pfc-ckpt merge" in (outcome.error or "")


def test_a_run_that_dies_while_saving_leaves_nothing_that_looks_like_a_checkpoint(tmp_path: Path) -> None:
    folder = prepare_folder(tmp_path / "hpc_ckpt_1.ckpt")
    assert "ckpt_" not in folder.name, "Lightning looks for the highest number after ckpt_ in any name"
    assert folder.name.startswith(".")
    dead = folder.with_name(folder.name.replace(f"-{os.getpid()}-", "-99999999-"))
    folder.rename(dead)
    prepare_folder(tmp_path / "b.ckpt").rmdir()
    assert list(tmp_path.iterdir()) == [], "the next save sweeps up what dead processes left"


# -- exact resume


class Dropout(TheirModule):
    """Random numbers in the step, so that a resume without random state would show."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.backbone.append(nn.Dropout(0.4))

    def on_train_batch_end(self, *args: Any) -> None:
        if self.save_at == self.trainer.global_step:
            self.trainer.save_checkpoint(self.path)  # type: ignore[arg-type]


class Resumable:
    """A loader that knows where it is; what the package's own data module does, in its simplest form."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.done = loader, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Any:
        batches = list(self.loader)
        start, self.done = self.done % len(batches), self.done % len(batches)
        for batch in batches[start:]:
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


def interrupted(rank: int, world_size: int, path: str, load: bool, save_at: int) -> Any:
    torch.manual_seed(rank)
    model: Any = Dropout(momentum=0.9, sample_rate=0.5)
    model.path, model.save_at = path, save_at
    trainer = make_trainer(rank, world_size, max_epochs=2)
    loader = Resumable(make_loader(rank, world_size, steps=4))
    trainer.fit(model, loader, ckpt_path=path if load else None)
    return snapshot(trainer, model), model.losses


@pytest.mark.parametrize("save_at", [2, 4, 5])
def test_resuming_at_any_step_ends_bit_for_bit_where_the_whole_run_ends(
    ranks: RankPool, tmp_path: Path, save_at: int
) -> None:
    path = str(tmp_path / "mid.ckpt")
    complete = ranks.run(2, interrupted, path, False, save_at)
    resumed = ranks.run(2, interrupted, path, True, -1)
    for (a, losses), (b, rest) in zip(complete, resumed, strict=True):
        assert rest == losses[save_at:]
        for place in range(2):
            assert_same(a[place], b[place])
