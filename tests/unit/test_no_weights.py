"""Files that hold tensors, and no weights that a network can take: refused by importers and ``init_from`` alike."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_pfc import PartialFC
from lightning_pfc.checkpoint import CheckpointError
from lightning_pfc.commands.ckpt import main
from lightning_pfc.commands.running import one_line
from lightning_pfc.interchange.mxnet_arrays import write_mxnet
from lightning_pfc.runs.resuming import earlier_run
from lightning_pfc.transfer import init_from
from tests.unit.test_interchange import CLASSES, DIM, first_generation, second_generation, weights
from tests.unit.test_interchange_peers import plsc_files
from tests.unit.test_interchange_wrong_files import banks, classifiers, refused

KINDS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "int8": (lambda t: (50 * t).to(torch.int8), "int8"),
    "int64": (lambda t: t.long(), "int64"),
    "bool": (lambda t: t > 0, "bool"),
    "complex": (lambda t: t.to(torch.complex64), "complex64"),
    "sparse": (lambda t: t.to_sparse(), "sparse"),
    "meta": (lambda t: t.to("meta"), "without values"),
    "nan": (lambda t: t.index_fill(0, torch.tensor([1]), float("nan")), "NaN or infinity"),
    "inf": (lambda t: t.index_fill(0, torch.tensor([1]), float("inf")), "NaN or infinity"),
}
FINE: dict[str, torch.dtype] = {"half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}
FINE["eight bits"] = torch.float8_e4m3fn


class Small(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 6))
        self.head = PartialFC(embedding_dim=6, num_classes=5, loss="cosface", seed=seed)
        self.to("cpu")


def state() -> dict[str, Tensor]:
    return {name: value.clone() for name, value in Small().state_dict().items()}


def theirs() -> dict[str, Tensor]:
    """A network of which no names are known."""
    return nn.Sequential(OrderedDict(first=nn.Linear(3, DIM), second=nn.Linear(DIM, DIM))).state_dict()


def nothing_taken(source: Path, said: str, **options: Any) -> None:
    module = Small(1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises((CheckpointError, FileNotFoundError), match=said) as caught:
        init_from(module, str(source), **options)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("name", ["backbone.0.weight", "backbone.1.running_var", "head.weight"])
@pytest.mark.parametrize("kind", KINDS)
def test_init_from_takes_no_tensor_that_is_none(kind: str, name: str, tmp_path: Path) -> None:
    spoil, said = KINDS[kind]
    content = state()
    content[name] = spoil(content[name])
    torch.save(content, tmp_path / "x.pt")
    nothing_taken(tmp_path / "x.pt", said)
    if kind not in ("sparse", "meta"):
        save_file(content, tmp_path / "x.safetensors")
        nothing_taken(tmp_path / "x.safetensors", said)


def test_numbers_that_are_none_here_are_refused(tmp_path: Path) -> None:
    """Finite in double precision, and not in the module's."""
    for name in ("backbone.0.weight", "head.weight"):
        content = state()
        content[name] = content[name].double() * 1e300
        torch.save(content, tmp_path / "x.pt")
        nothing_taken(tmp_path / "x.pt", "NaN or infinity")


