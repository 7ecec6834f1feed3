"""Networks and heads that other projects' own code has made, saved as theirs is, imported, and compared.

    git clone https://github.com/mk-minchul/AdaFace; git clone https://github.com/mk-minchul/CVLface
    git clone https://github.com/deepinsight/insightface; git clone https://github.com/bytedance/LVFace
    pip install --no-deps facenet-pytorch pytorch-metric-learning fvcore iopath yacs termcolor tabulate portalocker
    python recipes/interchange/networks.py AdaFace CVLface insightface LVFace

Prints how far the embeddings of random pictures are from theirs, relative to the largest number.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_pfc.commands.ckpt import main as pfc_ckpt
from lightning_pfc.models.backbone import create_backbone

CLASSES, DIM = 11, 512


@contextmanager
def code_of(folder: Path, *forget: str) -> Iterator[None]:
    """Their modules can be imported meanwhile."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] in forget]:
            del sys.modules[name]


@torch.no_grad()
def with_statistics(net: nn.Module) -> nn.Module:
    """As if it had been trained: batch norms that have seen pictures."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    net.train()
    net(torch.rand(8, 3, 112, 112) * 2 - 1)
    return net.eval()


def imported(name: str, source: Path, folder: Path) -> dict[str, Tensor]:
    out = folder / f"{name}-{source.parent.name}-{source.name}.safetensors"
    if pfc_ckpt(["import", "--from", name, str(source), str(out)]):
        raise SystemExit(f"{name}: not imported")
    found: dict[str, Tensor] = load_file(out)
    return found


def exported(name: str, source: Path, folder: Path) -> Path:
    out = folder / f"{name}-{source.parent.name}-{source.stem}-exported"
    if pfc_ckpt(["export", "--to", name, str(source), str(out)]):
        raise SystemExit(f"{name}: not exported")
    return out


@torch.no_grad()
def compare_back(what: str, theirs: Callable[[Tensor], Any], ours: nn.Module) -> None:
    """Embeddings of their network, with what was written for it, beside ours."""
    images = torch.rand(4, 3, 112, 112) * 2 - 1
    expected = ours.eval()(images)
    off = float((theirs(images) - expected).abs().max() / expected.abs().max())
    print(f"{what}: theirs with ours is off by {off:.1e}")
    if off > 1e-5:
        raise SystemExit("They differ.")


@torch.no_grad()
def compare(what: str, ours: str, found: dict[str, Tensor], theirs: Callable[[Tensor], Any], **options: Any) -> None:
    """Embeddings of ``ours`` with their weights beside theirs."""
    net: nn.Module = create_backbone(ours, options=options)
    net.load_state_dict({k.removeprefix("backbone."): v for k, v in found.items() if k.startswith("backbone.")})
    images = torch.rand(4, 3, 112, 112) * 2 - 1
    expected = theirs(images)
    assert bool(expected.isfinite().all())
    off = float((net.eval()(images) - expected).abs().max() / expected.abs().max())
    print(f"{what}: {ours} is off by {off:.1e}")
    if off > 1e-5:
        raise SystemExit("They differ.")


def adaface(clone: Path, folder: Path) -> None:
    with code_of(clone, "net", "head", "utils"):
        network, heads = importlib.import_module("net"), importlib.import_module("head")
        for theirs, ours in (("ir_18", "iresnet18"), ("ir_50", "iresnet50"), ("ir_101", "iresnet100")):
            net = with_statistics(network.build_model(theirs))
            head = heads.AdaFace(classnum=CLASSES)
            state = {f"model.{k}": v for k, v in net.state_dict().items()}
            state |= {f"head.{k}": v for k, v in head.state_dict().items()}
            torch.save({"epoch": 1, "global_step": 1, "state_dict": state}, folder / f"{theirs}.ckpt")
            found = imported("adaface", folder / f"{theirs}.ckpt", folder)
            assert torch.equal(found["head.weight"], head.kernel.detach().t())
            compare(f"AdaFace {theirs}", ours, found, lambda x, net=net: _long(*net(x.flip(1))))  # type: ignore[misc]
            adaface_back(theirs, ours, found, network, heads, folder)


def adaface_back(theirs: str, ours: str, found: dict[str, Tensor], network: Any, heads: Any, folder: Path) -> None:
    """A network of ours whose last batch norm has learned a bias, in theirs, loaded as their ``inference.py`` does."""
    net: Any = create_backbone(ours)
    net.load_state_dict({k.removeprefix("backbone."): v for k, v in found.items() if k.startswith("backbone.")})
    torch.nn.init.normal_(net.features.bias)
    state = {f"backbone.{k}": v for k, v in net.state_dict().items()} | {"head.weight": found["head.weight"]}
    save_file(state, folder / f"{theirs}.safetensors")
    written = torch.load(exported("adaface", folder / f"{theirs}.safetensors", folder), weights_only=True)["state_dict"]
    again, head = network.build_model(theirs), heads.AdaFace(classnum=CLASSES)
    again.load_state_dict({key[6:]: value for key, value in written.items() if key.startswith("model.")})
    head.load_state_dict({key[5:]: value for key, value in written.items() if key.startswith("head.")})
    assert torch.equal(head.kernel.detach(), found["head.weight"].t())
    again.eval()
    compare_back(f"AdaFace {theirs}", lambda x: _long(*again(x.flip(1))), net)


def _long(unit: Tensor, norm: Tensor) -> Tensor:
    return unit * norm


CVLFACE: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("iresnet", "ir18", "iresnet18", {}),
    ("iresnet", "ir50", "iresnet50", {}),
    ("iresnet", "ir101", "iresnet100", {}),
    ("iresnet_insightface", "ir101", "iresnet100", {}),
    ("vit", "small", "face_vit_small", {"patch_size": 8, "mlp_ratio": 5}),
    ("vit", "base", "face_vit_base", {"patch_size": 8, "mlp_ratio": 3, "num_heads": 16}),
)


def cvlface(clone: Path, folder: Path) -> None:
    """Saved by their ``save_pretrained``, and back: what is written, opened as their ``eval.py`` does."""
    from omegaconf import OmegaConf

    with code_of(clone / "cvlface/research/recognition/code/run_v1", "models", "classifiers", "losses"):
        models = importlib.import_module("models")
        for kind, name, ours, options in CVLFACE:
            words = {"name": name, "output_dim": DIM, "color_space": "RGB", "mask_ratio": 0.0, "start_from": ""}
            config = OmegaConf.create({**words, "freeze": False, "yaml_path": f"/{kind}/configs/v1_{name}.yaml"})
            net: Any = with_statistics(models.get_model(config))
            net.save_pretrained(folder / kind / name)
            found = imported("cvlface", folder / kind / name, folder)
            compare(f"CVLface {kind} {name}", ours, found, net, **options)
            cvlface_back(kind, name, found, net, models, folder)


def cvlface_back(kind: str, name: str, found: dict[str, Tensor], net: nn.Module, models: Any, folder: Path) -> None:
    from omegaconf import OmegaConf

    source = folder / f"{kind}-{name}.safetensors"
    save_file({**found, "head.weight": torch.randn(CLASSES, DIM)}, source)
    written = exported("cvlface", source, folder)
    again = models.get_model(OmegaConf.load(written / "model.yaml"))
    assert again.state_dict().keys() == torch.load(written / "model.pt", weights_only=True).keys()
    again.load_state_dict_from_path(str(written / "model.pt"))
    compare_back(f"CVLface {kind} {name}", again.eval(), net)


def insightface(clone: Path, folder: Path) -> None:
    with code_of(clone / "recognition/arcface_torch", "backbones", "utils"):
        get_model = importlib.import_module("backbones").get_model
        pairs = (("r18", "iresnet18"), ("r50", "iresnet50"), ("r100", "iresnet100"), ("vit_t", "face_vit_tiny"))
        for theirs, ours in pairs:
            net = with_statistics(get_model(theirs, fp16=False))
            torch.save(net.state_dict(), folder / f"{theirs}.pt")
            compare(f"arcface_torch {theirs}", ours, imported("insightface", folder / f"{theirs}.pt", folder), net)


LVFACE = (("vit_t", "tiny"), ("vit_s", "small"), ("vit_b_dp005_mask_005", "base"), ("vit_l_dp005_mask_005", "large"))


def lvface(clone: Path, folder: Path) -> None:
    """The ViTs of their ``get_model``, whose state dict is what they publish, and back."""
    with code_of(clone, "backbones"):
        get_model = importlib.import_module("backbones").get_model
        for theirs, size in LVFACE:
            net = with_statistics(get_model(theirs, fp16=False))
            torch.save(net.state_dict(), folder / f"{theirs}.pt")
            found = imported("lvface", folder / f"{theirs}.pt", folder)
            compare(f"LVFace {theirs}", f"face_vit_{size}", found, net)
            save_file({**found, "head.weight": torch.randn(CLASSES, DIM)}, folder / f"{theirs}.safetensors")
            again = get_model(theirs, fp16=False)
            again.load_state_dict(torch.load(exported("lvface", folder / f"{theirs}.safetensors", folder)))
            compare_back(f"LVFace {theirs}", again.eval(), net)


def heads(folder: Path) -> None:
    """Of the two that are packages."""
    from facenet_pytorch import InceptionResnetV1
    from pytorch_metric_learning.losses import ArcFaceLoss

    net: Any = with_statistics(InceptionResnetV1(classify=True, num_classes=CLASSES))
    torch.save(net.state_dict(), folder / "facenet.pt")
    found = imported("facenet-pytorch", folder / "facenet.pt", folder)
    save_file(found, folder / "facenet-pytorch-back.safetensors")
    print(f"facenet-pytorch: head bit-equal: {torch.equal(found['head.weight'], net.logits.weight.detach())}")
    net.logits = nn.Identity()  # so that it gives the embedding before it is brought to length 1
    compare("facenet-pytorch", "inception_resnet_v1", found, net)
    again = InceptionResnetV1(classify=True, num_classes=CLASSES)
    written = exported("facenet-pytorch", folder / "facenet-pytorch-back.safetensors", folder)
    again.load_state_dict(torch.load(written, weights_only=True))
    again.logits = nn.Identity()
    compare_back("facenet-pytorch", again.eval(), net)
    loss = ArcFaceLoss(CLASSES, DIM)
    torch.save(loss.state_dict(), folder / "pml.pt")
    equal = torch.equal(imported("pml", folder / "pml.pt", folder)["head.weight"], loss.W.detach().t())
    print(f"pytorch-metric-learning: head bit-equal: {equal}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "clones", nargs="*", type=Path, help="of AdaFace, CVLface, insightface, LVFace, or the first of them, or none"
    )
    clones = parser.parse_args().clones
    torch.manual_seed(0)
    for run, clone in zip((adaface, cvlface, insightface, lvface), clones, strict=False):
        with tempfile.TemporaryDirectory() as folder:
            run(clone.resolve(), Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        heads(Path(folder))


if __name__ == "__main__":
    main()
