"""pfc-eval and pfc-export: the data of a run must still be those that its checkpoint was trained on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_pfc.checkpoint.reader import CheckpointReader
from lightning_pfc.commands.export import main as pfc_export
from lightning_pfc.runs.errors import ExportError
from tests.deployed import train_run, write_pictures
from tests.ranks import RankPool

PEOPLE = 24


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``people`` and a ``run`` on them; nobody changes it."""
    folder = tmp_path_factory.mktemp("doors")
    pictures = write_pictures(folder / "people", identities=PEOPLE)
    train_run(folder / "run", pictures, "trainer.max_epochs=1")
    return folder


def permuted(people: Path) -> None:
    """Two identities have each other's names."""
    (people / "id00").rename(people / "x")
    (people / "zz").mkdir()
    for path in (people / "id01").iterdir():
        path.rename(people / "zz" / path.name)
    (people / "id01").rmdir()
    (people / "x").rename(people / "id01")


def renamed(people: Path) -> None:
    (people / "id00").rename(people / "zoe")


def added(people: Path) -> None:
    shutil.copytree(people / "id00", people / "aaron")


def dropped(people: Path) -> None:
    for path in people.iterdir():
        if path.name < "id06":
            shutil.rmtree(path)


CHANGES: list[Callable[[Path], None]] = [permuted, renamed, added, dropped]


def changed(trained: Path, folder: Path, change: Callable[[Path], None]) -> Path:
    """A copy of the run whose config names a copy of its pictures, changed."""
    shutil.copytree(trained, folder, symlinks=True)
    for path in (folder / "run").glob("config*.yaml"):
        path.write_text(path.read_text().replace(str(trained), str(folder)))
    change(folder / "people")
    return folder / "run"


def evaluated(rank: int, world_size: int, run: str) -> str:
    from lightning_pfc.commands.eval import evaluate

    try:
        evaluate(f"run={run}", "plots=false", f"output_dir={run}/eval")
    except ExportError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_run_whose_data_have_changed(
    trained: Path, tmp_path: Path, change: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = changed(trained, tmp_path / "new", change)
    assert "trained on other identities than its data have now: class " in evaluated(0, 1, str(run))
    assert pfc_export([str(run), "--out", str(tmp_path / "out"), "--centers"]) == 1
    error = capsys.readouterr().err
    assert "trained on other identities than its data have now: class " in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def same(people: Path) -> None:
    """Nothing."""


@pytest.mark.parametrize("change", [*CHANGES, same], ids=lambda change: change.__name__)
def test_on_two_ranks(ranks: RankPool, trained: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    for said in ranks.run(2, evaluated, str(changed(trained, tmp_path / "new", change))):
        expected = "" if change is same else "trained on other identities than its data have now: class "
        assert (expected in said) if expected else said == ""
        assert len(said.splitlines()) < 2


def test_centers_have_the_names_of_the_checkpoint(trained: Path, tmp_path: Path) -> None:
    """Whatever has become of the data: pictures of others are at hand."""
    run = changed(trained, tmp_path / "new", renamed)
    names = CheckpointReader(run / "checkpoints" / "last.ckpt", check=False).identities
    words = [str(run), "--out", str(tmp_path / "out"), "--centers", "--images", str(trained / "people")]
    assert pfc_export(words) == 0
    assert names is not None
    assert (tmp_path / "out" / "classes.txt").read_text().splitlines() == list(names)