@pytest.mark.parametrize("kind", FINE)
def test_floats_of_any_size_are_taken(kind: str, tmp_path: Path) -> None:
    content = {name: value.to(FINE[kind]) if value.is_floating_point() else value for name, value in state().items()}
    torch.save(content, tmp_path / "x.pt")
    init_from(module := Small(1), str(tmp_path / "x.pt"))
    for name in ("backbone.0.weight", "head.weight"):
        assert torch.equal(module.state_dict()[name], content[name].float()), name
    torch.save({"fc.weight": weights().to(FINE[kind])}, tmp_path / "fc.pt")
    words = ["import", "--from", "linear", str(tmp_path / "fc.pt"), str(tmp_path / "out.safetensors")]
    assert main(words) == 0
    assert torch.equal(load_file(tmp_path / "out.safetensors")["head.weight"], weights().to(FINE[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_importers_take_no_tensor_that_is_none(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, said = KINDS[kind]
    torch.save({"fc.weight": spoil(weights())}, tmp_path / "fc.pt")
    told = refused("linear", tmp_path / "fc.pt", tmp_path, capsys)
    assert said in told
    assert "fc.pt" in told
    network = theirs()
    network["first.weight"] = spoil(network["first.weight"])
    torch.save(network, tmp_path / "net.pth")
    told = refused("insightface", tmp_path / "net.pth", tmp_path, capsys)
    assert said in told
    assert "net.pth: backbone.first.weight" in told


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_head_that_diverged_names_its_rank(value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = torch.full((4, DIM), value)
    first, second = first_generation(tmp_path / "first", 3), second_generation(tmp_path / "second", 3)
    torch.save(rows, first / "rank_1_softmax_weight.pt")
    content = torch.load(second / "checkpoint_gpu_1.pt", weights_only=True)
    content["state_dict_softmax_fc"]["weight"].fill_(value)
    torch.save(content, second / "checkpoint_gpu_1.pt")
    torch.save({"partial_fc.weight": rows}, classifiers(tmp_path / "classifiers") / "classifier_rank1.pt")
    write_mxnet(banks(tmp_path / "banks") / "1_centers.param", {"": rows}, names=False)
    for name, folder in (("insightface", first), ("insightface", second)):
        assert "head.weight of rank 1 holds NaN or infinity" in refused(name, folder, tmp_path, capsys)
    for name, place in (("cvlface", "classifiers"), ("mxnet", "banks")):
        assert "head.weight of rank 1 holds NaN or infinity" in refused(name, tmp_path / place, tmp_path, capsys)
    third = first_generation(tmp_path / "third", 3)
    torch.save(rows, third / "rank_1_softmax_weight_mom.pt")
    assert "momentum.head.weight of rank 1" in refused("insightface", third, tmp_path, capsys)


def forget_optimizer(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    del content["state_optimizer"]
    torch.save(content, path)


MOMENTA: dict[str, tuple[str, Callable[[Path], object], str, Callable[[Path], None]]] = {
    "ranks": ("insightface", lambda f: first_generation(f, 3), "rank_1_softmax_weight_mom.pt", Path.unlink),
    "checkpoints": ("insightface", lambda f: second_generation(f, 3), "checkpoint_gpu_1.pt", forget_optimizer),
    "paddle": ("plsc", lambda f: plsc_files(f, 3), "latest_rank1.pdopt", Path.unlink),
    "banks": ("mxnet", lambda f: banks_with_momenta(f), "1_centers_mom.param", Path.unlink),
}


def banks_with_momenta(folder: Path) -> None:
    banks(folder)
    for rank in range(3):
        write_mxnet(folder / f"{rank}_centers_mom.param", {"": torch.ones(4, DIM)}, names=False)


@pytest.mark.parametrize("what", MOMENTA)
def test_momenta_of_some_ranks_are_not_left_out_in_silence(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, write, part, spoil = MOMENTA[what]
    write(tmp_path / "run")
    words = ["import", "--from", name, str(tmp_path / "run"), str(tmp_path / "whole.safetensors")]
    assert main(words) == 0
    assert "momentum.head.weight" in load_file(tmp_path / "whole.safetensors")
    spoil(tmp_path / "run" / part)
    assert part in refused(name, tmp_path / "run", tmp_path, capsys)


def test_files_of_one_rank_or_moment_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = first_generation(tmp_path / "first", 2), second_generation(tmp_path / "second", 2)
    torch.save(weights(5) + 1, first / "rank_01_softmax_weight.pt")
    told = refused("insightface", first, tmp_path, capsys)
    assert "rank_01_softmax_weight.pt" in told
    assert "rank_1_softmax_weight.pt are both of rank 1" in told
    later = torch.load(second / "checkpoint_gpu_1.pt", weights_only=True)
    torch.save({**later, "global_step": 9}, second / "checkpoint_gpu_1.pt")
    told = refused("insightface", second, tmp_path, capsys)
    assert "checkpoint_gpu_1.pt is of epoch and step (2, 9), and checkpoint_gpu_0.pt of (2, 7)" in told


def test_two_tensors_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of them would have been taken, by the order in which they lie in the file."""
    torch.save({"fc.weight": weights(), "module.fc.weight": weights() + 1}, tmp_path / "fc.pt")
    assert "one name, fc.weight and module.fc.weight" in refused("linear", tmp_path / "fc.pt", tmp_path, capsys)
    network = theirs()
    torch.save({**network, "backbone.first.weight": network["first.weight"] + 1}, tmp_path / "net.pth")
    assert "backbone.first.weight" in refused("insightface", tmp_path / "net.pth", tmp_path, capsys)
    write_mxnet(tmp_path / "m.params", {"arg:fc7_weight": weights(), "aux:fc7_weight": weights() + 1})
    assert "fc7_weight as arg: and as aux:" in refused("mxnet", tmp_path / "m.params", tmp_path, capsys)
    torch.save({"W": weights().t(), "proxies": weights()}, tmp_path / "loss.pt")
    assert "one of W, proxies and fc" in refused("pml", tmp_path / "loss.pt", tmp_path, capsys)
    content = state()
    torch.save({**content, "backbone._orig_mod.0.weight": content["backbone.0.weight"] + 1}, tmp_path / "x.pt")
    nothing_taken(tmp_path / "x.pt", "backbone.0.weight and backbone._orig_mod.0.weight are one tensor")
    for ending, save in (("model{}.safetensors", save_file), ("pytorch_model{}.bin", torch.save)):
        folder = tmp_path / ending.format("")
        folder.mkdir()
        for part in "ab":
            save(content, folder / ending.format(f"_{part}"))
        nothing_taken(folder, "and another file beside it both have")


def test_names_that_a_terminal_would_obey(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = theirs()
    for name in ("a\x1b[31m", "a\nb", "a\ud800"):
        torch.save({**network, name: torch.ones(1)}, tmp_path / "net.pth")
        assert "characters that are none" in refused("insightface", tmp_path / "net.pth", tmp_path, capsys)
    torch.save({"fc.weight": weights(), "\x1b[31m": torch.ones(CLASSES)}, tmp_path / "fc.pt")
    assert main(["import", "--from", "linear", str(tmp_path / "fc.pt"), str(tmp_path / "o.safetensors")]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert one_line("a \x1b[31m\tb\n\u202e é") == "a \\x1b[31m b \\u202e é"


@pytest.mark.parametrize(
    "place", ["https://example.org/model.safetensors", "s3://bucket/x.pt", "file:///x.pt", "", " "]
)
def test_addresses_and_nothing(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(state(), tmp_path / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match="nothing is fetched from one" if "://" in place else "there is no such"
    ):
        init_from(Small(), place)


@pytest.mark.parametrize("key", ["init_from", "resume", "ckpt_path"])
def test_a_variable_that_was_not_set(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}= is empty"):
        earlier_run(["trainer.max_epochs=1", f"{key}="])
    assert earlier_run([f"{key}=null"]) is None
