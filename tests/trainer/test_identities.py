"""Whose the classes of a checkpoint are: its doors refuse the data of others, and say which class differs first."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_pfc import PartialFC
from lightning_pfc.checkpoint import CheckpointError, Manifest, identities
from lightning_pfc.checkpoint.identities import NAMES_FILE, Identities, difference, in_folder, in_values
from lightning_pfc.checkpoint.reader import CheckpointReader
from lightning_pfc.checkpoint.single import OWN
from lightning_pfc.commands.ckpt import main
from lightning_pfc.data.numbering import numbered_as
from lightning_pfc.losses import CosFace
from lightning_pfc.strategies import moved_rows
from tests.ranks import RankPool
from tests.trainer.test_checkpoints import split_sizes
from tests.trainer.test_other_options import pfc_train
from tests.trainer.world import DIM, WIDTH, TheirModule, make_loader, make_trainer

NAMES = ["anna", "bert", "cäcilie", "dora", "emil", "fritz", "gerd", "hanna", "ida", "jan", "kurt"]
OTHERS: dict[str, tuple[list[str], str]] = {
    "same": (NAMES, ""),
    "permuted": ([*NAMES[1:], NAMES[0]], "class 0 is 'anna' in the checkpoint and 'bert' in the data"),
    "renamed": ([*NAMES[:3], "doris", *NAMES[4:]], "class 3 is 'dora' in the checkpoint and 'doris' in the data"),
    "added": ([*NAMES, "lisa"], "class 11 is not in the checkpoint and is 'lisa' in the data"),
    "added first": (["aaron", *NAMES], "class 0 is 'anna' in the checkpoint and 'aaron' in the data"),
    "dropped": (NAMES[:-1], "class 10 is 'kurt' in the checkpoint and is not in the data"),
}


class Named(L.LightningDataModule):
    """The fixed batches, of classes with names."""

    def __init__(self, rank: int, world_size: int, names: Sequence[str] | None) -> None:
        super().__init__()
        if names is not None:
            self.class_names = list(names)
        self._loader = make_loader(rank, world_size, steps=8, sizes=split_sizes(world_size))
        batches: Any = self._loader.dataset
        if names is not None:  # the same pictures of the same people, numbered as their names are now
            now = torch.tensor([self.class_names.index(name) if name in names else 0 for name in NAMES])
            batches.batches = [(x, now[y]) for x, y in batches.batches]

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader


class Sized(TheirModule):
    def __init__(self, classes: int = len(NAMES)) -> None:
        self.classes = classes
        super().__init__(momentum=0.9)

    def make_head(self) -> PartialFC:
        return PartialFC(embedding_dim=DIM, num_classes=self.classes, loss=CosFace(scale=8.0), init_std=0.5)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch), sync_dist=True)


def go(
    rank: int, world_size: int, door: str, names: Sequence[str] | None, load: str | None, save: str | None, match: Any
) -> Any:
    from lightning_pfc import PartialFCStrategy

    model = Sized() if names is None else Sized(len(names))
    steps = 2 if load is None else 3
    trainer = make_trainer(rank, world_size, max_steps=steps, max_epochs=-1, strategy=PartialFCStrategy(match=match))
    trainer.limit_val_batches = 0 if door == "fit" else 1
    trainer.limit_test_batches = 1
    try:
        getattr(trainer, door)(model, datamodule=Named(rank, world_size, names), ckpt_path=load)
    except CheckpointError as error:
        return str(error)
    if save is not None:
        trainer.save_checkpoint(save)
    return ""


class Pictures(Dataset[Any]):
    """As torchvision's ``ImageFolder``: the names of its classes are ``classes``."""

    def __init__(self, names: Sequence[str]) -> None:
        self.classes = list(names)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(WIDTH, generator=generator), index % len(self.classes)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_classes_of_a_data_set_in_a_loader_of_ones_own_are_compared(
    ranks: RankPool, tmp_path: Path, world_size: int
) -> None:
    path = str(tmp_path / "a.ckpt")
    other = [*NAMES[1:], NAMES[0]]
    assert set(ranks.run(world_size, through, "fit", "loader", Pictures(NAMES), None, path)) == {""}
    assert list(stored_in(Path(path))) == NAMES
    for data in (Pictures(other), Subset(Pictures(other), range(48))):
        for said in ranks.run(world_size, through, "fit", "loader", data, path, None):
            assert "class 0 is 'anna' in the checkpoint and 'bert' in the data" in said
    assert set(ranks.run(world_size, through, "fit", "loader", Pictures(NAMES), path, None)) == {""}


