"""Files laid out as AdaFace, CVLface, facenet-pytorch, PLSC and MXNet write them: taken, written back, or refused."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_pfc.commands.ckpt import main
from lightning_pfc.interchange.mxnet_arrays import read_mxnet, write_mxnet
from lightning_pfc.interchange.plain_pickles import read_arrays
from lightning_pfc.models.backbone import create_backbone
from tests.unit.test_interchange import CLASSES, DIM, Evil, checkpoint, theirs, weights


def taken(name: str, source: Path, out: Path, *words: str) -> dict[str, Tensor]:
    assert main(["import", "--from", name, str(source), str(out), *words]) == 0
    found: dict[str, Tensor] = load_file(out)
    return found


class Block(nn.Module):
    """Of an IR network, with the names that AdaFace and CVLface give: the first block only leaves out places."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer = nn.MaxPool2d(1, stride) if inside == outside else self._shortcut(inside, outside, stride)
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inside),
            nn.Conv2d(inside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.PReLU(outside),
            nn.Conv2d(outside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
        )

    @staticmethod
    def _shortcut(inside: int, outside: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return found


def ir18(side: int) -> nn.Module:
    widths = [64, 64, 128, 128, 256, 256, 512, 512]
    before = [64, *widths[:-1]]
    strides = [2, 1] * 4
    net = nn.Sequential()
    net.add_module(
        "input_layer", nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
    )
    net.add_module("body", nn.Sequential(*(Block(*each) for each in zip(before, widths, strides, strict=True))))
    places = (side // 16) ** 2
    net.add_module(
        "output_layer",
        nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(512 * places, 512),
            nn.BatchNorm1d(512, affine=False),
        ),
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean = 0.1 * torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
    return net.eval()


def ours(found: dict[str, Tensor], side: int) -> nn.Module:
    net: nn.Module = create_backbone("iresnet18", input_size=(3, side, side))
    net.load_state_dict({k.removeprefix("backbone."): v for k, v in found.items() if k.startswith("backbone.")})
    return net.eval()


@pytest.mark.parametrize("bgr", [True, False])
@torch.no_grad()
def test_ir_networks_embed_as_theirs(bgr: bool, tmp_path: Path) -> None:
    """AdaFace's takes BGR and is a checkpoint of Lightning; CVLface's says it in a file beside it."""
    torch.manual_seed(0)
    net, images = ir18(32), torch.randn(4, 3, 32, 32)
    if bgr:
        state = {f"model.{k}": v for k, v in net.state_dict().items()} | {"head.kernel": weights().t()}
        torch.save({"state_dict": state, "epoch": 1}, tmp_path / "ada.ckpt")
        found = taken("adaface", tmp_path / "ada.ckpt", tmp_path / "out.safetensors")
        assert torch.equal(found["head.weight"], weights())
        again = taken("cvlface", cvl_folder(tmp_path / "hub", net, "BGR"), tmp_path / "again.safetensors")
        assert all(torch.equal(found[k], v) for k, v in again.items())
    else:
        found = taken("cvlface", cvl_folder(tmp_path / "hub", net, "RGB"), tmp_path / "out.safetensors")
    expected = net(images.flip(1) if bgr else images)
    torch.testing.assert_close(ours(found, 32)(images), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def cvl_folder(folder: Path, net: nn.Module, colors: str) -> Path:
    (folder / "pretrained_model").mkdir(parents=True)
    torch.save({f"net.{k}": v for k, v in net.state_dict().items()}, folder / "pretrained_model" / "model.pt")
    (folder / "pretrained_model" / "model.yaml").write_text(f"name: ir18\ncolor_space: {colors}\n")
    return folder


def plsc_files(folder: Path, ranks: int) -> Path:
    """As ``paddle.save`` writes them, in both of its ways; a linear layer is (in, out) there."""
    folder.mkdir()
    layer = {"fc.weight": np.ones((3, DIM), np.float32), "bn._mean": np.zeros(DIM, np.float32)}
    save(
        folder / "latest.pdparams", OrderedDict(layer | {"StructuredToParameterName@@": {"fc.weight": "linear_0.w_0"}})
    )
    whole = weights().numpy()
    for rank in range(ranks):
        rows = whole[theirs(rank, ranks)].copy()
        save(folder / f"latest_rank{rank}.pdparams", {"head.weight": rows})
        state = {"w": {"exp_avg": (f"eager_tmp_{rank}", 2 * rows)}}
        save(folder / f"latest_rank{rank}.pdopt", {"state": state, "param_groups": [{"lr": 0.1, "params": ["w"]}]})
    return folder


def save(path: Path, content: Any, protocol: int = 4) -> None:
    path.write_bytes(pickle.dumps(content, protocol))


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_plsc(count: int, tmp_path: Path) -> None:
    folder = plsc_files(tmp_path / "run", count)
    for number, source in enumerate((folder, folder / "latest", folder / "latest.pdparams")):
        found = taken("plsc", source, tmp_path / f"{number}.safetensors", "--classes", str(CLASSES))
        assert torch.equal(found["head.weight"], weights())
        assert torch.equal(found["momentum.head.weight"], 2 * weights())
        assert found["backbone.fc.weight"].shape == (DIM, 3)
        assert "backbone.bn.running_mean" in found


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_any_pickle(protocol: int, tmp_path: Path) -> None:
    kinds = [np.float32, np.float16, np.float64, np.int64, np.uint8]
    content = {str(np.dtype(kind)): np.arange(12, dtype=kind).reshape(3, 4) for kind in kinds}
    content["turned"] = np.asfortranarray(content["float32"])
    save(tmp_path / "x", [content, ("a", 1.5, None, True, 1 << 40), np.float32(2.5)], protocol)
    [arrays, values, number] = read_arrays(tmp_path / "x")
    assert values == ("a", 1.5, None, True, 1 << 40)
    assert number == 2.5
    assert all(np.array_equal(arrays[key].numpy(), content[key]) for key in content)
    assert all(arrays[key].numpy().dtype == content[key].dtype for key in content)


def doubled(times: int, pair: bytes) -> bytes:
    """A value that holds the one before it twice, ``times`` over: 2^times values, if each is made by itself."""
    once = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + pair + b"q" + bytes([i + 1]) for i in range(times))
    return b")q\x00" + once


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (doubled(60, b"\x86"), None),  # tuples in tuples, read in no time
        (doubled(60, b"\x86") + b"}h\x3cK\x01s", "a tuple as a key"),
        (doubled(60, b"\x86") + b"cnumpy\ndtype\nh\x3c\x85R", "numbers of type"),
        (doubled(60, b"\x86") + b"cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R(K\x03h\x3cNtb", "byte order a tuple"),
        (b"cnumpy.core.multiarray\nscalar\n(X\x02\x00\x00\x00f8C\x08" + bytes(8) + b"tR", "an array of no type"),
        (b"]q\x00h\x00a", "without end"),
    ],
    ids=["shared", "key", "dtype", "order", "scalar", "endless"],
)
@pytest.mark.timeout(20)
def test_a_pickle_that_grows_is_no_trouble(content: bytes, said: str | None, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x80\x02" + content + b".")
    if said is None:
        assert isinstance(read_arrays(tmp_path / "x"), tuple)
        return
    with pytest.raises(ValueError, match=said):
        read_arrays(tmp_path / "x")


@pytest.mark.parametrize(("name", "count"), [("mxnet", 1), ("mxnet", 4), ("mxnet", 8), ("cvlface", 1), ("cvlface", 4)])
def test_there_and_back_in_equal_parts(name: str, count: int, tmp_path: Path) -> None:
    """11 classes on 4 ranks are 12 rows there, on 8 ranks 16: ``--classes`` says how many there are."""
    there, ckpt = tmp_path / "there", str(checkpoint(tmp_path))
    assert main(["export", "--to", name, "--ranks", str(count), ckpt, str(there)]) == 0
    assert len(list(there.iterdir())) == count
    found = taken(name, there, tmp_path / "back.safetensors", "--classes", str(CLASSES))
    assert torch.equal(found["head.weight"], weights())
    if count == 4:
        found = taken(name, there, tmp_path / "padded.safetensors")
        assert found["head.weight"].shape == (12, DIM)


def test_mxnet_files_of_names(tmp_path: Path) -> None:
    arrays = {"arg:fc7_weight": weights(), "aux:mean": torch.zeros(3, dtype=torch.float16)}
    write_mxnet(tmp_path / "model.params", arrays)
    assert list(read_mxnet(tmp_path / "model.params")) == list(arrays)
    found = taken("mxnet", tmp_path / "model.params", tmp_path / "out.safetensors")
    assert torch.equal(found["head.weight"], weights())


def test_facenet_pytorch(tmp_path: Path) -> None:
    state = {"conv2d_1a.conv.weight": torch.ones(2, 3, 3, 3), "last_linear.weight": torch.ones(DIM, 9)}
    torch.save(state | {"logits.weight": weights(), "logits.bias": torch.zeros(CLASSES)}, tmp_path / "x.pt")
    found = taken("facenet-pytorch", tmp_path / "x.pt", tmp_path / "out.safetensors")
    assert torch.equal(found["head.weight"], weights())
    assert len(found) == 3


def given(name: str, source: Path, out: Path, *words: str) -> None:
    assert main(["export", "--to", name, *words, str(source), str(out)]) == 0


def test_adaface_there_and_back_is_bit_equal(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {f"model.{k}": v for k, v in ir18(32).state_dict().items()} | {"head.kernel": weights().t()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "ada.ckpt")
    taken("adaface", tmp_path / "ada.ckpt", tmp_path / "ours.safetensors")
    given("adaface", tmp_path / "ours.safetensors", tmp_path / "again.ckpt")
    again = torch.load(tmp_path / "again.ckpt", weights_only=True)["state_dict"]
    assert {name for name in again if name not in state} == {"head.t", "head.batch_mean", "head.batch_std"}
    assert all(torch.equal(again[name], value) for name, value in state.items())


@torch.no_grad()
def test_adaface_computes_what_ours_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the last batch norm has learned a bias; not where the first shortcut has learned."""
    torch.manual_seed(0)
    net, images = ours(taken_ir18(tmp_path), 32), torch.randn(4, 3, 32, 32)
    features: Any = net.features
    features.bias.normal_()
    ours_with_head = {f"backbone.{k}": v for k, v in net.state_dict().items()} | {"head.weight": weights()}
    save_file(ours_with_head | {"neck.1.weight": torch.ones(2)}, tmp_path / "ours.safetensors")
    given("adaface", tmp_path / "ours.safetensors", tmp_path / "theirs.ckpt")
    assert "left out: the neck (1 tensors)" in capsys.readouterr().out
    state = torch.load(tmp_path / "theirs.ckpt", weights_only=True)["state_dict"]
    ir = ir18(32)
    ir.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    expected = net(images)
    torch.testing.assert_close(ir(images.flip(1)), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    ours_with_head["backbone.layer1.0.downsample.0.weight"] = torch.rand(64, 64, 1, 1)
    save_file(ours_with_head, tmp_path / "trained.safetensors")
    told = refused_export("adaface", tmp_path / "trained.safetensors", tmp_path, capsys)
    assert "layer1.0.downsample.0.weight is a layer of the first shortcut" in told


def taken_ir18(folder: Path) -> dict[str, Tensor]:
    return taken("cvlface", cvl_folder(folder / "hub", ir18(32), "RGB"), folder / "ir18.safetensors")


def refused_export(name: str, source: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    out = folder / "refused"
    assert main(["export", "--to", name, str(source), str(out)]) == 2
    assert not out.exists()
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    return told


@pytest.mark.parametrize("count", [1, 3])
def test_plsc_there_and_back_is_bit_equal(count: int, tmp_path: Path) -> None:
    """Read back by our reader, and by pickle itself."""
    prelu = {"prelu.weight": torch.rand(3), "bn.weight": torch.rand(3), "bn.bias": torch.rand(3)}
    rest = {"bn.running_mean": torch.rand(3), "bn.num_batches_tracked": torch.tensor(4), "fc.weight": torch.rand(2, 3)}
    mine = {f"backbone.{k}": v for k, v in (prelu | rest).items()} | {"head.weight": weights()}
    save_file(mine, tmp_path / "ours.safetensors")
    given("plsc", tmp_path / "ours.safetensors", tmp_path / "theirs", "--ranks", str(count))
    found = taken("plsc", tmp_path / "theirs", tmp_path / "again.safetensors", "--classes", str(CLASSES))
    assert set(mine) - set(found) == {"backbone.bn.num_batches_tracked"}
    assert all(torch.equal(value, mine[name]) for name, value in found.items())
    names = {path.name for path in (tmp_path / "theirs").iterdir()}
    assert names == {"latest.pdparams", *(f"latest_rank{rank}.pdparams" for rank in range(count) if count > 1)}
    plain = pickle.loads((tmp_path / "theirs" / "latest.pdparams").read_bytes())
    assert set(plain) - {"head.weight"} == {"prelu._weight", "bn.weight", "bn.bias", "bn._mean", "fc.weight"}
    assert plain["fc.weight"].shape == (3, 2)
    assert np.array_equal(plain["fc.weight"].T, rest["fc.weight"].numpy())
    assert plain["bn._mean"].dtype == np.float32
    assert plain["bn._mean"].flags.writeable


def test_facenet_there_and_back_is_bit_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"conv2d_1a.conv.weight": torch.rand(2, 3, 3, 3), "last_linear.weight": torch.rand(4, 2)}
    state |= {"logits.weight": weights(), "logits.bias": torch.zeros(CLASSES)}
    torch.save(state, tmp_path / "theirs.pt")
    taken("facenet-pytorch", tmp_path / "theirs.pt", tmp_path / "ours.safetensors")
    given("facenet-pytorch", tmp_path / "ours.safetensors", tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert set(again) == set(state)
    assert all(torch.equal(again[name], value) for name, value in state.items())
    capsys.readouterr()
    for name, said in (
        ("facenet-pytorch", "should have an InceptionResnetV1 of facenet-pytorch as backbone"),
        ("adaface", "should have an IResNet as backbone"),
    ):
        assert said in refused_export(name, checkpoint(tmp_path), tmp_path, capsys)


def test_safetensors_without_a_head_say_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"fc.weight": torch.ones(2, 3)}, tmp_path / "x.safetensors")
    told = refused_export("linear", tmp_path / "x.safetensors", tmp_path, capsys)
    assert "should be a checkpoint, or what pfc-ckpt import wrote, with head.weight" in told
    assert "it is safetensors with fc.weight" in told
    (tmp_path / "y.safetensors").write_bytes(b"no")
    assert "is no safetensors file, or damaged" in refused_export(
        "linear", tmp_path / "y.safetensors", tmp_path, capsys
    )


def evil_torch(path: Path) -> None:
    torch.save({"state_dict": Evil()}, path)


def evil_pickle(path: Path) -> None:
    save(path, {"head.weight": Evil()})


def evil_name_of_theirs(path: Path) -> None:
    """Of a package whose objects may stand in the optimizers' files, and there only."""
    path.write_bytes(b"\x80\x02cpaddle.utils\nrun\n(S'x'\ntR.")


def wrong_torch(path: Path) -> None:
    torch.save({"W": weights()}, path)


def wrong_pickle(path: Path) -> None:
    save(path, [1, 2, 3])


def no_pickle(path: Path) -> None:
    path.write_bytes(b"\x80\x04not a pickle")


def endless(path: Path) -> None:
    """A list that holds itself."""
    content: list[Any] = []
    content.append(content)
    save(path, content)


def short(path: Path) -> None:
    write_mxnet(path, {"fc7_weight": weights()})
    path.write_bytes(path.read_bytes()[:-40])


def huge(path: Path) -> None:
    """A few bytes that claim 2^62 numbers."""
    path.write_bytes(struct.pack("<QQQIii2qiii", 0x112, 0, 1, 0xF993FAC9, 0, 2, 1 << 31, 1 << 31, 1, 0, 0))


def no_centers(path: Path) -> None:
    write_mxnet(path, {"conv0_weight": weights()})


BAD: list[tuple[str, Callable[[Path], None], str]] = [
    ("adaface", evil_torch, "could run code"),
    ("adaface", wrong_torch, "model.input_layer.0.weight"),
    ("cvlface", evil_torch, "could run code"),
    ("facenet-pytorch", evil_torch, "could run code"),
    ("facenet-pytorch", wrong_torch, "should hold an InceptionResnetV1"),
    ("lvface", evil_torch, "could run code"),
    ("linear", evil_torch, "could run code"),
    ("pml", evil_torch, "could run code"),
    ("plsc", evil_pickle, "could run code (posix.system)"),
    ("plsc", evil_name_of_theirs, "could run code (paddle.utils.run)"),
    ("plsc", wrong_pickle, "should hold tensors by name"),
    ("plsc", wrong_torch, "no pickle of arrays"),
    ("plsc", no_pickle, "no pickle of arrays"),
    ("plsc", endless, "lists within lists"),
    ("mxnet", wrong_torch, "no file of mx.nd.save"),
    ("mxnet", evil_pickle, "no file of mx.nd.save"),
    ("mxnet", short, "no file of mx.nd.save, or damaged"),
    ("mxnet", huge, "claims the shape"),
    ("mxnet", no_centers, "should hold fc7_weight"),
]


@pytest.mark.parametrize(("name", "spoil", "said"), BAD, ids=lambda value: getattr(value, "__name__", None))
def test_bad_files(
    name: str, spoil: Callable[[Path], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pdparams"
    spoil(path)
    _refused(name, path, said, tmp_path, capsys)
    assert not Path("/tmp/never").exists()


def _refused(name: str, path: Path, said: str, folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    assert main(["import", "--from", name, str(path), str(folder / "out.safetensors"), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not [found.name for found in folder.iterdir() if "out.safetensors" in found.name]


def test_a_rank_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ckpt = str(checkpoint(tmp_path))
    for name, lost in (("mxnet", "1_centers.param"), ("cvlface", "classifier_rank1.pt")):
        folder = tmp_path / name
        assert main(["export", "--to", name, "--ranks", "3", ckpt, str(folder)]) == 0
        (folder / lost).unlink()
        _refused(name, folder, f"{lost} is missing", tmp_path, capsys)
    folder = plsc_files(tmp_path / "plsc", 3)
    (folder / "latest_rank1.pdparams").unlink()
    _refused("plsc", folder, "latest_rank1.pdparams is missing", tmp_path, capsys)
    os.remove(plsc_files(tmp_path / "last", 3) / "latest_rank2.pdparams")
    _refused("plsc", tmp_path / "last", "--classes says 11", tmp_path, capsys, "--classes", "11")
    os.remove(tmp_path / "last" / "latest.pdparams")
    save(tmp_path / "last" / "best.pdparams", {})
    _refused("plsc", tmp_path / "last", "those of best, latest", tmp_path, capsys)


def test_a_head_that_several_projects_could_have(tmp_path: Path) -> None:
    """safetensors, as the hub keeps a model of CVLface's: everything below ``model.net.``."""
    net = ir18(32)
    save_file({f"model.net.{k}": v.contiguous() for k, v in net.state_dict().items()}, tmp_path / "model.safetensors")
    assert "backbone.layer4.1.conv2.weight" in taken("cvlface", tmp_path, tmp_path / "out.safetensors")
