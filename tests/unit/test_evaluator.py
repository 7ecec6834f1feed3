"""Protocols from files to numbers, with a model that is known; the command around them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from lightning_pfc.checkpoint import save_folder
from lightning_pfc.checkpoint.network import network_checkpoint
from lightning_pfc.checkpoint.split_tree import split_tree
from lightning_pfc.commands.eval import evaluate
from lightning_pfc.data.formats import FormatError
from lightning_pfc.distributed import ClassShard, Comm
from lightning_pfc.evaluation import EvaluationSettings, Evaluator, Peers, TorchEmbedder, embed_images, write_bin
from lightning_pfc.evaluation.faces import open_faces
from lightning_pfc.evaluation.identification import identification_rate, search
from lightning_pfc.evaluation.intervals import Interval
from lightning_pfc.evaluation.report import Measurement, ProtocolResult, print_table
from lightning_pfc.metrics.functional import kfold_accuracy, pair_squared_distances, tar_at_far
from lightning_pfc.report import print_results
from tests import console

try:
    import cv2  # here, because it changes the environment of the process
except ImportError:
    cv2 = None

SIZE = 12


class Blocks(torch.nn.Module):
    """Means over blocks of 4 x 4: an embedding that anyone can compute; it knows left from right."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.norm = torch.nn.BatchNorm1d(27, affine=False)  # differs between training and evaluation

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.nn.functional.avg_pool2d(images, 4).flatten(1) * self.scale)


def embedder() -> TorchEmbedder:
    return TorchEmbedder(Blocks(), (3, SIZE, SIZE))


def picture(identity: int, number: int) -> Image.Image:
    rng = np.random.default_rng(identity)
    base = rng.integers(80, 175, (3, 3, 3))
    noise = np.random.default_rng((identity, number)).integers(-60, 61, (3, 3, 3))
    pixels = np.kron((base + noise).astype(np.uint8), np.ones((4, 4, 1), dtype=np.uint8))
    return Image.fromarray(pixels)


