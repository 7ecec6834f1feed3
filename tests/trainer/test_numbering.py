"""data.classes_of: classes keep the numbers of a checkpoint, so a run goes on bit for bit although the data differ."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from lightning_pfc.checkpoint import CheckpointError
from lightning_pfc.data import IdentityDataModule
from lightning_pfc.data.augment import RandomFlip
from lightning_pfc.data.numbering import numbered_as, numbered_if_same
from lightning_pfc.data.source import IdentityData, LabelledSet, Part
from lightning_pfc.runs.errors import ExportError
from lightning_pfc.runs.run_folder import Run
from tests.ranks import RankPool
from tests.trainer.test_identities import NAMES, OTHERS, Look, Sized, rows_of, stored_in
from tests.trainer.world import WIDTH, make_trainer

PICTURES = 2  # of each identity


class Table:
    """Pictures of these people, each of which looks like its name, in the order of ``people``."""

    image_shape = (1, 1, WIDTH)

    def __init__(self, people: Sequence[str]) -> None:
        looks = [np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint8) for name in people]
        self.pixels = np.stack([np.roll(look, k)[:WIDTH] for look in looks for k in range(PICTURES)])

    def __len__(self) -> int:
        return len(self.pixels)

    def fetch(self, index: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(self.pixels[index]).reshape(-1, *self.image_shape)


class People:
    """Pictures that lie as they always did, of identities that are numbered as ``names`` are."""

    def __init__(self, names: Sequence[str], shown: Sequence[str] | None = None) -> None:
        self.names = list(names)
        self.shown = [name for name in (*NAMES, *names) if name in names] if shown is None else list(shown)
        self.shown = list(dict.fromkeys(self.shown))

    def prepare(self) -> None:
        pass

    def open(self) -> IdentityData:
        labels = np.repeat([self.names.index(name) for name in self.shown], PICTURES)
        table = Table(self.shown)
        return IdentityData(
            train=table,
            labels=labels,
            num_classes=len(self.names),
            task="closed",
            fingerprint=hashlib.sha256(repr(self.names).encode()).hexdigest()[:16],
            augment=RandomFlip(probability=0.0),
            class_names=self.names,
            validation={"val": LabelledSet(table, labels)},
        )


class Flat(Sized):
    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return super().loss((batch[0].flatten(1), batch[1]))


def go(
    rank: int,
    world_size: int,
    names: Sequence[str],
    load: str | None,
    save: str | None,
    of: str | None,
    match: Any,
    goes_on_from: str | None = None,
) -> Any:
    from lightning_pfc import PartialFCStrategy

    data = IdentityDataModule(People(names), batch_size=4 // world_size, classes_of=of, eval_batch_size=4)
    data.goes_on_from = goes_on_from
    look = Look()
    try:
        data.setup()
        strategy = PartialFCStrategy(match=match)
        epochs = 1 if load is None else 2
        trainer = make_trainer(
            rank, world_size, max_epochs=epochs, strategy=strategy, callbacks=[] if load is None else [look]
        )
        trainer.fit(Flat(data.num_classes), datamodule=data, ckpt_path=load)
    except CheckpointError as error:
        return str(error)
    if save is not None:
        trainer.save_checkpoint(save)
    return None if load is None else look.found


@pytest.mark.parametrize("world_size", [1, 2])
def test_it_ends_as_if_nobody_had_touched_the_data(ranks: RankPool, tmp_path: Path, world_size: int) -> None:
    began, untouched, kept = (tmp_path / f"{name}.ckpt" for name in "abc")
    ranks.run(world_size, go, NAMES, None, str(began), None, None)
    ranks.run(world_size, go, NAMES, str(began), str(untouched), None, None)
    permuted = OTHERS["permuted"][0]
    ranks.run(world_size, go, permuted, str(began), str(kept), str(began), None)
    assert list(stored_in(kept)) == NAMES
    expected, found = rows_of(untouched, NAMES), rows_of(kept, NAMES)
    assert found.keys() == expected.keys()
    assert any("momentum_buffer" in key for key in found)
    for key, rows in found.items():
        assert torch.equal(rows, expected[key]), key
    # head.match=names of pfc-train, which says what it goes on from before the data are opened: rows stay.
    stayed = tmp_path / "e.ckpt"
    ranks.run(world_size, go, permuted, str(began), str(stayed), None, "names", str(began))
    assert list(stored_in(stayed)) == NAMES
    for key, rows in rows_of(stayed, NAMES).items():
        assert torch.equal(rows, expected[key]), key
    # The way of moved rows, where a sum over the classes has another order: equal to rounding.
    moved = tmp_path / "d.ckpt"
    ranks.run(world_size, go, permuted, str(began), str(moved), None, "names")
    for key, rows in rows_of(moved, NAMES).items():
        torch.testing.assert_close(rows, expected[key], rtol=1e-5, atol=1e-6)
    assert not torch.equal(rows_of(began, NAMES)["state_dict/head.weight"], expected["state_dict/head.weight"])


@pytest.mark.parametrize("world_size", [1, 2])
def test_who_has_vanished_is_kept_and_who_is_new_comes_behind(ranks: RankPool, tmp_path: Path, world_size: int) -> None:
    began = tmp_path / "a.ckpt"
    ranks.run(world_size, go, NAMES, None, str(began), None, None)
    before = rows_of(began, NAMES)
    for case in ("renamed", "added first", "dropped"):
        names = OTHERS[case][0]
        numbered = [*NAMES, *(name for name in names if name not in NAMES)]
        path = tmp_path / f"{case}.ckpt"
        parts = ranks.run(world_size, go, names, str(began), str(path), str(began), "names")
        assert list(stored_in(path)) == numbered
        for key, entry in (("weight", "state_dict/head.weight"), ("momentum", None)):
            rows = torch.cat([part[key] for part in parts])
            stored = before[entry or "optimizer_states/0/state/4/momentum_buffer"]
            assert torch.equal(rows[: len(NAMES)], stored), case
            assert len(rows) == len(numbered)


def test_only_the_same_identities_keep_their_numbers_by_themselves(ranks: RankPool, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    ranks.run(1, go, NAMES, None, str(path), None, None)
    permuted = numbered_if_same(People(OTHERS["permuted"][0]).open(), path)
    assert [permuted.class_names[k] for k in range(len(NAMES))] == NAMES  # type: ignore[index]
    for names in (NAMES, *(OTHERS[case][0] for case in ("renamed", "added first", "dropped"))):
        plain = People(names).open()
        assert numbered_if_same(plain, path) is plain
        assert numbered_if_same(plain, tmp_path / "none.ckpt") is plain
    (tmp_path / "no.ckpt").write_bytes(b"no checkpoint")
    plain = People(OTHERS["permuted"][0]).open()
    assert numbered_if_same(plain, tmp_path / "no.ckpt") is plain


@pytest.mark.parametrize("case", ["permuted", "dropped"])
def test_a_run_that_kept_its_numbers_can_be_judged(case: str, ranks: RankPool, tmp_path: Path) -> None:
    """What pfc-eval opens has the numbers of the run's own checkpoint; other identities are still refused."""
    ckpt = tmp_path / "run" / "checkpoints" / "last.ckpt"
    ckpt.parent.mkdir(parents=True)
    ranks.run(1, go, NAMES, None, str(ckpt), None, None)
    kept = {"classes_of": "elsewhere.ckpt"} if case == "dropped" else {}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"data": {"source": {}, **kept}}))
    run = Run(tmp_path / "run")
    data = run._numbered(People(OTHERS[case][0]).open())
    run._check_identities(data.class_names)
    assert [data.class_names[k] for k in range(len(NAMES))] == NAMES  # type: ignore[index]
    with pytest.raises(ExportError, match="trained on other identities"):
        run._check_identities(run._numbered(People(OTHERS["renamed"][0]).open()).class_names)


