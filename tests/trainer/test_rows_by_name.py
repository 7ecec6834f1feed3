"""``head.match=names`` with every optimizer that keeps rows: identities renamed, added and dropped at once."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_pfc import PartialFCStrategy
from lightning_pfc.checkpoint.by_name import NEW, row_origins
from lightning_pfc.checkpoint.identities import Identities, difference
from lightning_pfc.checkpoint.reader import CheckpointReader
from lightning_pfc.optim import LARS, RowWiseAdagrad, SparseAdamW, SparseSGD
from lightning_pfc.optim.row_state import row_state_keys
from tests.ranks import RankPool
from tests.trainer.test_identities import NAMES, Named, Sized, go
from tests.trainer.test_other_options import pfc_train
from tests.trainer.world import make_trainer

CHANGED = ["aaron", *NAMES[:2:-1], "doris", "zoe", "anna"]  # bert and cäcilie are gone, three are new, one is last now
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd in 8 bits": (SparseSGD, {"momentum": 0.9, "state_dtype": "int8"}),
    "adamw that decays": (SparseAdamW, {"missed_steps": "decay"}),
    "adamw in 8 bits": (SparseAdamW, {"state_dtype": "int8"}),
    "rowwise_adagrad": (RowWiseAdagrad, {}),
    "lars": (LARS, {"momentum": 0.9}),
    "torch's amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "torch's rmsprop": (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
}


class Tuned(Sized):
    def __init__(self, kind: str, classes: int) -> None:
        self.kind = kind
        super().__init__(classes)

    def configure_optimizers(self) -> Any:
        make, options = OPTIMIZERS[self.kind]
        return make(self.parameters(), lr=0.1, **options)


class Look(L.Callback):
    """This rank's rows of all that has an entry per class, before the first step."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        weight, optimizer = pl_module.head.weight, trainer.optimizers[0]
        self.found = {"weight": weight.detach().clone()}
        for key, value in optimizer.state.get(weight, {}).items():
            if row_state_keys(optimizer).get(key) and isinstance(value, Tensor) and value.dim():
                self.found[key] = value.clone()


def run(rank: int, world_size: int, kind: str, names: list[str], load: str | None, save: str | None) -> Any:
    look = Look()
    strategy = PartialFCStrategy(match="names" if load else None)
    steps = 3 if load is None else 4
    trainer = make_trainer(rank, world_size, max_steps=steps, max_epochs=-1, strategy=strategy, callbacks=[look])
    trainer.limit_val_batches = 0
    trainer.fit(Tuned(kind, len(names)), datamodule=Named(rank, world_size, names), ckpt_path=load)
    if save is not None:
        trainer.save_checkpoint(save)
    return look.found


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_rows_of_every_optimizer_follow_their_names(ranks: RankPool, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.ckpt"
    ranks.run(2, run, kind, NAMES, None, str(path))
    source = CheckpointReader(path)
    before = {key.rpartition("/")[2]: source.whole(key) for key, entry in source.tensors.items() if entry.by_class}
    before = {key.removeprefix("head."): value for key, value in before.items()}
    parts = ranks.run(2, run, kind, CHANGED, str(path), None)
    found = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    assert set(found) == set(before), "everything with a row per class has moved"
    assert len(found) > 1
    new = Sized(len(CHANGED)).to("cpu").head.weight.detach()
    for row, name in enumerate(CHANGED):
        for key, value in found.items():
            if name in NAMES:
                assert torch.equal(value[row], before[key][NAMES.index(name)]), (key, name)
            else:
                assert torch.equal(value[row], new[row] if key == "weight" else torch.zeros_like(value[row])), key


COMPOSED, APART = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))


def test_accents_are_written_in_two_ways(ranks: RankPool, tmp_path: Path) -> None:
    """A folder copied from a system that writes them behind the letters: the same people, and said to be."""
    there, here = (Identities.of(names) for names in (["anna", COMPOSED, "dora"], ["anna", APART, "dora"]))
    said = difference(there, here) or ""
    assert "look alike: accents are written as 'Zo\\xeb' there and as 'Zoe\\u0308' here" in said
    assert row_origins(there, here).tolist() == [0, 1, 2]
    path = str(tmp_path / "a.ckpt")
    spelt = [unicodedata.normalize("NFD", name) for name in NAMES]
    assert spelt != NAMES
    ranks.run(2, go, "fit", NAMES, None, path, None)
    for said in ranks.run(2, go, "validate", spelt, path, None, None):
        assert "look alike" in said
        assert said.isprintable()
    found = torch.cat([part["weight"] for part in ranks.run(2, weights_at_the_start, spelt, path)])
    assert torch.equal(found, CheckpointReader(tmp_path / "a.ckpt").whole("state_dict/head.weight"))


def weights_at_the_start(rank: int, world_size: int, names: list[str], path: str) -> Any:
    look, strategy = Look(), PartialFCStrategy(match="names")
    trainer = make_trainer(rank, world_size, max_steps=3, max_epochs=-1, strategy=strategy, callbacks=[look])
    trainer.limit_val_batches = 0
    trainer.fit(Sized(len(names)), datamodule=Named(rank, world_size, names), ckpt_path=path)
    return look.found


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([COMPOSED, APART], [APART, COMPOSED], [1, 0]),  # as they are, where they are
        ([COMPOSED, APART, "a"], ["a", APART], [2, 1]),
        ([COMPOSED, "a"], [APART, "a", "b"], [0, 1, NEW]),
        ([COMPOSED, "a"], ["b", COMPOSED, APART], [NEW, 0, NEW]),  # taken: its twin is another one
        (["Zoe", "a"], [COMPOSED, "a"], [NEW, 1]),  # without an accent it is another name
    ],
)
def test_who_is_who(old: list[str], new: list[str], expected: list[int]) -> None:
    assert row_origins(Identities.of(old), Identities.of(new)).tolist() == expected


def test_two_folders_that_look_alike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from lightning_pfc.data.formats import FolderImages

    for name in ("anna", COMPOSED, APART):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"")
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system takes both for one name")
    assert FolderImages(tmp_path).num_classes == 3
    assert "'Zoe\\u0308' and 'Zo\\xeb' look alike" in caplog.text


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    """Folders of an old archive: a run trains, predicts, goes on, and keeps them."""
    from PIL import Image

    old, generator = b"caf\xe9".decode("utf-8", "surrogateescape"), torch.Generator().manual_seed(0)
    for name in (old, "anna", " bert\t"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for image in range(4):
            pixels = torch.randint(0, 255, (16, 16, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "faces" / name / f"{image}.png")
    words = ("data=folder", f"data.source.path={tmp_path / 'faces'}", "data.source.test_share=0",
             "data.source.image_size=16", "data.batch_size=4", "test=false")  # fmt: skip
    run = tmp_path / "run"
    first = pfc_train(*words, "trainer.max_epochs=1", f"predict.source={tmp_path / 'faces'}", f"output_dir={run}",
                      base=False)  # fmt: skip
    assert first.returncode == 0, first.stderr
    assert b"caf\xe9" in (run / "predictions.tsv").read_bytes()
    assert b"caf\xe9" in (run / "identities" / "train.txt").read_bytes()
    second = pfc_train(f"resume={run}", "trainer.max_epochs=2", base=False)
    assert second.returncode == 0, second.stderr
    kept = CheckpointReader(run / "checkpoints" / "last.ckpt").identities
    assert kept is not None
    assert sorted(kept) == sorted([old, "anna", " bert\t"])