def by_hand(paths: list[Path], flip: bool) -> torch.Tensor:
    rows = []
    for path in paths:
        pixels = np.asarray(Image.open(path)).astype(np.float64) / 127.5 - 1
        means = pixels.reshape(3, 4, 3, 4, 3).mean((1, 3)).transpose(2, 0, 1)
        rows.append((means + means[:, :, ::-1] if flip else means).ravel())
    return torch.from_numpy(np.stack(rows)) / (1 + 1e-5) ** 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 identities of 4 images, a list of 120 pairs, the same pairs as .bin, and 25 strangers."""
    root = tmp_path_factory.mktemp("faces")
    for identity in range(30):
        for number in range(1, 5):
            path = root / "images" / f"p{identity:02d}" / f"p{identity:02d}_{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(identity, number).save(path)
    (root / "strangers" / "x").mkdir(parents=True)
    for identity in range(25):
        picture(100 + identity, 0).save(root / "strangers" / "x" / f"{identity}.png")
    lines, images, same = ["10\t6"], [], []
    for pair in range(120):
        a, b = pair % 30, (pair * 7 + 1) % 30
        i, j = 1 + pair % 4, 1 + (pair + 1) % 4
        other = a if pair % 12 < 6 else (b if b != a else (a + 1) % 30)
        lines.append(f"p{a:02d}\t{i}\t{j}" if other == a else f"p{a:02d}\t{i}\tp{other:02d}\t{j}")
        files = [root / "images" / f"p{x:02d}" / f"p{x:02d}_{n:04d}.png" for x, n in ((a, i), (other, j))]
        images += [file.read_bytes() for file in files]
        same.append(other == a)
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    write_bin(root / "set.bin", images, same)
    return root


def values(result: Any) -> dict[str, float]:
    return {m.name: m.value for m in result.measurements}


@pytest.mark.parametrize("flip", ["none", "sum"])
def test_bin_and_list_give_the_numbers_by_hand(folder: Path, flip: Any) -> None:
    evaluator = Evaluator(embedder(), EvaluationSettings(flip=flip, fars=(0.1, 0.02, 1e-4), batch_size=7))
    listed = evaluator.run("a", {"type": "pairs", "path": str(folder / "pairs.txt"), "images": str(folder / "images")})
    packed = evaluator.run("b", str(folder / "set.bin"))
    lines = [line.split("\t") for line in (folder / "pairs.txt").read_text().splitlines()[1:]]
    pairs = [(f[0], f[1], f[0], f[2]) if len(f) == 3 else tuple(f) for f in lines]
    paths = [folder / "images" / n / f"{n}_{int(i):04d}.png" for p in pairs for n, i in (p[:2], p[2:])]
    rows = by_hand(paths, flip == "sum")
    first, same = torch.arange(120) * 2, torch.tensor([len(f) == 3 for f in lines])
    distances = pair_squared_distances(rows, first, first + 1)
    expected = kfold_accuracy(distances, same).mean
    assert 0.6 < expected < 1
    for result in (listed, packed):
        got = values(result)
        assert got["accuracy"] == pytest.approx(expected, abs=1e-12)
        assert got["tar@far=1e-1"] == pytest.approx(tar_at_far(-distances, same, 0.1).tar)
        assert "tar@far=1e-4" not in got  # 60 impostors say nothing about it
        for m in result.measurements:
            assert m.interval is None or m.interval.low <= m.value + 1e-9 <= m.interval.high + 1e-6
    assert "intervals by identities" in listed.description
    assert "intervals by pairs" in packed.description


def test_the_module_is_left_as_it_was(folder: Path) -> None:
    model: Any = embedder()
    model.module.train()
    before = model.module.norm.running_mean.clone()
    Evaluator(model, EvaluationSettings(replicates=0)).run("a", str(folder / "set.bin"))
    assert model.module.training
    assert model.module.norm.training
    assert torch.equal(model.module.norm.running_mean, before)


def test_identification_over_folders_and_embeddings(folder: Path, tmp_path: Path) -> None:
    evaluator = Evaluator(embedder(), EvaluationSettings(flip="none", ranks=(1, 3), fpirs=(0.2,)))
    faces = open_faces(folder / "images", (3, SIZE, SIZE))
    rows = embed_images(embedder(), faces.images, flip="none")  # type: ignore[arg-type]
    assert faces.labels is not None
    np.savez(tmp_path / "all.npz", emb=rows.numpy(), label=faces.labels.numpy(), names=np.array(faces.names))
    for name, row in zip(faces.names or [], rows, strict=True):
        (tmp_path / "rows" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "rows" / f"{name}.npy", row.numpy())
    images = {"type": "identification", "gallery": str(folder / "images"), "probes": str(folder / "images")}
    found = values(evaluator.run("i", {**images, "distractors": str(folder / "strangers")}))
    assert found == {"rank-1": 1.0, "rank-3": 1.0}  # every image finds itself
    first = torch.arange(120) % 4 == 0
    results = search(rows[~first], faces.labels[~first], rows[first], faces.labels[first])
    for source in (folder / "images", tmp_path / "all.npz", tmp_path / "rows"):
        open_set = values(evaluator.run("o", {"type": "open_set", "path": str(source)}))
        assert open_set["rank-1"] == identification_rate(results.rank, 1)
    pairs = values(evaluator.run("a", {"type": "all_pairs", "path": str(tmp_path / "rows")}))
    again = values(evaluator.run("a", {"type": "all_pairs", "path": str(folder / "images")}))
    assert pairs == again
    assert set(pairs) == {"tar@far=1e-2", "tar@far=1e-3"}
    listed = {"type": "pairs", "path": str(folder / "pairs.txt")}
    direct = values(evaluator.run("p", {**listed, "images": str(folder / "images")}))
    assert values(evaluator.run("p", {**listed, "embeddings": str(tmp_path / "rows")})) == pytest.approx(direct)
    mega = evaluator.run(
        "m", {"type": "megaface", "probes": str(folder / "images"), "distractors": str(folder / "strangers")}
    )
    assert mega.description.startswith("360 trials of 120 images among 25 distractors")


def test_groups_report_gaps(folder: Path) -> None:
    evaluator = Evaluator(embedder(), EvaluationSettings(flip="none", fars=(0.1,)))
    listed = {"type": "pairs", "path": str(folder / "pairs.txt"), "images": str(folder / "images")}
    found = values(
        evaluator.run("rfw", {"type": "groups", "of": {"one": listed, "two": str(folder / "set.bin")}, "far": 0.1})
    )
    assert found["gap/accuracy"] == 0.0
    assert found["one/far@common"] == found["two/far@common"] <= 0.1
    assert found["one/frr@common"] == pytest.approx(1 - found["one/tar@far=1e-1"])
    with pytest.raises(ValueError, match="at least two"):
        evaluator.run("rfw", {"type": "groups", "of": {"one": listed}})


def write_ijb(folder: Path, root: Path) -> None:
    (root / "loose_crop").mkdir(parents=True)
    meta = root / "meta"
    meta.mkdir()
    media, points = [], []
    template = (38.2946, 51.6963, 73.5318, 51.5014, 56.0252, 71.7366, 41.5493, 92.3655, 70.7299, 92.2041)
    for n, path in enumerate(sorted((folder / "images").glob("*/*.png"))):
        Image.open(path).resize((112, 112), Image.Resampling.NEAREST).save(root / "loose_crop" / f"{n}.png")
        media.append(f"{n}.png {1000 + n // 2} {n}")  # two templates of two media for each of 30 people
        points.append(f"{n}.png {' '.join(str(p) for p in template)} {0.5 + 0.01 * (n % 50)}")
    (meta / "ijbc_face_tid_mid.txt").write_text("\n".join(media) + "\n")
    (meta / "ijbc_name_5pts_score.txt").write_text("\n".join(points) + "\n")
    lines = [f"{1000 + a} {1000 + b} {int(a // 2 == b // 2)}" for a in range(60) for b in range(a + 1, 60)]
    (meta / "ijbc_template_pair_label.txt").write_text("\n".join(lines) + "\n")
    for part, people in (("G1", range(15)), ("G2", range(15, 30))):
        rows = "\n".join(f"{1000 + 2 * p},{p},x.png" for p in people)
        (meta / f"ijbc_1N_gallery_{part}.csv").write_text(f"TEMPLATE_ID,SUBJECT_ID,FILENAME\n{rows}\n")
    rows = "\n".join(f"{1001 + 2 * p},{p},x.png" for p in range(30))
    (meta / "ijbc_1N_probe_mixed.csv").write_text(f"TEMPLATE_ID,SUBJECT_ID,FILENAME\n{rows}\n")


def test_ijb_folder(folder: Path, tmp_path: Path) -> None:
    if cv2 is None:
        pytest.skip("aligning needs OpenCV")
    write_ijb(folder, tmp_path)

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(images, 3).flatten(1)

    evaluator = Evaluator(
        TorchEmbedder(Small(), (3, 112, 112)), EvaluationSettings(flip="none", ranks=(1,), fpirs=(0.2,))
    )
    result = evaluator.run("ijbc", {"type": "ijb", "root": str(tmp_path), "feature_norm": "unit"})
    found = values(result)
    assert set(found) >= {
        "1:1[F0-Nunit-D1]/auc",
        "1:1[F0-Nunit-D1]/tar@far=1e-3",
        "1:N[F0-Nunit-D1]/rank-1",
        "1:N[F0-Nunit-D1]/tpir@fpir=2e-1",
    }
    assert 0.9 < found["1:1[F0-Nunit-D1]/auc"] <= 1
    assert "120 images in 60 templates, 1,770 pairs, 30 probes against 2 galleries" in result.description
    (tmp_path / "meta" / "ijbc_template_pair_label.txt").write_text("1000 1001 1\n1000 x 0\n")
    with pytest.raises(FormatError, match=r"byte 12: not a row"):
        evaluator.run("ijbc", {"type": "ijb", "root": str(tmp_path)})


def test_unknown_protocols_and_arguments_are_named(folder: Path, tmp_path: Path) -> None:
    evaluator = Evaluator(None)
    with pytest.raises(ValueError, match=r"protocols\.x has type 'lfw'; there are: all_pairs, bin"):
        evaluator.run("x", {"type": "lfw"})
    numbers: list[Any] = [2024, {"type": "all_pairs", "path": 2024}]  # a folder of that name, without quotes
    for protocol in numbers:
        with pytest.raises(ValueError, match=r"protocols\.x\.path=2024: .* must be a path; .* needs quotes"):
            evaluator.run("x", protocol)
    with pytest.raises(ValueError, match=r"protocols\.x of type all_pairs: missing a required argument: 'path'"):
        evaluator.run("x", {"type": "all_pairs", "folder": "y"})
    with pytest.raises(ValueError, match="there is no model"):
        evaluator.run("x", str(folder / "set.bin"))
    with pytest.raises(ValueError, match="no model to embed them"):
        evaluator.run("x", {"type": "all_pairs", "path": str(folder / "images")})
    np.savez(tmp_path / "bad.npz", other=np.zeros(3))
    with pytest.raises(FormatError, match="no array emb"):
        evaluator.run("x", {"type": "all_pairs", "path": str(tmp_path / "bad.npz")})
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        evaluator.run("x", {"type": "open_set", "path": str(tmp_path / "none")})
    with pytest.raises(ValueError, match="flip='both'"):
        embed_images(embedder(), open_faces(folder / "images", (3, SIZE, SIZE)).images, flip="both")  # type: ignore[arg-type]


def test_parts_of_ranks_make_the_whole(folder: Path) -> None:
    faces = open_faces(folder / "images", (3, SIZE, SIZE))
    assert faces.images is not None
    whole = embed_images(embedder(), faces.images)
    parts = [embed_images(embedder(), faces.images, peers=Peers(rank, 7)) for rank in range(7)]
    assert torch.equal(torch.cat(parts), whole)


def make_embeddings(path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) // 5
    rows = torch.randn(60, 8, generator=generator)[labels] + 0.6 * torch.randn(300, 8, generator=generator)
    np.savez(path, emb=rows.numpy(), label=labels.numpy())
    return path


def test_evaluate_from_python(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_embeddings(tmp_path / "e.npz")
    np.savez(tmp_path / "named.npz", emb=np.eye(2, dtype=np.float32), names=["a", "b"])
    results = evaluate(
        "embedder=none",
        f"+protocols.all={{type: all_pairs, path: {path}}}",
        f"+protocols.open={{type: open_set, path: {path}}}",
        f"output_dir={tmp_path / 'run'}",
    )
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert written["metrics"] == results["metrics"]
    assert {"all/tar@far=1e-3", "open/rank-1"} <= set(results["metrics"])
    assert results["intervals"]["open/rank-1"][0] < results["metrics"]["open/rank-1"]
    assert (tmp_path / "run" / "config.yaml").is_file()
    assert "rank-1" in capsys.readouterr().out
    with pytest.raises(ValueError, match="protocols is empty"):
        evaluate("embedder=none", f"output_dir={tmp_path}")
    with pytest.raises(ValueError, match="ckpt_path is missing"):
        evaluate("+protocols.x=a.bin", f"output_dir={tmp_path}")
    with pytest.raises(ValueError, match="onnx"):
        evaluate("embedder=onx", f"output_dir={tmp_path}")


def test_the_command_prints_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    words = ["embedder=none", "+protocols.x=missing.bin", f"output_dir={tmp_path / 'run'}"]
    done = console.run("lightning_pfc.commands.eval", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert "pfc-eval: no such verification file: missing.bin" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_found_before_the_first_set_is_measured(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", emb=np.eye(4, dtype=np.float32), label=np.array([0, 0, 1, 1]))
    one = f"+protocols.one={{type: all_pairs, path: {tmp_path / 'a.npz'}}}"
    with pytest.raises(FileNotFoundError, match=r"no such verification file: gone.bin \(protocols.two\)"):
        evaluate("embedder=none", one, "+protocols.two=gone.bin", f"output_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_sets_that_were_measured_outlive_one_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", emb=np.eye(40, dtype=np.float32), label=np.arange(40) // 4)
    (tmp_path / "b.npz").write_bytes(b"no archive")
    words = [f"+protocols.{n}={{type: all_pairs, path: {tmp_path / n}.npz}}" for n in "ab"]
    with pytest.raises(ValueError, match=r"b\.npz"):
        evaluate("embedder=none", *words, "plots=false", f"output_dir={tmp_path / 'run'}")
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert written["not_measured"] == ["b"]
    assert written["metrics"]
    assert all(name.startswith("a/") for name in written["metrics"])
    assert "tar@far=" in capsys.readouterr().out


def test_tables_of_80_columns_keep_the_rate_in_every_name() -> None:
    names = ["1:1[F1-N0-D1]/tar@far=1e-06", "val@far=1e-3", "accuracy"]
    note = "12 false accepts; at the nearest point, as published tables: 0.1234"
    found = [ProtocolResult("a-set-of-faces", "", [Measurement(n, 0.5, Interval(0.4, 0.6), note) for n in names])]
    console = Console(width=80, record=True, file=io.StringIO())
    print_table(found, 0.95, console)
    text = console.export_text()
    assert all(name in text for name in names)
    assert "0.4000 .. 0.6000" in text
    assert "…" not in text
    print_results(
        {"run_dir": "x" * 90, "metrics": {"val/a_very_long_name_of_a_set_of_faces/tar@far=1e-06": 0.5}, "seconds": 1.0}
        | {"peak_memory_bytes": {}, "seed": 0},
        console,
    )
    assert "tar@far=1e-06" in console.export_text()


def test_checkpoint_to_numbers(folder: Path, tmp_path: Path) -> None:
    from lightning_pfc.evaluation import checkpoint_embedder
    from lightning_pfc.module import PartialFCModule

    torch.manual_seed(0)
    module = PartialFCModule(
        backbone="resnet10t", num_classes=50, embedding_dim=16, input_size=(3, 32, 32), loss="cosface"
    )
    module.to("cpu")  # gives the head its storage
    state = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    state["pytorch-lightning_version"] = "2.6.6"  # type: ignore[assignment]
    torch.save(state, tmp_path / "last.ckpt")
    loaded = checkpoint_embedder(tmp_path / "last.ckpt")
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = module.eval()(pictures.float() / 127.5 - 1)
    torch.testing.assert_close(loaded(pictures), expected, atol=1e-5, rtol=1e-5)
    results = evaluate(
        f"ckpt_path={tmp_path / 'last.ckpt'}",
        f"+protocols.set={folder / 'set.bin'}",
        f"output_dir={tmp_path / 'run'}",
    )
    assert 0.4 < results["metrics"]["set/accuracy"] <= 1
    names = {path.name for path in (tmp_path / "run" / "plots").iterdir()}
    assert names == {"roc.png", "det.png", "scores_set.png", "hardest_pairs_set.png"}
    shard = ClassShard(50, 0, 1)
    rest, tensors = split_tree(state, lambda key, tensor: shard if key == "head.weight" else None)
    save_folder(tmp_path / "folder.ckpt", rest, tensors, Comm.single(), {})
    torch.testing.assert_close(checkpoint_embedder(tmp_path / "folder.ckpt")(pictures), expected, atol=1e-5, rtol=1e-5)
    assert (
        network_checkpoint(tmp_path / "folder.ckpt")["state_dict"]["head.weight"] is None
    )  # all centers stay on the disk
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of a PartialFCModule"):
        checkpoint_embedder(tmp_path / "other.ckpt")
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: .*none\.ckpt is not there"):
        checkpoint_embedder(tmp_path / "none.ckpt")
    with pytest.raises(FileNotFoundError, match=r"is a folder without a manifest\.json"):
        checkpoint_embedder(tmp_path)


def test_onnx_models_with_packed_weights_among_the_inputs(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="pip install onnx onnxruntime")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    from lightning_pfc.evaluation import OnnxEmbedder

    packed = np.random.default_rng(0).integers(-128, 128, (5, 12), dtype=np.int8)
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["packed", "step"], ["weight"]),
            helper.make_node("Flatten", ["data"], ["flat"]),
            helper.make_node("MatMul", ["flat", "turned"], ["embedding"]),
        ],
        "embedder",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 2, 2])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 5])],
        [onnx.numpy_helper.from_array(packed, "packed"), onnx.numpy_helper.from_array(np.float32(0.5), "step")],
    )
    graph.node.insert(1, helper.make_node("Transpose", ["weight"], ["turned"]))
    # As OpenCV's files do: the weights, and names that no node reads any more, stand among the inputs.
    graph.input.append(helper.make_tensor_value_info("packed", TensorProto.INT8, [5, 12]))
    graph.input.append(helper.make_tensor_value_info("old_name", TensorProto.FLOAT, [5, 12]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    pictures = torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8)
    weight = torch.from_numpy(packed).float() * 0.5
    for channels, images in (("rgb", pictures), ("bgr", pictures.flip(1))):
        embedder = OnnxEmbedder(tmp_path / "m.onnx", mean=127.5, std=128.0, channels=channels)  # type: ignore[arg-type]
        assert embedder.input_size == (3, 2, 2)
        expected = ((images.float() - 127.5) / 128.0).flatten(1) @ weight.T
        torch.testing.assert_close(embedder(pictures), expected, atol=1e-4, rtol=1e-5)
    with pytest.raises(ValueError, match="channels='xyz'"):
        OnnxEmbedder(tmp_path / "m.onnx", channels="xyz")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "said"),
    [([1, 4, 8, 8], "neither 1 nor 3 channels"), ([1, 8, 8, 2], "neither 1 nor 3 channels"), ([1, 3, 8, 3], "layout=")],
)
def test_an_onnx_input_of_other_channels_is_named(tmp_path: Path, shape: list[int], said: str) -> None:
    onnx = pytest.importorskip("onnx", reason="writes the file")
    pytest.importorskip("onnxruntime", reason="reads the file")
    from lightning_pfc.evaluation import OnnxEmbedder

    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["data"], ["embedding"])],
        "embedder",
        [helper.make_tensor_value_info("data", float32, shape)],
        [helper.make_tensor_value_info("embedding", float32, [1, int(np.prod(shape))])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=said):
        OnnxEmbedder(tmp_path / "m.onnx")