class Loading(Sized):
    """A module that makes its loaders itself, as Lightning's hooks have it."""

    data: Any

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=4)

    def val_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=4)

    def test_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=4)


class OfLists(Sized):
    """Its batches come from a collection of loaders."""

    def loss(self, batch: Any) -> Tensor:
        return super().loss(batch if isinstance(batch[0], Tensor) else batch[0])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.loss(batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.loss(batch)


class Module(L.LightningDataModule):
    """A data module that tells no names; its data sets do."""

    train_dataloader, val_dataloader = Loading.train_dataloader, Loading.val_dataloader
    test_dataloader = Loading.test_dataloader

    def __init__(self, data: Any) -> None:
        super().__init__()
        self.data = data


def through(rank: int, world_size: int, door: str, way: str, data: Any, load: str | None, save: str | None) -> str:
    """A checkpoint that meets data at a door, which get there in one of many ways."""
    trainer = make_trainer(rank, world_size, max_steps=2 if load is None else 3, max_epochs=-1)
    trainer.limit_val_batches = 0 if door == "fit" else 1
    trainer.limit_test_batches = 1
    loader = DataLoader(data, batch_size=4)
    model: Any = {"hook": Loading, "list": OfLists}.get(way, Sized)()
    model.data = data
    ways: dict[str, Any] = {
        "loader": (loader,),
        "list": ([loader, loader],) if door != "fit" else (CombinedLoader([loader], "max_size_cycle"),),
        "hook": (),
        "data module": (Module(data),),
    }
    try:
        getattr(trainer, door)(model, *ways[way], ckpt_path=load)
    except CheckpointError as error:
        return str(error)
    if save is not None:
        trainer.save_checkpoint(save)
    return ""


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("way", ["loader", "list", "hook", "data module"])
def test_the_names_of_data_sets_are_compared_however_they_come(
    ranks: RankPool, tmp_path: Path, way: str, world_size: int
) -> None:
    path, other = str(tmp_path / "a.ckpt"), Pictures([*NAMES[1:], NAMES[0]])
    assert set(ranks.run(world_size, through, "fit", way, Pictures(NAMES), None, path)) == {""}
    assert list(stored_in(Path(path))) == NAMES
    for door in ("fit", "validate", "test"):
        assert set(ranks.run(world_size, through, door, way, Pictures(NAMES), path, None)) == {""}, door
        for said in ranks.run(world_size, through, door, way, other, path, None):
            assert "class 0 is 'anna' in the checkpoint and 'bert' in the data" in said, door


def rows_of(path: Path, names: Sequence[str], there: list[str] | None = None) -> dict[str, Tensor]:
    """Everything in a checkpoint, rows by class in the order of these names."""
    source = CheckpointReader(path)
    assert source.identities is not None
    there = there or list(source.identities)
    order = torch.tensor([there.index(name) for name in names])
    return {key: source.whole(key)[order] if e.by_class else source.whole(key) for key, e in source.tensors.items()}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("door", ["fit", "validate", "test"])
def test_every_door_compares_the_names(ranks: RankPool, tmp_path: Path, door: str, world_size: int) -> None:
    path = str(tmp_path / "a.ckpt")
    assert set(ranks.run(world_size, go, "fit", NAMES, None, path, None)) == {""}
    assert list(stored_in(Path(path))) == NAMES
    for case, (names, expected) in OTHERS.items():
        for said in ranks.run(world_size, go, door, names, path, None, None):
            assert expected in said, case
            assert bool(said) == bool(expected), (case, said)
            assert len(said.splitlines()) < 2
            assert not expected or ("head.match=position" in said and "head.match=names" in said)


def stored_in(path: Path) -> Identities:
    found = in_folder(path) if path.is_dir() else in_values(torch.load(path, weights_only=True)[OWN], str(path))
    assert found is not None
    return found


def test_by_position_where_the_user_says_so_or_nobody_knows(ranks: RankPool, tmp_path: Path) -> None:
    named, unnamed = str(tmp_path / "a.ckpt"), str(tmp_path / "b.ckpt")
    ranks.run(1, go, "fit", NAMES, None, named, None)
    ranks.run(1, go, "fit", None, None, unnamed, None)
    assert ranks.run(1, go, "fit", OTHERS["permuted"][0], named, None, "position") == [""]
    assert ranks.run(1, go, "fit", None, named, None, None) == [""]
    assert ranks.run(1, go, "fit", NAMES, unnamed, None, None) == [""]
    content = torch.load(unnamed, weights_only=True)
    assert identities.KEY not in content[OWN]
    with pytest.raises(ValueError, match="match must be one of 'names', 'position' or None"):
        go(0, 1, "fit", None, None, None, "maybe")


def test_a_file_of_names_is_damaged_or_missing(ranks: RankPool, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    ranks.run(2, go, "fit", NAMES, None, str(path), None)
    manifest = Manifest.read(path)
    assert NAMES_FILE in manifest.files
    for case in ("missing", "altered", "longer"):
        broken = tmp_path / case
        shutil.copytree(path, broken)
        file = broken / NAMES_FILE
        if case == "missing":
            file.unlink()
        else:
            content = file.read_bytes()
            file.write_bytes(b"x" + content[1:] if case == "altered" else content + b"x\0")
        for said in ranks.run(2, go, "fit", OTHERS["permuted"][0], str(broken), None, None):
            assert NAMES_FILE in said, case
            assert len(said.splitlines()) == 1


def test_names_are_compared_in_a_stream() -> None:
    """A sequence that makes its names when asked: half a million of them, and one that differs near the end."""

    class Numbered:
        def __init__(self, other: int = -1, count: int = 500_000) -> None:
            self.other, self.count = other, count

        def __len__(self) -> int:
            return self.count

        def __getitem__(self, index: int) -> str:
            return f"n{index}" if index != self.other else "x"

    a = Identities.of(Numbered())
    assert difference(a, Identities.of(Numbered())) is None
    found = difference(a, Identities.of(Numbered(499_999)))
    assert found is not None
    assert found.startswith("class 499999 is 'n499999' in the checkpoint and 'x' in the data")


@pytest.mark.parametrize("names", [["", "a"], ["a\nb", "c"], ["a\0b", "c"], ["\udce9t\udce9", "ü"], []])
def test_any_name_comes_back(names: list[str]) -> None:
    made = Identities.of(names)
    back = in_values({identities.KEY: made.as_values()}, "x")
    assert back is not None
    assert [name.replace("\0", "\\0") for name in names] == list(back)
    assert difference(back, made) is None


@pytest.mark.parametrize(
    "facts", [1, {"count": -1}, {"count": 2, "digest": "x", "names": torch.zeros(3)}, {"count": 2, "digest": "x"}]
)
def test_what_a_file_says_of_names_makes_no_sense(facts: Any) -> None:
    with pytest.raises(CheckpointError, match="x cannot be used"):
        in_values({identities.KEY: facts}, "x")
    few = in_values({identities.KEY: {"count": 9, "digest": "x", "names": torch.zeros(3, dtype=torch.uint8)}}, "x")
    assert few is not None
    with pytest.raises(CheckpointError, match="the names of classes are damaged"):
        list(few)


def test_a_folder_that_was_renamed(tmp_path: Path) -> None:
    """As a user has it: a folder of pictures, one of which gets a name that sorts last."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for number in range(4):
        (tmp_path / "faces" / f"p{number}").mkdir(parents=True)
        for image in range(4):
            pixels = torch.randint(0, 255, (16, 16, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "faces" / f"p{number}" / f"{image}.png")
    words: tuple[str, ...] = ("data=folder", f"data.source.path={tmp_path / 'faces'}", "data.source.test_share=0",
             "data.source.image_size=16", "data.batch_size=8")  # fmt: skip
    first = pfc_train(*words, "trainer.max_epochs=1", f"output_dir={tmp_path / 'a'}", base=False)
    assert first.returncode == 0, first.stderr
    (tmp_path / "faces" / "p0").rename(tmp_path / "faces" / "zoe")
    words = (*words, "trainer.max_epochs=2", f"ckpt_path={tmp_path / 'a' / 'checkpoints' / 'last.ckpt'}")
    second = pfc_train(*words, f"output_dir={tmp_path / 'b'}", base=False)
    assert second.returncode > 0
    assert "Traceback" not in second.stderr + second.stdout
    assert "class 0 is 'p0' in the checkpoint and 'p1' in the data" in second.stderr
    third = pfc_train(*words, "head.match=position", f"output_dir={tmp_path / 'c'}", base=False)
    assert third.returncode == 0, third.stderr


@pytest.mark.parametrize("world_size", [1, 2])
def test_rows_move_to_where_their_names_are(ranks: RankPool, tmp_path: Path, world_size: int) -> None:
    """A checkpoint of one process and one of two, each gone on with on other numbers of ranks."""
    began, untouched = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    ranks.run(3 - world_size, go, "fit", NAMES, None, str(began), None)
    ranks.run(world_size, go, "fit", NAMES, str(began), str(untouched), None)
    before, expected = rows_of(began, NAMES), rows_of(untouched, NAMES)
    assert any("momentum_buffer" in key for key in expected)
    for case, (names, _) in OTHERS.items():
        path = tmp_path / f"{case}.ckpt"
        assert set(ranks.run(world_size, go, "fit", names, str(began), str(path), "names")) == {""}, case
        assert list(stored_in(path)) == names
        kept = [name for name in NAMES if name in names]
        after = rows_of(path, kept)
        assert after.keys() == expected.keys()
        for key, rows in after.items():
            if case in ("same", "permuted"):
                torch.testing.assert_close(rows, expected[key], rtol=1e-6, atol=1e-7)
            elif "head.weight" in key:  # one more step of three: nearer to what was than to anything new
                there = before[key][[NAMES.index(name) for name in kept]]
                assert (rows - there).norm() < 0.5 * there.norm(), (case, key)


@pytest.mark.parametrize("world_size", [1, 2])
def test_rows_are_moved_before_anything_else_happens(ranks: RankPool, tmp_path: Path, world_size: int) -> None:
    """Bit for bit, optimizer rows too; new classes have the centers of a new head, and nothing else."""
    began = tmp_path / "a.ckpt"
    ranks.run(world_size, go, "fit", NAMES, None, str(began), None)
    new = {len(names): Sized(len(names)).to("cpu").head.weight.detach() for names, _ in OTHERS.values()}
    before = rows_of(began, NAMES)
    for names, _ in OTHERS.values():
        parts = ranks.run(world_size, loaded, names, str(began))
        found = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        for row, name in enumerate(names):
            known = name in NAMES
            center = before["state_dict/head.weight"][NAMES.index(name)] if known else new[len(names)][row]
            assert torch.equal(found["weight"][row], center), name
            momentum = before["optimizer_states/0/state/4/momentum_buffer"]
            expected = momentum[NAMES.index(name)] if known else torch.zeros(DIM)
            assert torch.equal(found["momentum"][row], expected), name


class Look(L.Callback):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        weight = pl_module.head.weight
        self.found = {
            "weight": weight.detach().clone(),
            "momentum": trainer.optimizers[0].state[weight]["momentum_buffer"].clone(),
        }


@pytest.mark.parametrize("init", [None, "class_means"])
def test_how_new_classes_begin_is_said(init: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(moved_rows, "rank_zero_info", said.append)
    head = PartialFC(embedding_dim=4, num_classes=3, loss="cosface", init=init)
    there, here = (identities.Identities.of(names) for names in (["a", "b"], ["a", "b", "c"]))
    moved_rows.find_moves("x.ckpt", there, here, {"head": head})
    assert "new in the data: 1 (their centers begin at random" in said[0]
    assert ("head.init=class_means is for the beginning of a run" in said[0]) == (init is not None)


def loaded(rank: int, world_size: int, names: list[str], path: str) -> dict[str, Tensor]:
    from lightning_pfc import PartialFCStrategy

    look = Look()
    strategy = PartialFCStrategy(match="names")
    trainer = make_trainer(rank, world_size, max_steps=3, max_epochs=-1, strategy=strategy, callbacks=[look])
    trainer.limit_val_batches = 0
    trainer.fit(Sized(len(names)), datamodule=Named(rank, world_size, names), ckpt_path=path)
    return look.found


@pytest.mark.parametrize("door", ["validate", "test"])
def test_other_doors_move_rows_too(ranks: RankPool, tmp_path: Path, door: str) -> None:
    path = str(tmp_path / "a.ckpt")
    ranks.run(2, go, "fit", NAMES, None, path, None)
    for names in (OTHERS["permuted"][0], OTHERS["added first"][0]):
        assert ranks.run(2, go, door, names, path, None, "names") == ["", ""]


@pytest.mark.parametrize("world_size", [1, 2])
def test_names_that_cannot_be_followed(ranks: RankPool, tmp_path: Path, world_size: int) -> None:
    named, unnamed = str(tmp_path / "a.ckpt"), str(tmp_path / "b.ckpt")
    ranks.run(world_size, go, "fit", NAMES, None, named, None)
    ranks.run(world_size, go, "fit", None, None, unnamed, None)
    cases = (
        ([*NAMES[:5], *"uvwxyz"], named, "only 5 names are in both"),
        ([*NAMES[:9], "anna", "kurt"], named, "classes 0 and 9 of the data are both named 'anna'"),
        (NAMES, unnamed, "head.match=names needs the names of the classes, and"),
        (None, named, "this run's data has none"),
    )
    for names, path, expected in cases:
        for said in ranks.run(world_size, go, "fit", names, path, None, "names"):
            assert expected in said
            assert len(said.splitlines()) == 1


@pytest.mark.parametrize("world_size", [1, 2])
def test_commands_take_the_names_along(ranks: RankPool, tmp_path: Path, world_size: int) -> None:
    source = tmp_path / "a.ckpt"
    ranks.run(world_size, go, "fit", NAMES, None, str(source), None)

    def names_after(*words: str) -> list[str] | None:
        target = tmp_path / "-".join(words).replace(" ", "")
        assert main([words[0], str(source), str(target), *words[1:]]) == 0
        shown = CheckpointReader(target, check=False).identities
        assert verified(target)
        return None if shown is None else list(shown)

    def verified(target: Path) -> bool:
        return main(["verify", str(target)]) == 0

    assert names_after("drop", "--classes", "0,emil") == [*NAMES[1:4], *NAMES[5:]]
    assert names_after("fuse", "--classes", "3,1", "--classes", "jan,kurt") == [NAMES[0], *NAMES[2:10]]
    assert names_after("append", "--count", "2", "--names", "lisa,moritz") == [*NAMES, "lisa", "moritz"]
    assert names_after("append", "--count", "2") == [*NAMES, "", ""]
    assert names_after("merge") == NAMES
    grown = tmp_path / "append---count-2---names-lisa,moritz"
    assert set(ranks.run(2, go, "fit", [*NAMES, "lisa", "moritz"], str(grown), None, None)) == {""}
    [said] = ranks.run(1, go, "fit", ["aaron", "abel", *NAMES], str(grown), None, None)
    assert "class 0 is 'anna' in the checkpoint and 'aaron' in the data" in said


@pytest.mark.parametrize("world_size", [1, 2])
def test_classes_that_were_added_without_a_name(ranks: RankPool, tmp_path: Path, world_size: int) -> None:
    """The others are compared as before; who is new in the data must stand where the new rows are."""
    source, grown = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    ranks.run(world_size, go, "fit", NAMES, None, str(source), None)
    assert main(["append", str(source), str(grown), "--count", "2"]) == 0
    later, first = [*NAMES, "lisa", "moritz"], ["aaron", "abel", *NAMES]
    for door in ("fit", "validate", "test"):
        assert set(ranks.run(world_size, go, door, later, str(grown), None, None)) == {""}
        for names in (first, NAMES, [*reversed(NAMES), "lisa", "moritz"]):
            for said in ranks.run(world_size, go, door, names, str(grown), None, None):
                assert "class 11 has no name" in said if names is NAMES else "class 0 is 'anna' in the check" in said
    for said in ranks.run(world_size, go, "fit", first, str(grown), None, "names"):
        assert "class 11 has no name (pfc-ckpt append without --names)" in said
        assert len(said.splitlines()) == 1
    expected = rows_of(grown, ["lisa", "moritz"], there=later)["state_dict/head.weight"]
    for names in (later, [*reversed(NAMES), "lisa", "moritz"]):
        parts = ranks.run(world_size, loaded, names, str(grown))
        assert torch.equal(torch.cat([part["weight"] for part in parts])[-2:], expected)
    again = tmp_path / "c.ckpt"
    assert set(ranks.run(world_size, go, "fit", later, str(grown), str(again), None)) == {""}
    assert list(stored_in(again)) == later
    told: Any = SimpleNamespace(class_names=later, parts=())
    with pytest.raises(CheckpointError, match="has no name of class 11"):
        numbered_as(told, grown)
    assert main(["append", str(grown), str(tmp_path / "d.ckpt"), "--count", "1", "--names", "nora"]) == 0
    assert main(["drop", str(tmp_path / "d.ckpt"), str(tmp_path / "e.ckpt"), "--classes", "emil,11"]) == 0
    assert list(stored_in(tmp_path / "e.ckpt")) == [*NAMES[:4], *NAMES[5:], "", "nora"]


class Wide(Sized):
    """Another architecture: its backbone has one layer more."""

    def __init__(self) -> None:
        super().__init__()
        self.more = torch.nn.Linear(2, 2)


class Narrow(Sized):
    """The same names, other shapes."""

    def make_head(self) -> PartialFC:
        return PartialFC(embedding_dim=DIM - 1, num_classes=self.classes, loss=CosFace(scale=8.0))


def give(rank: int, world_size: int, door: str, kind: type[Sized], load: str) -> str:
    trainer = make_trainer(rank, world_size, max_steps=3, max_epochs=-1)
    try:
        getattr(trainer, door)(kind(), datamodule=Named(rank, world_size, NAMES), ckpt_path=load)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("world_size", [1, 2])
def test_another_architecture_is_one_line_at_every_door(ranks: RankPool, tmp_path: Path, world_size: int) -> None:
    """Torch's own error has one for each kind of difference, and names every tensor."""
    path = str(tmp_path / "a.ckpt")
    ranks.run(world_size, go, "fit", NAMES, None, path, None)
    for door in ("fit", "validate", "test"):
        for said in ranks.run(world_size, give, door, Wide, path):
            assert said.startswith(f"{path} is of another architecture than the model: 2 of the model's")
            assert "more.weight first" in said
            assert len(said.splitlines()) == 1
        for said in ranks.run(world_size, give, door, Narrow, path):
            assert f"{DIM}) in it and" in said
            assert f"{DIM - 1}) in the model" in said
            assert "init_from=" in said
            assert len(said.splitlines()) == 1
