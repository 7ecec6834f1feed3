"""Starting from what exists: what is taken of another run, of a file or of a hub's folder, and what is refused."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_pfc import PartialFCModule
from lightning_pfc.checkpoint import CheckpointError
from lightning_pfc.losses import CosFace
from lightning_pfc.transfer import init_from
from lightning_pfc.transfer.naming import find_prefix

NAMES = ["anna", "bert", "cleo", "dora", "emil", "fritz"]


def made(seed: int = 0, backbone: str = "glyphnet", size: Any = (1, 32, 32), classes: int = 6, **more: Any) -> Any:
    torch.manual_seed(seed)
    module = PartialFCModule(
        backbone=backbone, num_classes=classes, embedding_dim=8, input_size=size, loss=CosFace(), seed=seed, **more
    )
    return module.to("cpu")


WAYS: dict[str, tuple[Callable[[str], str], Callable[[dict[str, Tensor]], Any]]] = {
    "plain": (lambda name: name, lambda tensors: tensors),
    "module.": (lambda name: f"module.{name}", lambda tensors: tensors),
    "compiled": (lambda name: name.replace("backbone.", "backbone._orig_mod."), lambda tensors: tensors),
    "net.": (lambda name: f"net.{name}", lambda tensors: {"state_dict": tensors, "epoch": 3}),
    "model.module.": (lambda name: f"model.module.{name}", lambda tensors: {"model": tensors}),
}


@pytest.mark.parametrize("whole", [False, True])
def test_a_module_that_is_compiled_already_takes_them(tmp_path: Path, whole: bool) -> None:
    there, parts = made(1), made(2)
    torch.save(there.state_dict(), tmp_path / "weights.pth")
    backbone: Any = parts.backbone if whole else torch.compile(parts.backbone)
    here = nn.ModuleDict({"backbone": backbone, "neck": parts.neck, "head": parts.head})
    target: Any = torch.compile(here) if whole else here
    report = init_from(target, str(tmp_path / "weights.pth"))
    found = {name.replace("_orig_mod.", ""): value for name, value in here.state_dict().items()}
    for name, value in there.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(found[name], value), name
    assert report.new == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ending", ["pth", "safetensors", "hub"])
def test_names_behind_any_prefix(tmp_path: Path, way: str, ending: str) -> None:
    there, here = made(1), made(2)
    rename, wrap = WAYS[way]
    tensors = {rename(name): value.contiguous() for name, value in there.state_dict().items()}
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save(wrap(tensors), path)
    elif ending == "safetensors":
        save_file(tensors, path)
    else:
        path.mkdir()
        save_file(tensors, path / "model.safetensors")
        (path / "config.json").write_text('{"architecture": "glyphnet"}')
    report = init_from(here, str(path))
    for name, value in there.state_dict().items():
        if name not in ("head.step", "head.defaults_version", "head.precision_code", "head.kernels_code"):
            torch.testing.assert_close(here.state_dict()[name], value, rtol=0, atol=0)
    assert len(str(report).splitlines()) == 1
    assert way in ("plain", "compiled") or any("names without" in note for note in report.notes), report


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone.", "encoder.", "student.net."])
def test_a_backbone_alone(tmp_path: Path, prefix: str) -> None:
    there, here = made(1), made(2)
    fresh = {name: value.clone() for name, value in here.state_dict().items() if not name.startswith("backbone.")}
    tensors = {prefix + name: value for name, value in there.backbone.state_dict().items()}
    torch.save({**tensors, prefix + "fc.weight": torch.zeros(1000, 8)}, tmp_path / "a.pth")
    report = init_from(here, str(tmp_path / "a.pth"))
    for name, value in there.backbone.state_dict().items():
        assert torch.equal(here.backbone.state_dict()[name], value), name
    for name, value in fresh.items():
        assert torch.equal(here.state_dict()[name], value), name
    assert report.left == [prefix + "fc.weight"]
    assert any("the neck is new" in note for note in report.notes)
    assert any("head is new: it has none" in note for note in report.notes)


def test_other_sizes_and_channels(tmp_path: Path) -> None:
    options: dict[str, Any] = {"backbone": "vit_tiny_patch16_224", "backbone_options": {"depth": 1}, "neck": "linear"}
    there = made(1, size=(3, 64, 64), **options)
    torch.save(there.state_dict(), tmp_path / "a.pth")
    grey, wide = made(2, size=(1, 64, 64), **options), made(2, size=(4, 96, 96), **options)
    report = init_from(grey, str(tmp_path / "a.pth"))
    picture = torch.randn(2, 1, 64, 64)
    assert "patch_embed.proj.weight summed over 3 channels" in str(report)
    there.eval(), grey.eval()
    torch.testing.assert_close(grey(picture), there(picture.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
    report = init_from(wide, str(tmp_path / "a.pth"))
    assert "pos_embed interpolated from 4 x 4 to 6 x 6" in str(report)
    assert "repeated from 3 to 4 channels" in str(report)
    assert wide.backbone.pos_embed.shape[1] == 37
    assert torch.equal(wide.backbone.pos_embed[:, 0], there.backbone.pos_embed[:, 0])


def test_parts(tmp_path: Path) -> None:
    there, here = made(1), made(2)
    torch.save(there.state_dict(), tmp_path / "a.pth")
    before = {name: value.clone() for name, value in here.state_dict().items()}
    init_from(here, str(tmp_path / "a.pth"), parts=["neck"])
    for name, value in here.state_dict().items():
        assert torch.equal(value, (there.state_dict() if name.startswith("neck.") else before)[name]), name
    with pytest.raises(ValueError, match=r"init_parts=\['heads'\]: 'heads' does not exist; there are backbone"):
        init_from(here, "a.pth", parts=["heads"])


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, (str(Path(os.environ["TRANSFER_TRACE"])),)


def bad_files(folder: Path) -> Mapping[str, tuple[Path, str]]:
    torch.save(made(1, backbone="resnet18", size=(3, 32, 32)).state_dict(), folder / "other.pth")
    torch.save({"backbone.x": torch.zeros(2)}, folder / "none.pth")
    torch.save({"state_dict": {"a": Harmful()}}, folder / "code.pth")
    (folder / "code.bin").write_bytes(pickle.dumps(Harmful()))
    (folder / "bad.safetensors").write_bytes(b"\xff" * 64)
    torch.save([1, 2], folder / "list.pth")
    tensors = made(1).backbone.state_dict()
    torch.save(
        {f"{who}.{name}": t for who in ("student", "teacher") for name, t in tensors.items()}, folder / "two.pth"
    )
    (folder / "empty").mkdir()
    (folder / "run" / "checkpoints" / "last.ckpt").mkdir(parents=True)
    (folder / "parts").mkdir()
    save_file({"a": torch.ones(2)}, folder / "parts" / "model-00002-of-00002.safetensors")
    torch.save({"backbone": {name: t * torch.nan for name, t in tensors.items()}}, folder / "nan.pth")
    (folder / "hub").mkdir()
    torch.save({"a": Harmful()}, folder / "hub" / "pytorch_model.bin")
    return {
        "other": (folder / "other.pth", "is of another architecture: of"),
        "nothing": (folder / "none.pth", "is of another architecture"),
        "pickle": (folder / "code.pth", "loading it could run code"),
        "old pickle": (folder / "code.bin", "it is not a file of torch.save"),
        "pickle in a hub's folder": (folder / "hub", "loading it could run code"),
        "safetensors": (folder / "bad.safetensors", "is no safetensors file, or damaged"),
        "list": (folder / "list.pth", "should hold weights, tensors by name"),
        "two": (folder / "two.pth", "two networks of this kind, under 'student.' and 'teacher.'"),
        "folder": (folder / "empty", "a run folder with checkpoints/"),
        "diverged": (folder / "nan.pth", "holds NaN or infinity, so the run that wrote it had diverged"),
        "unfinished": (folder / "run", "last.ckpt is a folder without manifest.json"),
        "parts": (folder / "parts", "has 1 of 2 parts of the weights. Copy number 1 too."),
        "missing": (folder / "not.there", "there is no such file or folder"),
    }


def test_what_is_refused_leaves_the_module_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFER_TRACE", str(tmp_path / "executed"))
    here = made(2)
    before = {name: value.clone() for name, value in here.state_dict().items()}
    for case, (path, expected) in bad_files(tmp_path).items():
        with pytest.raises((CheckpointError, FileNotFoundError)) as caught:
            init_from(here, str(path))
        assert expected in str(caught.value), case
        assert str(path) in str(caught.value), case
        assert len(str(caught.value).splitlines()) == 1, case
        assert all(torch.equal(value, before[name]) for name, value in here.state_dict().items()), case
    assert not (tmp_path / "executed").exists()


def test_a_hub_is_asked_by_the_users_word_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = made(1), made(2)
    asked: list[Any] = []

    def load(model_id: str, **options: Any) -> Any:
        asked.append((model_id, options))
        return there.backbone.state_dict()

    monkeypatch.setattr("timm.models.load_state_dict_from_hf", load)
    init_from(here, "hf-hub:somebody/glyphnet")
    assert asked == [("somebody/glyphnet", {"weights_only": True})]
    assert torch.equal(next(here.backbone.parameters()), next(there.backbone.parameters()))


def test_prefixes() -> None:
    wanted = ["conv.weight", "bn.weight", "weight"]
    assert find_prefix(["a.b.conv.weight", "a.b.bn.weight", "c.conv.weight"], wanted) == "a.b."
    assert find_prefix(["conv.weight", "bn.weight"], wanted) == ""
    assert find_prefix(["x", "y.z"], wanted) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_centers_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    tensors = made(1).state_dict()
    tensors["head.weight"][3, 2] = value
    torch.save(tensors, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"head\.weight holds NaN or infinity.*leave head out of init_parts"):
        init_from(made(2), str(tmp_path / "weights.pth"))
    assert "head.weight" not in init_from(made(2), str(tmp_path / "weights.pth"), parts=["backbone", "neck"]).taken
