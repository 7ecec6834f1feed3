"""Every importer is given every other project's files, and spoilt ones: one line with the way out, nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save_file as save_safetensors
from torch import nn

from lightning_pfc.commands.ckpt import main
from lightning_pfc.interchange import IMPORTERS
from lightning_pfc.interchange.mxnet_arrays import write_mxnet
from lightning_pfc.models.backbone import create_backbone
from tests.unit.test_interchange import CLASSES, DIM, Evil, checkpoint, first_generation, second_generation, weights
from tests.unit.test_interchange_peers import cvl_folder, ir18, plsc_files

Files = dict[str, tuple[str, Path]]


def banks(folder: Path, ranks: int = 3) -> Path:
    folder.mkdir()
    for rank, rows in enumerate(weights(12).chunk(ranks)):
        write_mxnet(folder / f"{rank}_centers.param", {"": rows}, names=False)
    return folder


def classifiers(folder: Path, ranks: int = 3) -> Path:
    folder.mkdir()
    for rank, rows in enumerate(weights(12).chunk(ranks)):
        torch.save({"partial_fc.weight": rows.clone()}, folder / f"classifier_rank{rank}.pt")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """What each project writes: its name, and where it lies."""
    root = tmp_path_factory.mktemp("files")
    found: Files = {
        "ranks": ("insightface", first_generation(root / "first", 2)),
        "checkpoints": ("insightface", second_generation(root / "second", 2)),
        "hub": ("cvlface", cvl_folder(root / "hub", net := ir18(32), "RGB")),
        "classifiers": ("cvlface", classifiers(root / "classifiers")),
        "paddle": ("plsc", plsc_files(root / "plsc", 2)),
        "paddle file": ("plsc", root / "plsc" / "latest.pdparams"),
        "banks": ("mxnet", banks(root / "banks")),
        "ours": ("this package", checkpoint(root)),
    }

    def save(name: str, project: str, content: object) -> None:
        torch.save(content, root / name)
        found[name] = (project, root / name)

    save("r18.pth", "insightface", create_backbone("iresnet18", input_size=(3, 32, 32)).state_dict())
    vit = create_backbone("face_vit_tiny", input_size=(3, 18, 18)).state_dict()
    save("vit.pt", "insightface", vit)
    save("cvl_vit.pt", "cvlface", {f"net.{name}": value for name, value in vit.items() if name != "mask_token"})
    save("cvl.pt", "cvlface", {f"net.{name}": value for name, value in net.state_dict().items()})
    state = {f"model.{name}": value for name, value in net.state_dict().items()}
    save("ada.ckpt", "adaface", {"state_dict": state | {"head.kernel": weights().t()}, "epoch": 1})
    facenet = {"conv2d_1a.conv.weight": torch.ones(2, 3, 3, 3), "last_linear.weight": torch.ones(DIM, 9)}
    save("facenet.pt", "facenet-pytorch", facenet | {"logits.weight": weights(), "logits.bias": torch.zeros(CLASSES)})
    save("linear.pt", "linear", {"fc.weight": weights(), "fc.bias": torch.zeros(CLASSES)})
    save("pml.pt", "pml", {"W": weights().t()})
    write_mxnet(root / "model.params", {"arg:fc7_weight": weights(), "arg:conv0_weight": torch.zeros(3)})
    found["model.params"] = ("mxnet", root / "model.params")
    save_safetensors({"head.weight": weights(), "backbone.weight": torch.ones(DIM, 3)}, root / "ours.safetensors")
    found["ours.safetensors"] = ("this package", root / "ours.safetensors")
    return found


def refused(name: str, source: Path, folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    out = folder / "out.safetensors"
    assert main(["import", "--from", name, str(source), str(out), *words]) > 0, source
    told = capsys.readouterr().err
    assert told.count("\n") == 1, told
    assert not [each.name for each in folder.iterdir() if "out.safetensors" in each.name]
    assert not Path("/tmp/never").exists()
    return told


@pytest.mark.parametrize("name", IMPORTERS)
def test_files_of_others(name: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what, (project, source) in files.items():
        if project == name or (name == "lvface" and project == "insightface" and what != "r18.pth"):
            continue
        told = refused(name, source, tmp_path, capsys)
        way = "init_from= takes it" if project == "this package" else f"take --from {project}"
        assert way in told, (what, told)


@pytest.mark.parametrize(
    ("name", "what", "part"),
    [
        ("insightface", "ranks", "rank_0_softmax_weight.pt"),
        ("insightface", "checkpoints", "checkpoint_gpu_0.pt"),
        ("cvlface", "classifiers", "classifier_rank0.pt"),
        ("mxnet", "banks", "0_centers.param"),
    ],
)
def test_a_part_of_several_names_the_folder(
    name: str, what: str, part: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = files[what][1]
    assert f"give their folder, {folder}" in refused(name, folder / part, tmp_path, capsys)


RANKS: dict[str, tuple[str, Callable[[Path, int], Path], str]] = {
    "first generation": ("insightface", first_generation, "rank_{}_softmax_weight.pt"),
    "second generation": ("insightface", second_generation, "checkpoint_gpu_{}.pt"),
    "CVLface": ("cvlface", classifiers, "classifier_rank{}.pt"),
    "PLSC": ("plsc", plsc_files, "latest_rank{}.pdparams"),
    "MXNet": ("mxnet", banks, "{}_centers.param"),
}


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def gone(path: Path) -> None:
    path.unlink()


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def endless_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def malicious(path: Path) -> None:
    torch.save({"head.weight": Evil()}, path)


def of_another_width(path: Path) -> None:
    torch.save({"partial_fc.weight": torch.ones(4, DIM + 1)}, path)


SPOILT = [cut_short, emptied, gone, folder_instead, endless_pipe, malicious, of_another_width]


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("what", RANKS)
@pytest.mark.timeout(30)
def test_a_file_of_one_rank_is_spoilt(
    what: str, spoil: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, write, pattern = RANKS[what]
    folder = write(tmp_path / "run", 3)
    spoil(folder / pattern.format(1))
    told = refused(name, folder, tmp_path, capsys)
    assert pattern.format(1) in told


def test_losses_of_pml_with_several_centers_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = pytest.importorskip("pytorch_metric_learning.losses", reason="pytorch-metric-learning is not installed")
    loss = theirs.SubCenterArcFaceLoss(num_classes=4, embedding_size=DIM, sub_centers=3)
    torch.save(loss.state_dict(), tmp_path / "sub.pt")
    words = ["import", "--from", "pml", str(tmp_path / "sub.pt"), str(tmp_path / "sub.safetensors")]
    assert main([*words, "--classes", "4"]) == 0
    assert "3 centers a class, side by side" in capsys.readouterr().out
    rows = load_file(tmp_path / "sub.safetensors")["head.weight"]
    x = nn.functional.normalize(torch.randn(5, DIM))
    ours = (x @ nn.functional.normalize(rows.reshape(4, 3, DIM), dim=2).flatten(0, 1).T).reshape(5, 4, 3).amax(2)
    torch.testing.assert_close(ours, loss.get_cosine(x))
    proxies = theirs.ProxyAnchorLoss(num_classes=4, embedding_size=DIM)
    torch.save(proxies.state_dict(), tmp_path / "proxies.pt")
    assert main(["import", "--from", "pml", str(tmp_path / "proxies.pt"), str(tmp_path / "p.safetensors")]) == 0
    assert torch.equal(load_file(tmp_path / "p.safetensors")["head.weight"], proxies.proxies.detach())
    assert "--classes says 5" in refused("pml", tmp_path / "sub.pt", tmp_path, capsys, "--classes", "5")


def test_a_file_of_an_old_torch_says_how_to_write_it_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As facenet-pytorch and others published theirs."""
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    torch.save({"fc.weight": weights()}, old, _use_new_zipfile_serialization=False)
    told = refused("linear", old, tmp_path, capsys)
    assert "before torch 1.6" in told
    assert "torch.save(torch.load(FILE, weights_only=True), NEW)" in told
    torch.save(torch.load(old, weights_only=True), new)
    assert main(["import", "--from", "linear", str(new), str(tmp_path / "out.safetensors")]) == 0


def test_plsc_names_what_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the name has what a pattern of files would take for its own."""
    torch.save({"fc.weight": weights()}, tmp_path / "x.pt")
    assert "x.pt should be a .pdparams file of PLSC" in refused("plsc", tmp_path / "x.pt", tmp_path, capsys)
    (tmp_path / "x2.pdparams").write_bytes(b"")
    assert "x.pdparams is not there" in refused("plsc", tmp_path / "x", tmp_path, capsys)
    whole = plsc_files(tmp_path / "theirs", 1) / "latest.pdparams"
    whole.rename(odd := tmp_path / "a[1].pdparams")
    assert main(["import", "--from", "plsc", str(odd), str(tmp_path / "out.safetensors")]) == 0
