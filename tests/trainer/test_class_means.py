"""``head.init=class_means``: centers from the pictures, against all embeddings in the memory of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pfc import PartialFC
from lightning_pfc.data import IdentityDataModule
from lightning_pfc.data.augment import augmentation
from lightning_pfc.data.camera import to_float
from lightning_pfc.data.images import ArrayImages
from lightning_pfc.data.source import IdentityData
from lightning_pfc.runs.resuming import earlier_run
from lightning_pfc.transfer import ClassMeans, InitFrom, fill_with_class_means
from tests.ranks import RankPool
from tests.trainer.test_other_options import pfc_train
from tests.trainer.world import make_trainer

NAMES = [f"p{i:02d}" for i in range(13)]
NOBODY = (3, 11)  # without a picture
DIM = 6


class Few:
    """Pictures of 13 people, of 5 and 2 and ... and none; in no order."""

    def __init__(self, names: list[str], broken: bool = False) -> None:
        self.names, self.broken = names, broken

    def prepare(self) -> None:
        pass

    def open(self) -> IdentityData:
        labels = np.array([i for i in range(len(self.names)) for _ in range(1 + i % 5) if i not in NOBODY])
        order = np.random.default_rng(0).permutation(len(labels))
        pictures = np.random.default_rng(1).integers(0, 256, (len(labels), 1, 8, 8), dtype=np.uint8)
        labels = labels[order]
        return IdentityData(
            train=Broken(pictures) if self.broken else ArrayImages(pictures),
            labels=labels,
            num_classes=len(self.names),
            task="closed",
            fingerprint="0" * 16,
            augment=augmentation("affine_flip"),
            class_names=self.names,
        )


class Broken(ArrayImages):
    def fetch(self, index: Any) -> Any:
        if 7 in np.asarray(index):
            raise ValueError("picture 7 cannot be read")
        return super().fetch(index)


class Small(L.LightningModule):
    """A network with a batch norm, one head or two."""

    def __init__(self, classes: int = len(NAMES), init: Any = "class_means", loss: str = "CosFace") -> None:
        super().__init__()
        torch.manual_seed(5)
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10), nn.Linear(10, DIM))
        self.backbone[2].running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr, operator]
        self.head = PartialFC(embedding_dim=DIM, num_classes=classes, loss=loss, init=init)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.backbone(images)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.head(self(batch[0]), batch[1])
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Look(L.Callback):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.weight = pl_module.head.weight.detach().clone()
        self.training = pl_module.training


def fit(rank: int, world_size: int, options: dict[str, Any]) -> Any:
    names = options.get("names", NAMES)
    module = Small(len(names), options.get("init", "class_means"), options.get("loss", "CosFace"))
    means, look = ClassMeans(), Look()
    before = [InitFrom(options["source"])] if "source" in options else []
    trainer = make_trainer(
        rank, world_size, max_steps=1, max_epochs=-1, limit_train_batches=1, callbacks=[*before, means, look]
    )
    data = IdentityDataModule(Few(names, options.get("broken", False)), batch_size=4, eval_batch_size=3)
    try:
        trainer.fit(module, datamodule=data)
    except Exception as error:
        return str(error)
    if "save" in options:
        trainer.save_checkpoint(options["save"])
    return look.weight, dict(means.done), look.training


def twin(names: list[str] = NAMES, network: nn.Module | None = None) -> dict[int, Tensor]:
    """All embeddings at once: the mean of the unit ones of each class, brought to length 1."""
    data = Few(names).open()
    pictures = to_float(data.train.fetch(np.arange(len(data.train))))
    with torch.no_grad():
        unit = F.normalize((network or Small()).eval()(pictures).double())
    labels = torch.as_tensor(np.asarray(data.labels))
    return {i: F.normalize(unit[labels == i].mean(0), dim=0).float() for i in set(labels.tolist())}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_means_are_those_of_one_process(ranks: RankPool, world_size: int) -> None:
    parts = ranks.run(world_size, fit, {})
    weight, expected, drawn = torch.cat([part[0] for part in parts]), twin(), Small(init=None).to("cpu").head.weight
    assert set(expected) == set(range(13)) - set(NOBODY)
    for row in range(13):
        wanted = expected[row] if row in expected else drawn[row].detach()
        torch.testing.assert_close(weight[row], wanted, rtol=0, atol=2e-6 if row in expected else 0)
    for _, done, training in parts:
        assert done["head"] == (11, 0, 2, 3)
        assert training


def test_of_several_centers_the_first_is_the_mean(ranks: RankPool) -> None:
    [(weight, _, _)] = ranks.run(1, fit, {"loss": "SubCenterArcFace"})
    drawn = Small(init=None, loss="SubCenterArcFace").to("cpu").head.weight.detach()
    torch.testing.assert_close(weight[0, :DIM], twin()[0], rtol=0, atol=2e-6)
    assert weight.shape[1] > DIM
    assert torch.equal(weight[:, DIM:], drawn[:, DIM:])


@pytest.mark.parametrize("world_size", [1, 2])
def test_those_that_are_known_stay(ranks: RankPool, tmp_path: Path, world_size: int) -> None:
    source = str(tmp_path / "a.ckpt")
    [(first, _, _)] = ranks.run(1, fit, {"init": None, "save": source})
    stored = torch.load(source, weights_only=True)["state_dict"]
    assert first.shape == (13, DIM)
    names = ["new one", *NAMES[:9], "another"]  # rows move by one
    parts = ranks.run(world_size, fit, {"source": source, "names": names})
    weight = torch.cat([part[0] for part in parts])
    network = Small()
    network.load_state_dict({k: v for k, v in stored.items() if not k.startswith("head.")}, strict=False)
    expected = twin(names, network)
    for row, name in enumerate(names):
        if name in NAMES:
            assert torch.equal(weight[row], stored["head.weight"][NAMES.index(name)])
        elif row in expected:
            torch.testing.assert_close(weight[row], expected[row], rtol=0, atol=2e-6)
    assert parts[0][1]["head"] == (2, 9, 0, -1)


def test_what_goes_wrong_on_one_rank_is_raised_on_all(ranks: RankPool) -> None:
    for said in ranks.run(2, fit, {"broken": True}):
        assert "picture 7 cannot be read" in said


def uneven(rank: int, world_size: int) -> Any:
    """Without a Trainer, ranks have other numbers of batches; one has none."""
    module = Small()
    data = Few(NAMES).open()
    pictures = to_float(data.train.fetch(np.arange(len(data.train))))
    labels = torch.as_tensor(np.asarray(data.labels))
    batches = [(pictures[i : i + 5], labels[i : i + 5]) for i in range(0, len(labels), 5)] if rank == 0 else []
    module.head.to("cpu")
    filled = fill_with_class_means(module, {"head": module.head}, batches)
    return module.head.weight.detach(), filled["head"].filled


def test_in_a_plain_program(ranks: RankPool) -> None:
    parts = ranks.run(2, uneven)
    assert [part[1] for part in parts] == [11, 11]
    weight = torch.cat([part[0] for part in parts])
    for row, expected in twin().items():
        torch.testing.assert_close(weight[row], expected, rtol=0, atol=2e-6)


def test_nobody_has_given_them() -> None:
    module = Small().to("cpu")
    with pytest.raises(ValueError, match="the centers are still random"):
        module.head(torch.randn(4, DIM), torch.arange(4))
    module.load_state_dict(Small(init=None).to("cpu").state_dict())
    assert module.head(torch.randn(4, DIM), torch.arange(4)).isfinite()
    with pytest.raises(ValueError, match="must be one of 'normal', 'unit', 'kaiming', 'xavier', 'class_means'"):
        Small(init="means")


def test_the_command(tmp_path: Path) -> None:
    """As typed, and gone on with: what was for the beginning is not done again."""
    words = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "test=false")
    out = f"output_dir={tmp_path / 'a'}"
    first = pfc_train(*words, "head.init=class_means", out)
    assert first.returncode == 0, first.stderr
    assert "head: 12 centers are means" in first.stderr
    again = pfc_train(f"resume={tmp_path / 'a'}", "trainer.max_epochs=2")
    assert again.returncode == 0, again.stderr
    assert "head.init=class_means was for the beginning" in again.stderr
    for word in (f"resume={tmp_path / 'a'}", "ckpt_path=x.ckpt"):
        with pytest.raises(ValueError, match="goes on with the centers of a run"):
            earlier_run(["head.init=class_means", word])
