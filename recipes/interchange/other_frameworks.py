"""Files that Paddle and MXNet have written, imported, and compared with what was in them.

    git clone https://github.com/PaddlePaddle/PLSC
    python -m venv paddle && paddle/bin/pip install paddlepaddle
    python -m venv mxnet && mxnet/bin/pip install --no-deps mxnet "numpy<2"
    paddle/bin/python recipes/interchange/other_frameworks.py plsc FOLDER PLSC
    git clone https://github.com/deepinsight/insightface
    mxnet/bin/pip install easydict requests
    mxnet/bin/python recipes/interchange/other_frameworks.py mxnet FOLDER insightface
    python recipes/interchange/other_frameworks.py compare FOLDER
    paddle/bin/python recipes/interchange/other_frameworks.py back FOLDER PLSC
    mxnet/bin/python recipes/interchange/other_frameworks.py mxnet-back FOLDER insightface

PLSC's own IResNet-18 is built and saved by its own code; of the rest of PLSC, which needs Paddle 2.4, a head's rows are
written with ``paddle.save`` under its names. MXNet writes as Partial FC's ``memory_module.py`` does; networks are those
of arcface_mxnet's ``fresnet.py``.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

CLASSES, DIM = 11, 512


def plsc(folder: Path, clone: Path) -> None:
    import paddle

    paddle.seed(0)
    network = their_network(clone, paddle)
    net = network.IResNet18(class_num=CLASSES)
    for layer in net.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm1D | paddle.nn.BatchNorm2D):
            layer._mean.set_value(paddle.randn(layer._mean.shape) * 0.1)
            layer._variance.set_value(paddle.rand(layer._variance.shape) + 0.5)
    images = paddle.rand([4, 3, 112, 112]) * 2 - 1
    net.eval()
    np.save(folder / "images.npy", images.numpy())
    np.save(folder / "embeddings.npy", net(images).numpy())
    (folder / "plsc").mkdir()
    net.save(str(folder / "plsc" / "latest"))
    banks = [paddle.create_parameter([rows, DIM], "float32") for rows in (6, 5)]
    for rank, bank in enumerate(banks):
        paddle.save({"head.weight": bank}, str(folder / "plsc" / f"latest_rank{rank}.pdparams"))
        groups = [{"lr": paddle.optimizer.lr.PolynomialDecay(0.1, 10), "params": [bank.name]}]
        content = {"state": {bank.name: {"exp_avg": bank * 2}}, "param_groups": groups}
        paddle.save(content, str(folder / "plsc" / f"latest_rank{rank}.pdopt"))
    np.save(folder / "plsc.npy", np.concatenate([bank.numpy() for bank in banks]))


def back(folder: Path, clone: Path) -> None:
    """What ``compare`` has exported, loaded by their own code; embeddings beside those of the network it came from."""
    import paddle

    net = their_network(clone, paddle).IResNet18(class_num=CLASSES)
    net.load_pretrained(str(folder / "exported" / "latest"))
    net.eval()
    expected = np.load(folder / "embeddings.npy")
    found = net(paddle.to_tensor(np.load(folder / "images.npy"))).numpy()
    off = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"plsc: theirs with what was exported is off by {off:.1e}")
    rows = paddle.load(str(folder / "exported" / "latest_rank1.pdparams"))["head.weight"].numpy()
    equal = np.array_equal(rows, np.load(folder / "plsc.npy")[6:])
    print(f"plsc: {len(rows)} exported centers of rank 1 bit-equal: {equal}")


def their_network(clone: Path, paddle: Any) -> Any:
    """Their module of IResNets, with the parts of PLSC that it needs and no others."""
    layers = {"PartialFC": lambda **options: None}
    for name, content in {"plsc": {}, "plsc.nn": layers, "plsc.models": {}, "plsc.models.base_model": {}}.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    vars(sys.modules["plsc.models.base_model"])["Model"] = paddle.nn.Layer
    vars(sys.modules["plsc.nn"])["init"] = _load("plsc.nn.init", clone / "plsc/nn/init.py")
    paddle.fluid = paddle.base  # its name in Paddle 2.4
    for parameter in ("is_distributed",):
        if not hasattr(paddle.Tensor, parameter):
            setattr(paddle.Tensor, parameter, False)
    return _load("plsc.models.iresnet", clone / "plsc/models/iresnet.py")


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


DEPTHS = {"iresnet18": 18, "iresnet50": 50, "iresnet100": 100}


def import_mxnet() -> Any:
    for kind in (bool, int, float, object, str, complex):
        if kind.__name__ not in vars(np):
            setattr(np, kind.__name__, kind)  # MXNet 1.9 is older than their removal
    import mxnet as mx

    return mx


def fresnet(clone: Path, depth: int) -> Any:
    """The symbol that their code makes with their sample config."""
    place = clone / "recognition/arcface_mxnet"
    config = _load("sample_config", place / "sample_config.py").config
    sys.modules["sklearn"] = types.ModuleType("sklearn")  # imported there, and not used
    sys.modules["config"] = types.ModuleType("config")
    vars(sys.modules["config"])["config"] = config
    config.num_layers = depth
    for path in (place / "symbol", place / "common"):
        sys.path.insert(0, str(path))
    for name in ("symbol_utils", "memonger"):
        sys.modules.pop(name, None)
    return _load("fresnet", place / "symbol" / "fresnet.py").get_symbol()


def embedded_by_mxnet(mx: Any, symbol: Any, arrays: dict[str, Any], pixels: Any) -> Any:
    executor = symbol.simple_bind(mx.cpu(), data=pixels.shape, grad_req="null")
    executor.copy_params_from(
        {name[4:]: array for name, array in arrays.items() if name.startswith("arg:")},
        {name[4:]: array for name, array in arrays.items() if name.startswith("aux:")},
    )
    return executor.forward(is_train=False, data=mx.nd.array(pixels))[0].asnumpy()


def mxnet_networks(folder: Path, clone: Path) -> None:
    """Networks with weights at random, saved as ``model.save_checkpoint`` does, and what they make of pixels."""
    mx = import_mxnet()
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (4, 3, 112, 112)).astype("float32")
    np.save(folder / "pixels.npy", pixels)
    for name, depth in DEPTHS.items():
        symbol = fresnet(clone, depth)
        shapes, _, others = symbol.infer_shape(data=pixels.shape)
        kinds = [("arg", symbol.list_arguments(), shapes), ("aux", symbol.list_auxiliary_states(), others)]
        arrays = {}
        for kind, names, sizes in kinds:
            for each, size in zip(names, sizes, strict=True):
                if each != "data":
                    arrays[f"{kind}:{each}"] = mx.nd.array(at_random(each, size, random))
        np.save(folder / f"{name}-mxnet.npy", embedded_by_mxnet(mx, symbol, arrays, pixels))
        mx.nd.save(str(folder / f"{name}-0001.params"), arrays)


def at_random(name: str, size: Any, random: Any) -> Any:
    """Weights that keep numbers in bounds, and statistics as if it had been trained."""
    if name.endswith("_weight"):
        return random.standard_normal(size) * np.sqrt(2 / np.prod(size[1:]))
    if name.endswith(("_gamma", "_moving_var")):
        return random.uniform(0.2, 0.4) * np.ones(size) if "relu" in name else random.uniform(0.5, 1.5, size)
    return 0.1 * random.standard_normal(size)


def mxnet_back(folder: Path, clone: Path) -> None:
    """What ``compare`` has exported, in their networks, beside what they made at first."""
    mx = import_mxnet()
    pixels = np.load(folder / "pixels.npy")
    for name, depth in DEPTHS.items():
        arrays = mx.nd.load(str(folder / f"{name}-exported" / "model-0000.params"))
        found = embedded_by_mxnet(mx, fresnet(clone, depth), arrays, pixels)
        expected = np.load(folder / f"{name}-mxnet.npy")
        off = np.abs(found - expected).max() / np.abs(expected).max()
        print(f"mxnet: theirs with what was exported of {name} is off by {off:.1e}")


def mxnet(folder: Path) -> None:
    mx = import_mxnet()
    rows = np.random.default_rng(0).standard_normal((12, DIM)).astype("float32")
    (folder / "mxnet").mkdir()
    for rank in range(4):
        own = mx.nd.array(rows[3 * rank : 3 * rank + 3])
        mx.nd.save(str(folder / "mxnet" / f"{rank}_centers.param"), own)
        mx.nd.save(str(folder / "mxnet" / f"{rank}_centers_mom.param"), own * 2)
    mx.nd.save(str(folder / "model-0001.params"), {"arg:fc7_weight": mx.nd.array(rows), "aux:n": mx.nd.zeros((3,))})
    np.save(folder / "mxnet.npy", rows)


def compare(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from lightning_pfc.commands.ckpt import main as pfc_ckpt
    from lightning_pfc.models.backbone import create_backbone

    sources = (("plsc", "plsc"), ("mxnet", "mxnet"), ("mxnet", "model-0001.params"))
    for name, source in [each for each in sources if (folder / each[1]).exists()]:
        out = folder / f"{source}.safetensors"
        if pfc_ckpt(["import", "--from", name, str(folder / source), str(out), "--classes", str(CLASSES)]) and (
            name == "plsc" or pfc_ckpt(["import", "--from", name, str(folder / source), str(out)])
        ):
            raise SystemExit(f"{name}: not imported")
        found, rows = load_file(out), torch.from_numpy(np.load(folder / f"{name}.npy"))
        rows = rows[: len(found["head.weight"])]
        equal = torch.equal(found["head.weight"], rows)
        momentum = "momentum.head.weight" not in found or torch.equal(found["momentum.head.weight"], 2 * rows)
        print(f"{source}: {len(rows)} centers bit-equal: {equal}; momentum: {momentum}")
        if name == "plsc":
            net = create_backbone("iresnet18")
            net.load_state_dict({k.removeprefix("backbone."): v for k, v in found.items() if k.startswith("backbone.")})
            with torch.no_grad():
                embedded = net.eval()(torch.from_numpy(np.load(folder / "images.npy")))
            expected = torch.from_numpy(np.load(folder / "embeddings.npy"))
            print(f"plsc: iresnet18 is off by {float((embedded - expected).abs().max() / expected.abs().max()):.1e}")
            if pfc_ckpt(["export", "--to", name, "--ranks", "2", str(out), str(folder / "exported")]):
                raise SystemExit(f"{name}: not exported")


def compare_mxnet_networks(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from lightning_pfc.commands.ckpt import main as pfc_ckpt
    from lightning_pfc.models.backbone import create_backbone

    pixels = torch.from_numpy(np.load(folder / "pixels.npy"))
    for name in DEPTHS:
        out = folder / f"{name}.safetensors"
        if pfc_ckpt(["import", "--from", "mxnet", str(folder / f"{name}-0001.params"), str(out)]):
            raise SystemExit("mxnet: not imported")
        found, net = load_file(out), create_backbone(name)
        net.load_state_dict({k.removeprefix("backbone."): v for k, v in found.items()})
        with torch.no_grad():
            embedded = net.eval()(pixels / 127.5 - 1)
        expected = torch.from_numpy(np.load(folder / f"{name}-mxnet.npy"))
        print(f"mxnet: {name} is off by {float((embedded - expected).abs().max() / expected.abs().max()):.1e}")
        save_file({**found, "head.weight": torch.randn(CLASSES, DIM)}, folder / f"{name}-head.safetensors")
        words = ["export", "--to", "mxnet", str(folder / f"{name}-head.safetensors"), str(folder / f"{name}-exported")]
        if pfc_ckpt(words):
            raise SystemExit("mxnet: not exported")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["plsc", "mxnet", "compare", "back", "mxnet-back"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("clone", type=Path, nargs="?", help="of PLSC, or of insightface")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    if options.what in ("plsc", "back"):
        (plsc if options.what == "plsc" else back)(options.folder, options.clone)
    elif options.what == "mxnet-back":
        mxnet_back(options.folder, options.clone)
    elif options.what == "mxnet":
        mxnet(options.folder)
        if options.clone is not None:
            mxnet_networks(options.folder, options.clone)
    else:
        compare(options.folder)
        if (options.folder / "pixels.npy").exists():
            compare_mxnet_networks(options.folder)


if __name__ == "__main__":
    main()