def test_numbers_go_by_name_everywhere(ranks: RankPool, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    ranks.run(1, go, NAMES, None, str(path), None, None)
    names = ["zoe", *reversed(NAMES[2:])]
    plain = People(names).open()
    data = numbered_as(plain, path)
    here = [plain.class_names[int(label)] for label in plain.labels]  # type: ignore[index]
    assert [data.class_names[int(label)] for label in data.labels] == here  # type: ignore[index]
    assert data.num_classes == len(NAMES) + 1
    assert [data.class_names[k] for k in range(12)] == [*NAMES, "zoe"]  # type: ignore[index]
    assert np.array_equal(np.asarray(data.validation["val"].labels), np.asarray(data.labels))  # type: ignore[union-attr]
    assert data.fingerprint != plain.fingerprint
    several = dataclasses.replace(plain, labels=np.array([[0, -1], [1, 2]]), validation={})
    assert numbered_as(several, path).labels.tolist() == [[11, -1], [10, 9]]  # type: ignore[attr-defined]
    assert "9 classes as there, 1 new, 2 without a picture" in data.description


def test_what_numbers_nothing(ranks: RankPool, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    ranks.run(1, go, NAMES, None, str(path), None, None)
    for names, said in (([*NAMES[:3], *"uvwxyz"], "only 3 names are in both"), ([*NAMES, "anna"], "both named 'anna'")):
        [found] = ranks.run(1, go, names, None, None, str(path), None)
        assert said in found
        assert len(found.splitlines()) == 1
    [found] = ranks.run(1, go, NAMES, None, None, str(tmp_path / "none.ckpt"), None)
    assert "none.ckpt is neither a checkpoint folder" in found
    data = People(NAMES).open()
    for wrong, said in (
        (dataclasses.replace(data, class_names=None), "these have no names"),
        (dataclasses.replace(data, parts=(Part("x", 0, 22, 0, 11),)), "these are several sets"),
    ):
        with pytest.raises(ValueError, match=said):
            numbered_as(wrong, path)
