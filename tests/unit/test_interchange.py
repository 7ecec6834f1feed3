"""Heads of other projects: read from files laid out as theirs are, and written back bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_pfc.checkpoint.single import OWN, save_file
from lightning_pfc.commands.ckpt import main
from tests.file_limit import no_file_over

CLASSES, DIM = 11, 6


class Evil:
    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, ("touch /tmp/never",)


def weights(classes: int = CLASSES) -> Tensor:
    return torch.randn(classes, DIM, generator=torch.Generator().manual_seed(0))


def theirs(rank: int, ranks: int) -> slice:
    """Their classes of a rank: the first ranks have one more. Ours are dealt out in equal parts and a rest."""
    start = CLASSES // ranks * rank + min(rank, CLASSES % ranks)
    return slice(start, start + CLASSES // ranks + (rank < CLASSES % ranks))


def first_generation(folder: Path, ranks: int) -> Path:
    folder.mkdir(parents=True)
    whole = weights()
    for rank in range(ranks):
        rows = theirs(rank, ranks)
        torch.save(whole[rows].clone(), folder / f"rank_{rank}_softmax_weight.pt")
        torch.save(2 * whole[rows], folder / f"rank_{rank}_softmax_weight_mom.pt")
    torch.save(nn.Linear(3, DIM).state_dict(prefix="module."), folder / "backbone.pth")
    return folder


def second_generation(folder: Path, ranks: int) -> Path:
    """As train_v2.py saves it: one optimizer, the head its last parameter."""
    folder.mkdir(parents=True)
    whole = weights()
    for rank in range(ranks):
        rows = theirs(rank, ranks)
        backbone, head = nn.Linear(3, DIM), nn.Module()
        head.weight = nn.Parameter(whole[rows].clone())
        groups = [{"params": backbone.parameters()}, {"params": head.parameters()}]
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9)
        head.weight.grad = 2 * head.weight.detach()
        backbone.weight.grad = torch.ones_like(backbone.weight)
        optimizer.step()
        content = {
            "epoch": 2,
            "global_step": 7,
            "state_dict_backbone": backbone.state_dict(),
            "state_dict_softmax_fc": head.state_dict(),
            "state_optimizer": optimizer.state_dict(),
            "state_lr_scheduler": {"last_epoch": 7},
        }
        torch.save(content, folder / f"checkpoint_gpu_{rank}.pt")
    return folder


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("write", [first_generation, second_generation])
def test_per_rank_heads_of_insightface(write: Callable[[Path, int], Path], count: int, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    folder = str(write(tmp_path / "run", count))
    assert main(["import", "--from", "insightface", folder, str(out), "--classes", "11"]) == 0
    found = load_file(out)
    assert torch.equal(found["head.weight"], weights())
    assert torch.equal(found["momentum.head.weight"], 2 * weights())
    assert found["backbone.weight"].shape == (DIM, 3)


def test_linear_and_pml(tmp_path: Path) -> None:
    files = {"linear": {"fc.weight": weights(), "fc.bias": torch.zeros(CLASSES)}, "pml": {"W": weights().t()}}
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pt")
        out = tmp_path / f"{name}.safetensors"
        assert main(["import", "--from", name, str(tmp_path / f"{name}.pt"), str(out)]) == 0
        assert torch.equal(load_file(out)["head.weight"], weights())


def checkpoint(folder: Path, classes: int = CLASSES) -> Path:
    state = {"backbone.weight": torch.ones(DIM, 3), "head.weight": weights(classes)}
    path = folder / "ours.ckpt"
    content = {"state_dict": state, "epoch": 0, "global_step": 1, OWN: {"by_class": ["state_dict/head.weight"]}}
    save_file(path, content)
    return path


@pytest.mark.parametrize(("name", "count"), [("insightface", 1), ("insightface", 4), ("linear", 1), ("pml", 1)])
def test_there_and_back_is_bit_equal(name: str, count: int, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "again.safetensors"
    ckpt = str(checkpoint(tmp_path))
    assert main(["export", "--to", name, "--ranks", str(count), ckpt, str(theirs)]) == 0
    assert main(["import", "--from", name, str(theirs), str(ours)]) == 0
    assert torch.equal(load_file(ours)["head.weight"], weights())
    if name == "insightface":
        assert torch.equal(load_file(ours)["backbone.weight"], torch.ones(DIM, 3))
        assert len(list(theirs.glob("rank_*"))) == count


@pytest.mark.parametrize(
    ("name", "words"), [("insightface", ["--ranks", "2"]), ("linear", []), ("pml", []), ("cvlface", [])]
)
def test_a_file_that_cannot_be_written_is_the_systems_error(
    name: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch's writer says "unexpected pos 576 vs 534" where a disk is full."""
    source = checkpoint(tmp_path, 200_000)
    with no_file_over(1 << 20):
        assert main(["export", "--to", name, *words, str(source), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "File too large" in said
    assert f"{tmp_path / 'out'}" in said
    assert list(tmp_path.iterdir()) == [source]


def gone(folder: Path) -> str:
    (first_generation(folder, 3) / "rank_1_softmax_weight.pt").unlink()
    return "rank_1_softmax_weight.pt is missing"


def last_gone(folder: Path) -> str:
    (second_generation(folder, 4) / "checkpoint_gpu_3.pt").unlink()
    return "--classes says 11"


def of_another_run(folder: Path) -> str:
    torch.save(torch.zeros(9, DIM), first_generation(folder, 3) / "rank_2_softmax_weight.pt")
    return "files of one run"


def wrong_peer(folder: Path) -> str:
    torch.save({"W": weights()}, second_generation(folder, 2) / "checkpoint_gpu_1.pt")
    return "a mapping with the keys W"


def malicious(folder: Path) -> str:
    torch.save({"weight": Evil()}, second_generation(folder, 2) / "checkpoint_gpu_1.pt")
    return "could run code"


def damaged(folder: Path) -> str:
    path = first_generation(folder, 2) / "rank_0_softmax_weight.pt"
    path.write_bytes(path.read_bytes()[:-200])
    return "rank_0_softmax_weight.pt: it is damaged"


def waits_for_ever(folder: Path) -> str:
    path = first_generation(folder, 2) / "rank_0_softmax_weight.pt"
    path.unlink()
    os.mkfifo(path)
    return "a FIFO"


def empty(folder: Path) -> str:
    folder.mkdir()
    return "has neither"


BAD = [gone, last_gone, of_another_run, wrong_peer, malicious, damaged, waits_for_ever, empty]


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_bad_files_are_one_line_and_nothing_is_written(
    spoil: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = spoil(tmp_path / "run")
    out = tmp_path / "out.safetensors"
    assert main(["import", "--from", "insightface", str(tmp_path / "run"), str(out), "--classes", "11"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
