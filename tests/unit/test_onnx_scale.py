"""Which pixels an ONNX file of others takes: read from its first nodes or metadata, or warned of by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from lightning_pfc.commands.data import main as data_main
from lightning_pfc.commands.embed import main as embed_main
from lightning_pfc.commands.gallery import main as gallery_main
from lightning_pfc.commands.serve import main as serve_main
from lightning_pfc.data.onnx_scale import shown
from lightning_pfc.deploy import ExportError, Recogniser
from lightning_pfc.evaluation import OnnxEmbedder

Step = tuple[Any, ...]  # an operator, then its constants
IMAGENET = np.array([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
DEVIATION = np.array([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
CONVENTIONS = {"0 to 255": (0.0, 1.0), "0 to 1": (0.0, 255.0), "-1 to 1": (127.5, 127.5)}


def network(
    path: Path,
    steps: Sequence[Step] = (),
    *,
    constants: bool = False,
    kind: int = TensorProto.FLOAT,
    metadata: dict[str, str] | None = None,
) -> Path:
    """A linear network on pictures of 3 x 8 x 8 behind some steps."""
    nodes, weights, value = [], [], "pictures"
    if kind != TensorProto.FLOAT:
        steps = [("Cast",), *steps]
    for i, (operator, *numbers) in enumerate(steps):
        names = [f"constant{i}.{k}" for k in range(len(numbers))]
        for name, number in zip(names, numbers, strict=True):
            integer = isinstance(number, np.unsignedinteger)
            tensor = numpy_helper.from_array(np.asarray(number, None if integer else np.float32), name)
            if constants:
                nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            else:
                weights.append(tensor)
        words = {"to": TensorProto.FLOAT} if operator == "Cast" else {}
        nodes.append(helper.make_node(operator, [value, *names], [f"step{i}"], **words))
        value = f"step{i}"
    if steps and steps[-1][0] == "QuantizeLinear":
        nodes.append(helper.make_node("DequantizeLinear", [value, *names], ["back"]))
        value = "back"
    matrix = np.random.default_rng(0).normal(size=(192, 5)).astype(np.float32)
    weights.append(numpy_helper.from_array(matrix, "weight"))
    nodes += [helper.make_node("Flatten", [value], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], ["rows"])]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pictures", kind, ["b", 3, 8, 8])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["b", 5])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def statistics(mean: Any, variance: Any) -> Step:
    return "BatchNormalization", np.ones(3), np.zeros(3), np.broadcast_to(mean, 3), np.broadcast_to(variance, 3)


SHOWN: list[tuple[Sequence[Step], str | None, str | None]] = [
    ([("Sub", [127.5]), ("Mul", [0.0078125])], "0 to 255", None),  # SFace, and what MXNet's ArcFace exports
    ([("Sub", 127.5), ("Div", 127.5)], "0 to 255", None),
    ([("Identity",), ("Cast",), ("Mul", 1 / 255)], "0 to 255", None),
    ([("Mul", 1 / 127.5), ("Add", -1.0)], "0 to 255", None),
    ([("Div", 255.0), ("Sub", IMAGENET), ("Div", DEVIATION)], "0 to 255", "rgb"),
    ([("Div", 255.0), ("Sub", IMAGENET[:, ::-1]), ("Div", DEVIATION[:, ::-1])], "0 to 255", "bgr"),
    ([("Sub", IMAGENET), ("Div", DEVIATION)], "0 to 1", "rgb"),
    ([("Sub", 0.5), ("Div", 0.5)], "0 to 1", None),
    ([("Mul", 2.0), ("Sub", 1.0)], "0 to 1", None),
    ([("Add", 1.0), ("Mul", 0.5)], "-1 to 1", None),
    ([("Add", 1.0), ("Mul", 127.5)], "-1 to 1", None),
    ([("Sub", np.array([91.5, 103.9, 131.1]).reshape(1, 3, 1, 1))], "0 to 255", "bgr"),
    ([("Sub", np.broadcast_to(IMAGENET * 255, (1, 3, 8, 8)))], "0 to 255", "rgb"),  # a mean picture
    ([statistics([120.0, 115.0, 100.0], 65.0**2)], "0 to 255", None),
    ([statistics([0.47, 0.45, 0.4], 0.25**2)], "0 to 1", None),
    ([statistics([-0.05, -0.1, -0.2], 0.5**2)], "-1 to 1", None),
    ([("Sub", 127.5), statistics(-8.0, 60.0**2)], "0 to 255", None),
    ([("QuantizeLinear", np.float32(1.0), np.uint8(0))], "0 to 255", None),
    ([("QuantizeLinear", np.float32(2 / 255), np.uint8(128))], "-1 to 1", None),
    # what shows nothing
    ([], None, None),
    ([("Identity",)], None, None),
    ([statistics(0.0, 1.0)], None, None),  # never trained
    ([("Mul", 3.0)], None, None),
    ([("Sub", 0.0)], None, None),
    ([("Div", 0.0)], None, None),
    ([("Relu",), ("Sub", 127.5), ("Mul", 0.0078125)], None, None),
    ([("QuantizeLinear", np.float32(4.7 / 255), np.uint8(115))], None, None),
]


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize(("steps", "range", "color"), SHOWN)
def test_what_the_first_nodes_show(
    tmp_path: Path, steps: Sequence[Step], range: str | None, color: str | None, constants: bool
) -> None:
    path = network(tmp_path / "m.onnx", steps, constants=constants)
    found = shown({}, onnx.load(path).graph, "pictures")
    assert (found.range, found.color) == (range, color)
    assert bool(found.by) == (range is not None)
    if range is not None:
        record = OnnxEmbedder(path).preprocessing
        assert (record.mean[0], record.std[0]) == CONVENTIONS[range]
        assert record.color == (color or "rgb")


def test_constants_that_are_taken_from_show_nothing(tmp_path: Path) -> None:
    model = onnx.load(network(tmp_path / "m.onnx", [("Sub", [127.5]), ("Mul", [0.0078125])]))
    model.graph.node[0].input[:] = model.graph.node[0].input[::-1]  # 127.5 - pixels
    assert shown({}, model.graph, "pictures").range is None
    model.graph.node[0].input[:] = ["pictures", "pictures"]
    assert shown({}, model.graph, "pictures").range is None
    assert shown({}, None, "pictures").range is None


@pytest.mark.parametrize(
    ("word", "range"), [("NominalRange_0_255", "0 to 255"), ("Normalized_0_1", "0 to 1"), ("Normalized_1_1", "-1 to 1")]
)
def test_what_metadata_say(
    tmp_path: Path, word: str, range: str, caplog: pytest.LogCaptureFixture, pixels: torch.Tensor
) -> None:
    words = {"Image.NominalPixelRange": word, "Image.BitmapPixelFormat": "Bgr8"}
    found = OnnxEmbedder(network(tmp_path / "m.onnx", metadata=words))
    assert (found.preprocessing.mean[0], found.preprocessing.std[0]) == CONVENTIONS[range]
    assert found.preprocessing.color == "bgr"
    assert caplog.messages == []
    mean, std = CONVENTIONS[range]
    plain = OnnxEmbedder(network(tmp_path / "plain.onnx"), mean=mean, std=std, channels="bgr")
    torch.testing.assert_close(found(pixels), plain(pixels))


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_scaling_inside_gives_what_scaling_outside_gives(tmp_path: Path, pixels: torch.Tensor) -> None:
    plain = network(tmp_path / "plain.onnx")
    inside = network(tmp_path / "inside.onnx", [("Sub", [127.5]), ("Mul", [0.0078125])])
    wanted = OnnxEmbedder(plain, mean=127.5, std=128.0, channels="rgb")(pixels)
    torch.testing.assert_close(OnnxEmbedder(inside)(pixels), wanted)


@pytest.mark.parametrize(
    ("steps", "words", "said"),
    [
        (
            [],
            {},
            ["which pixels it takes (taken is (pixel - 127.5) / 127.5), nor the order of its colours (taken is rgb)"],
        ),
        ([], {"mean": 127.5}, ["which pixels it takes", "std=127.5"]),
        ([], {"mean": 127.5, "std": 128.0}, ["the order of its colours (taken is rgb): give channels=rgb or bgr"]),
        ([], {"mean": 127.5, "std": 128.0, "channels": "rgb"}, []),
        ([("Sub", 127.5), ("Div", 128.0)], {"channels": "bgr"}, []),
        ([("Sub", 127.5), ("Div", 128.0)], {"channels": "bgr", "mean": 0.0, "std": 1.0}, []),
        (
            [("Sub", 127.5), ("Div", 128.0)],
            {"channels": "bgr", "mean": 127.5, "std": 127.5},
            ["takes pixels from 0 to 255, by its first nodes (Sub, Div), and you have them scaled to (pixel - 127.5)"],
        ),
        ([("Add", 1.0), ("Mul", 0.5)], {"channels": "rgb", "mean": 127.5, "std": 128.0}, []),  # nearly the same
    ],
)
def test_what_nobody_says_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, steps: Sequence[Step], words: dict[str, Any], said: list[str]
) -> None:
    path = network(tmp_path / "m.onnx", steps)
    OnnxEmbedder(path, **words)
    assert len(caplog.records) == bool(said)
    for part in [*said, str(path)] if said else []:
        assert part in caplog.text


def test_pixels_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = network(tmp_path / "m.onnx", kind=TensorProto.UINT8)
    assert OnnxEmbedder(path, channels="bgr").preprocessing.color == "bgr"
    assert caplog.messages == []
    OnnxEmbedder(path)
    [said] = caplog.messages
    assert "does not say the order of its colours (taken is rgb)" in said


# --- doors ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def people(tmp_path: Path) -> Path:
    draw = np.random.default_rng(1)
    for name in ("anna", "bert"):
        folder = tmp_path / "people" / name
        folder.mkdir(parents=True)
        for number in range(2):
            Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "people"


def embeddings(model: Path, people: Path, out: Path, *words: str) -> np.ndarray:
    assert embed_main([str(model), str(people), str(out), "--quiet", *words]) == 0
    with np.load(out) as found:
        rows: np.ndarray = found["emb"]
        return rows


def test_pfc_embed(tmp_path: Path, people: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = network(tmp_path / "plain.onnx")
    inside = network(tmp_path / "inside.onnx", [("Sub", 127.5), ("Div", 128.0)])
    words = ["--mean", "127.5", "--std", "128,128,128", "--channels", "rgb"]
    wanted = embeddings(plain, people, tmp_path / "a.npz", *words)
    assert caplog.messages == []
    np.testing.assert_allclose(embeddings(inside, people, tmp_path / "b.npz"), wanted, atol=1e-4)
    assert "the order of its colours" in caplog.text
    other = embeddings(plain, people, tmp_path / "c.npz", *words[:-1], "bgr")
    assert np.abs(other - wanted).max() > 0.1
    # a job that was interrupted does not go on with another way of reading
    assert not np.allclose(embeddings(plain, people, tmp_path / "d.npz"), other)


def test_pfc_embed_is_told_which_output(tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(network(tmp_path / "one.onnx"))
    model.graph.node.append(helper.make_node("Neg", ["rows"], ["turned"]))
    model.graph.output.append(helper.make_tensor_value_info("turned", TensorProto.FLOAT, ["b", 5]))
    onnx.save(model, tmp_path / "two.onnx")
    assert embed_main([str(tmp_path / "two.onnx"), str(people), str(tmp_path / "a.npz")]) == 1
    assert "Name the right one: output=NAME" in capsys.readouterr().err
    rows = {
        name: embeddings(tmp_path / "two.onnx", people, tmp_path / f"{name}.npz", "--output", name, "--channels", "rgb")
        for name in ("rows", "turned")
    }
    np.testing.assert_array_equal(rows["rows"], -rows["turned"])


def test_words_of_onnx_files_for_what_is_none(
    tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str], export_folder: Path
) -> None:
    out = str(tmp_path / "a.npz")
    for words, code, said in (
        ([str(export_folder), str(people), out, "--mean", "0"], 1, "mean=[0.0] is for an ONNX file alone"),
        ([str(tmp_path / "m.onnx"), str(people), out, "--mean", "x"], 2, "'x' is no number"),
        ([str(tmp_path / "m.onnx"), str(people), out, "--input-size", "1x1"], 2, "'1x1' is no edge such as 112"),
    ):
        if code == 2:
            with pytest.raises(SystemExit):
                embed_main(words)
        else:
            assert embed_main(words) == code
        assert said in capsys.readouterr().err
    listed = str(tmp_path / "list.tsv")
    assert data_main(["overlap", str(people), str(people), listed, "--channels", "rgb"]) != 0
    assert "--channels rgb is of embeddings: give what makes them, --model MODEL" in capsys.readouterr().err


def test_overlap_takes_the_words(
    tmp_path: Path, people: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = network(tmp_path / "plain.onnx")
    other = people.with_name("others")
    people.rename(other)
    (people / "carl").mkdir(parents=True)
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(people / "carl" / "0.png")
    words = ["overlap", str(people), str(other), str(tmp_path / "list.tsv"), "--quiet", "--model", str(plain)]
    words += ["--threshold", "0.99", "--no-pixels"]
    assert data_main(words) == 0, capsys.readouterr().err
    assert "does not say which pixels it takes" in caplog.text
    caplog.clear()
    assert data_main([*words, "--force", "--mean", "127.5", "--std", "127.5", "--channels", "rgb"]) == 0
    assert caplog.messages == []


@pytest.mark.parametrize(
    "door",
    [
        lambda file, folder: Recogniser.load(file),
        lambda file, folder: serve_main([str(file)]),
        lambda file, folder: gallery_main(["build", str(folder / "gallery"), str(folder), "--model", str(file)]),
    ],
    ids=["Recogniser", "pfc-serve", "pfc-gallery"],
)
def test_doors_that_take_exports_only(
    tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str], door: Callable[[Path, Path], Any]
) -> None:
    file = network(tmp_path / "m.onnx")
    try:
        assert door(file, people) == 1
        said = capsys.readouterr().err
    except ExportError as error:
        said = str(error)
    assert "is an ONNX file alone, which does not say how pictures become its input; give the folder that" in said
    assert len(said.strip().splitlines()) == 1
    assert not (people / "gallery").exists()
