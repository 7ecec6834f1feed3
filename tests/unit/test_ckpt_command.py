"""pfc-ckpt: what it prints, what it writes, and that rows of weights and optimizers stay together."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lightning_pfc import PartialFCModule
from lightning_pfc.checkpoint import CheckpointError, Manifest, verify_folder
from lightning_pfc.checkpoint.reader import read_checkpoint
from lightning_pfc.commands.ckpt import main
from lightning_pfc.heads.center_init import init_centers_
from tests.ranks import RankPool
from tests.trainer.test_checkpoints import resume, run
from tests.trainer.world import CLASSES, DIM, TheirModule

WEIGHT = "state_dict/head.weight"


@pytest.fixture(scope="module")
def folder(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three ranks with momentum."""
    path = tmp_path_factory.mktemp("ckpt") / "a.ckpt"
    ranks.run(3, run, {"momentum": 0.9}, None, str(path), 6, 2)
    return path


@pytest.fixture(scope="module")
def file(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one process with momentum: an ordinary file."""
    path = tmp_path_factory.mktemp("ckpt") / "b.ckpt"
    ranks.run(1, run, {"momentum": 0.9}, None, str(path), 6, 2)
    return path


def rows(path: Path) -> tuple[Tensor, Tensor]:
    """Centers and their momentum."""
    checkpoint = read_checkpoint(path)
    [state] = checkpoint["optimizer_states"]
    return checkpoint["state_dict"]["head.weight"], state["state"][4]["momentum_buffer"]


def test_inspect(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "written by 3 ranks" in text
    assert "global_step: 2" in text
    assert f"* {WEIGHT}  {CLASSES}x{DIM}  F32  264 B" in text
    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"][WEIGHT]["by_class"]


def test_verify(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    assert "all checksums match" in capsys.readouterr().out
    copy = tmp_path / "copy.ckpt"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = bytearray((copy / "rank-00002.safetensors").read_bytes())
    data[-1] ^= 4
    (copy / "rank-00002.safetensors").write_bytes(data)
    assert main(["verify", str(copy)]) == 1
    assert "rank-00002.safetensors is damaged" in capsys.readouterr().err


def test_merge_to_lightnings_file(ranks: RankPool, folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.ckpt"
    assert main(["merge", str(folder), str(whole)]) == 0
    content = torch.load(whole, weights_only=True)
    assert content["global_step"] == 2
    module = TheirModule.load_from_checkpoint(whole)
    assert module.head is not None
    assert torch.equal(module.head.weight, rows(folder)[0])
    [(_, single)] = ranks.run(1, resume, str(whole))
    states = [state for _, state in ranks.run(2, resume, str(whole))]
    assert torch.equal(torch.cat([state["head.weight"] for state in states]), single["head.weight"])
    assert main(["merge", str(folder), str(whole)]) == 2, "an existing file is not overwritten"
    assert [path.name for path in tmp_path.iterdir()] == ["whole.ckpt"]


def test_merge_to_safetensors(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "weights.safetensors"
    assert main(["merge", str(folder), str(target)]) == 0
    expected = read_checkpoint(folder)["state_dict"]
    found = load_file(target)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_lightnings_own_loader_names_the_way_out(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pfc-ckpt merge"):
        TheirModule.load_from_checkpoint(folder)
    unfinished = shutil.copytree(folder, tmp_path / "unfinished.ckpt")
    (unfinished / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"unfinished\.ckpt is a folder without manifest\.json"):
        PartialFCModule.load_from_checkpoint(unfinished)


@pytest.mark.parametrize("source", ["folder", "file"])
def test_drop(source: str, request: pytest.FixtureRequest, tmp_path: Path, ranks: RankPool) -> None:
    path: Path = request.getfixturevalue(source)
    target = tmp_path / "small.ckpt"
    assert main(["drop", str(path), str(target), "--classes", "0,4-6", "--classes", "10"]) == 0
    verify_folder(target)
    keep = [1, 2, 3, 7, 8, 9]
    for old, new in zip(rows(path), rows(target), strict=True):
        assert torch.equal(new, old[keep])
    assert all(entry.shape[0] == 6 for entry in Manifest.read(target).tensors.values() if entry.by_class)


def test_drop_by_name(folder: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("".join(f"class {i}\n" for i in range(CLASSES)))
    target = tmp_path / "small.ckpt"
    arguments = ["drop", str(folder), str(target), "--classes", "class 3,class 9", "--identities", str(names)]
    assert main(arguments) == 0
    left = (tmp_path / "small.ckpt.identities.txt").read_text().splitlines()
    assert left == [f"class {i}" for i in range(CLASSES) if i not in (3, 9)]


def test_fuse(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "fused.ckpt"
    assert main(["fuse", str(folder), str(target), "--classes", "7,2,4", "--classes", "0,1"]) == 0
    (old, momentum), (new, new_momentum) = rows(folder), rows(target)
    # 0 (with 1), 3, 5, 6, 7 (with 2 and 4), 8, 9, 10
    expected = torch.stack([old[[0, 1]].mean(0), old[3], old[5], old[6], old[[7, 2, 4]].mean(0), *old[8:]])
    torch.testing.assert_close(new, expected)
    assert torch.equal(new_momentum, momentum[[0, 3, 5, 6, 7, 8, 9, 10]])


def test_append_random_centers_and_given_ones(folder: Path, tmp_path: Path, ranks: RankPool) -> None:
    target = tmp_path / "large.ckpt"
    assert main(["append", str(folder), str(target), "--count", "3", "--seed", "5", "--std", "0.5"]) == 0
    (old, momentum), (new, new_momentum) = rows(folder), rows(target)
    assert torch.equal(new[:CLASSES], old)
    whole = init_centers_(torch.empty(CLASSES + 3, DIM), 0, 5, 0.5)
    assert torch.equal(new[CLASSES:], whole[CLASSES:]), "as a head of that size would have been born"
    assert torch.equal(new_momentum, torch.cat([momentum, torch.zeros(3, DIM)]))
    centers = torch.randn(2, DIM)
    np.save(tmp_path / "means.npy", centers.numpy())
    given = tmp_path / "given.ckpt"
    assert main(["append", str(folder), str(given), "--centers", str(tmp_path / "means.npy")]) == 0
    assert torch.equal(rows(given)[0][CLASSES:], centers)


def test_a_changed_checkpoint_trains_on(ranks: RankPool, folder: Path, tmp_path: Path) -> None:
    smaller, back = tmp_path / "smaller.ckpt", tmp_path / "back.ckpt"
    assert main(["drop", str(folder), str(smaller), "--classes", "9-10"]) == 0
    assert main(["append", str(smaller), str(back), "--count", "2"]) == 0
    states = [state for _, state in ranks.run(2, resume, str(back))]
    assert torch.equal(torch.cat([state["head.weight"] for state in states]), rows(back)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["drop", "{a}", "{b}", "--classes", "11"], "not within the 11 classes"),
        (["drop", "{a}", "{b}", "--classes", "anna"], "neither a class number nor a range"),
        (["drop", "{a}", "{b}", "--classes", "0-10"], "no class would be left"),
        (["fuse", "{a}", "{b}", "--classes", "3"], "two classes or more"),
        (["fuse", "{a}", "{b}", "--classes", "3,4", "--classes", "4,5"], "names a class twice"),
        (["append", "{a}", "{b}"], "either --count"),
        (["append", "{a}", "{b}", "--count", "0"], "must be at least 1"),
        (["inspect", "{b}"], "neither a checkpoint folder"),
        (["drop", "{a}", "{a}", "--classes", "1"], "exists"),
    ],
)
def test_bad_input(
    folder: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [part.format(a=folder, b=tmp_path / "b.ckpt") for part in arguments]
    assert main(filled) in (1, 2)
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_streaming_a_large_head_takes_little_memory(tmp_path: Path) -> None:
    """A head of 256 MiB is written, changed and merged by processes that may not hold as much."""
    code = """
import resource, sys, torch
from pathlib import Path
from lightning_pfc.checkpoint.save_load import save_folder
from lightning_pfc.checkpoint.split_tree import ClassRows
from lightning_pfc.checkpoint import edit_classes, merging
from lightning_pfc.distributed import ClassShard, Comm
here = Path(sys.argv[1])
if sys.argv[2] == "save":
    w = torch.zeros(131072, 512)
    rest = {"state_dict": {"head.weight": {"__pfc_tensor__": "state_dict/head.weight"}}}
    save_folder(here / "a.ckpt", rest, {"state_dict/head.weight": ClassRows(w, ClassShard(131072))}, Comm.single(), {})
else:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    edit_classes.rewrite_classes(here / "a.ckpt", here / "b.ckpt", edit_classes.without([5], 131072))
    merging.merge_to_safetensors(here / "b.ckpt", here / "c.safetensors")
    print("MiB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    for what in ("save", "change"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), what], capture_output=True, text=True, check=True
        )
    assert float(done.stdout.split("MiB")[1]) < 100
