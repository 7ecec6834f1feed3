"""pfc-export: checked against the module, whole or absent, and one line for what is wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from PIL import Image

from lightning_pfc.calibration import Threshold
from lightning_pfc.checkpoint.single import save_file
from lightning_pfc.commands.export import main
from lightning_pfc.data.errors import BrokenImageError
from lightning_pfc.deploy import ExportError, GateError, Recogniser, gate
from lightning_pfc.deploy import export as export_module
from lightning_pfc.deploy.description import ModelDescription
from lightning_pfc.deploy.engines import open_engine
from lightning_pfc.deploy.export import export_run
from lightning_pfc.deploy.export_options import ExportOptions
from lightning_pfc.deploy.fidelity import compare_engines
from lightning_pfc.deploy.figures import set_scores
from lightning_pfc.deploy.folder import publish
from lightning_pfc.deploy.gate import judge_rates, judge_times, refuse
from lightning_pfc.deploy.onnx_file import write_onnx, write_pt2
from lightning_pfc.deploy.samples import open_samples
from lightning_pfc.deploy.torch_engine import TorchEngine
from lightning_pfc.runs.run_folder import Run
from lightning_pfc.storage.makers import this_host
from lightning_pfc.storage.whole_files import sha256, write_json


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


@pytest.fixture
def traced_once(export_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares tracing the same network again, seconds each time; it is compared with the module all the same."""

    def copied(network: torch.nn.Module, shape: Any, path: Path, **_: Any) -> None:
        shutil.copy(export_folder / "model.onnx", path)

    monkeypatch.setattr(export_module, "write_onnx", copied)


def nothing_left(folder: Path) -> bool:
    return not any(path.name.startswith(".") for path in folder.iterdir() if path.name != ".run.lock")


def test_the_folder_holds_what_the_page_promises(export_folder: Path) -> None:
    names = {path.name for path in export_folder.iterdir()}
    assert names == {
        "model.onnx",
        "model.json",
        "model.safetensors",
        "config.json",
        "README.md",
        "centers.safetensors",
        "classes.txt",
    }
    about = ModelDescription.read(export_folder / "model.json")
    assert set(about.sha256) == names - {"model.json"}
    assert all(sha256(export_folder / name) == value for name, value in about.sha256.items())
    assert about.checks["fidelity"]["cosine_loss"] < 1e-5
    assert about.checks["fidelity"]["batches"] == [1, 3, 64]
    assert about.checks["figures"]["test/tar@far=1e-2"]["value"] > 0.3
    scores = about.checks["scores"]
    assert len(scores["genuine"]) == len(scores["impostor"]) == 100
    middles = np.linspace(-0.99, 0.99, 100)
    assert np.average(middles, weights=scores["genuine"]) > np.average(middles, weights=scores["impostor"]) + 0.1
    assert about.trained_on["classes"] == 36
    graph = onnx.load(export_folder / "model.onnx")
    assert [entry.version for entry in graph.opset_import if not entry.domain] == [20]
    [images] = graph.graph.input
    dimensions = images.type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dimensions] == ["batch", 3, 24, 24]
    assert graph.graph.output[0].name == "embeddings"
    assert not [node.name for node in graph.graph.node if node.metadata_props]  # no paths of this machine


def test_nothing_of_this_machine_is_in_it(export_folder: Path, pictures: Path) -> None:
    for path in export_folder.iterdir():
        content = path.read_bytes()
        assert str(pictures.parent).encode() not in content, path.name
        assert b"site-packages" not in content, path.name


def test_flip_and_length_may_be_in_the_network(
    run_folder: Path, export_folder: Path, tmp_path: Path, pictures: Path
) -> None:
    export_run(run_folder, tmp_path / "out", options=ExportOptions(flip=True, normalize=True))
    paths = sorted(pictures.rglob("*.png"))[:4]
    inside = Recogniser.load(tmp_path / "out")
    outside = Recogniser.load(export_folder, flip=True, normalize=True)
    np.testing.assert_allclose(inside.embed(paths), outside.embed(paths), atol=1e-5)
    np.testing.assert_allclose(
        Recogniser.load(tmp_path / "out", engine="torch").embed(paths), inside.embed(paths), atol=1e-5
    )
    with pytest.raises(ValueError, match="adds mirror images itself"):
        Recogniser.load(tmp_path / "out", flip=True)


def test_pt2(run_folder: Path, export_folder: Path, tmp_path: Path, pictures: Path) -> None:
    assert main([str(run_folder), "--out", str(tmp_path / "out"), "--format", "pt2"]) == 0
    paths = sorted(pictures.rglob("*.png"))[:3]
    found = Recogniser.load(tmp_path / "out")
    assert found.network.name == "torch"
    np.testing.assert_allclose(found.embed(paths), Recogniser.load(export_folder).embed(paths), atol=1e-4)
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    images = torch.randn(5, 3, 24, 24)
    torch.testing.assert_close(program(images), torch.from_numpy(found.network(images.numpy())))
    with pytest.raises(ValueError, match="holds no ONNX file"):
        Recogniser.load(tmp_path / "out", engine="onnxruntime")


@pytest.mark.usefixtures("traced_once")
def test_fit_is_that_of_training_unless_it_had_one_size(run: Path, tmp_path: Path, pictures: Path) -> None:
    one_size = tmp_path / "one" / "a"
    one_size.mkdir(parents=True)
    for number, path in enumerate(sorted(pictures.rglob("*.png"))[:8]):
        with Image.open(path) as image:
            image.resize((24, 24)).save(one_size / f"{number}.png")
    assert Run(run).preprocessing.fit == "crop"
    assert export_run(run, tmp_path / "a", options=ExportOptions(fit="stretch")).preprocessing.fit == "stretch"
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    content["hyper_parameters"]["preprocessing"]["fit"] = "exact"
    save_file(run / "checkpoints" / "last.ckpt", content)
    assert Run(run).preprocessing.fit == "exact"
    assert main([str(run), "--images", str(one_size.parent)]) == 0
    found = Recogniser.load(run / "export")
    assert found.description.preprocessing.fit == "crop"
    pixels = np.zeros((30, 20, 3), np.uint8)
    assert found.embed(pixels).shape == (1, 16)
    with pytest.raises(BrokenImageError, match="20 x 30 pixels instead of 24 x 24"):
        Recogniser.load(run / "export", fit="exact").embed(pixels)


@pytest.mark.usefixtures("traced_once")
def test_the_thresholds_of_these_weights_come_along(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Run(run).network.fingerprint()
    kept = Threshold(name="far=1e-2", kind="verification", value=0.4, rate=0.01, interval=(0.005, 0.02), model=mine)
    other = Threshold(name="far=1e-3", kind="verification", value=0.6, rate=0.001, interval=(5e-4, 2e-3), model="x")
    write_json(run / "thresholds.json", {"thresholds": {t.name: t.to_dict() for t in (kept, other)}})
    assert main([str(run)]) == 0
    assert "far=1e-3 is left out: it was chosen on other weights" in capsys.readouterr().err
    found = Recogniser.load(run / "export")
    assert dict(found.thresholds) == {"far=1e-2": kept}
    picture = np.zeros((24, 24, 3), np.uint8)
    assert found.compare(picture, picture)[1:] == (True, 0.01)
    assert "far=1e-2" in (run / "export" / "README.md").read_text()


def test_a_wrong_network_is_never_published(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = export_module.write_onnx

    def spoilt(network: torch.nn.Module, *arguments: Any, **options: Any) -> None:
        last = next(m for m in network.modules() if isinstance(m, torch.nn.Linear))
        saved = last.weight.detach().clone()
        with torch.no_grad():
            last.weight[0] += 0.05
        write(network, *arguments, **options)
        with torch.no_grad():
            last.weight.copy_(saved)

    monkeypatch.setattr(export_module, "write_onnx", spoilt)
    with pytest.raises(ExportError, match=r"not the one that was trained.*nothing was written"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert nothing_left(tmp_path)


def test_engines_are_compared_at_every_batch() -> None:
    class Counting:
        name = "counting"

        def __init__(self, wrong_at: int = 0) -> None:
            self.sizes: list[int] = []
            self.wrong_at = wrong_at

        def __call__(self, images: Any) -> Any:
            self.sizes.append(len(images))
            rows = images.reshape(len(images), -1)[:, :8] + 1
            return rows[::-1] if len(images) == self.wrong_at else rows

    images = np.random.default_rng(0).random((100, 1, 4, 4), dtype=np.float32)
    right = Counting()
    assert compare_engines(Counting(), right, images).cosine_loss < 1e-12
    assert set(right.sizes) == {1, 3, 64}
    for size in (3, 64):
        assert compare_engines(Counting(), Counting(size), images).cosine_loss > 1e-3
    assert compare_engines(Counting(), Counting(), images[:2]).pictures == 2  # fewer than a batch


# --- what is wrong ----------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    status = main(list(words))
    output = capsys.readouterr().err.strip()
    assert status == 1
    assert output.startswith("pfc-export: ")
    assert "\n" not in output
    return output


def test_a_run_without_a_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not there; give the run folder" in refused(capsys, str(tmp_path / "nowhere"))
    (run / "checkpoints" / "last.ckpt").unlink()
    assert "for example" in refused(capsys, str(run))
    shutil.rmtree(run / "checkpoints")
    assert "training has not saved one yet" in refused(capsys, str(run))
    (run / "checkpoints" / "last.ckpt").mkdir(parents=True)  # of several ranks, and never finished
    assert "manifest.json" in refused(capsys, str(run))
    assert nothing_left(run)


def test_a_checkpoint_that_is_none(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    said = refused(capsys, str(run), "--checkpoint", str(tmp_path / "other.ckpt"))
    assert "no checkpoint of a PartialFCModule" in said


@pytest.mark.usefixtures("traced_once")
def test_what_is_there_is_replaced_only_by_force(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    before = (run / "export" / "model.json").read_bytes()
    assert "--force" in refused(capsys, str(run))
    assert (run / "export" / "model.json").read_bytes() == before
    assert main([str(run), "--force", "--license", "mit"]) == 0
    assert "license: mit" in (run / "export" / "README.md").read_text()
    assert "is no export" in refused(capsys, str(run), "--force", "--out", str(run / "checkpoints"))
    assert (run / "checkpoints" / "last.ckpt").exists()
    assert nothing_left(run)


def test_what_cannot_be_exported_is_named_as_asked_for(tmp_path: Path) -> None:
    final = tmp_path / "faces"
    with pytest.raises(ExportError) as told, publish(final) as folder:  # noqa: PT012
        assert folder != final
        raise ExportError("the engine does not take it", folder / "model.onnx")
    assert str(told.value) == f"{final / 'model.onnx'}: the engine does not take it"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, of Linux")
def test_a_full_disk_under_pt2_is_the_system_s_error(tmp_path: Path) -> None:
    """PyTorch's writer of archives ended the process."""
    path = tmp_path / "model.pt2"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        write_pt2(torch.nn.Flatten(), (3, 4, 4), path)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))


@pytest.mark.usefixtures("traced_once")
def test_a_full_disk_leaves_nothing(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.onnx")

    monkeypatch.setattr(export_module, "write_card", full)
    assert "the disk is full; nothing half-made stands under its name" in refused(capsys, str(run))
    assert not (run / "export").exists()
    assert nothing_left(run)


def test_a_killed_export_is_absent(tmp_path: Path) -> None:
    def half() -> None:
        with publish(tmp_path / "out") as folder:
            (folder / "model.onnx").write_bytes(b"half")
            assert not (tmp_path / "out").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced_once")
def test_data_that_are_gone(run: Path, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (run / "config.yaml").read_text().replace(str(pictures), str(tmp_path / "gone"))
    (run / "config.yaml").write_text(words)
    assert "--images FOLDER" in refused(capsys, str(run))
    assert main([str(run), "--images", str(pictures)]) == 0
    (run / "config.yaml").unlink()
    assert "--images FOLDER" in refused(capsys, str(run), "--force")


@pytest.mark.parametrize(
    "target", ["os.system", "lightning_pfc.commands.train.os.system", "lightning_pfc.data.files.os"]
)
def test_a_config_runs_nothing(
    run: Path, tmp_path: Path, target: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (run / "config.yaml").read_text().replace("lightning_pfc.data.Files", target)
    words = words.replace(f"path: {pictures}", f"command: touch {tmp_path / 'ran'}")
    (run / "config.yaml").write_text(words)
    assert "not opened for a file's word" in refused(capsys, str(run))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "options", [{"pretrained_cfg": {"file": "x"}}, {"checkpoint_path": "x"}, {"cache_dir": "x"}, {"pretrained": True}]
)
def test_a_config_of_a_model_reads_nothing(export_folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(export_folder, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    config["backbone_options"] |= options
    (folder / "config.json").write_text(json.dumps(config))
    about = ModelDescription.read(folder / "model.json")
    about.changed(sha256={**about.sha256, "config.json": sha256(folder / "config.json")}).write(folder / "model.json")
    with pytest.raises(ExportError, match="which a file may not"):
        Recogniser.load(folder, engine="torch")
    config.update(backbone="hf-hub:someone/model", backbone_options={})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="not the name of an installed network"):
        export_module.EmbeddingModel.from_pretrained(folder)


# --- fewer bits -------------------------------------------------------------------------------------------------------


class Fake:
    """An engine that adds noise to what another gives, and takes its time."""

    name = "fake"

    def __init__(self, noise: float = 0.0, seconds: float = 0.0) -> None:
        self.noise, self.seconds = noise, seconds

    def __call__(self, images: Any) -> Any:
        time.sleep(self.seconds)
        rows = images.reshape(len(images), -1)[:, ::7]
        return rows + self.noise * np.random.default_rng(0).standard_normal(rows.shape).astype(np.float32)


@pytest.mark.parametrize(
    ("noise", "seconds", "said"),
    [(0.0, 0.001, None), (3.0, 0.001, "it loses more than --max-loss 0.01"), (0.0, 0.008, "it is not faster in fake")],
)
def test_a_reduced_precision_must_recognise_as_well_and_faster(
    run_folder: Path, noise: float, seconds: float, said: str | None
) -> None:
    run = Run(run_folder)
    samples = open_samples(run, run.preprocessing, None)
    images = samples.floats(8, run.preprocessing)
    before, after = Fake(seconds=0.006), Fake(noise, seconds)
    scores = {name: set_scores(before, part, run.preprocessing) for name, part in samples.sets.items()}
    times = judge_times(before, after, images, 0.01)
    found = judge_rates(after, scores, samples.sets, run.preprocessing, times)
    assert found.accept_rates["test"][0] == "1e-2"
    assert (found.milliseconds, found.max_loss) == (times.milliseconds, 0.01)
    if said is None:
        refuse(found, "int8", "fake")
    else:
        with pytest.raises(GateError, match=said) as error:
            refuse(found, "int8", "fake")
        assert "true accept rate at FAR 1e-2 on test" in str(error.value)
        assert "batch of 16" in str(error.value)
    assert 5 < found.milliseconds[1][0] < 60


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("faster", [True, False])
def test_int8(
    run_folder: Path,
    tmp_path: Path,
    pictures: Path,
    faster: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gate, "in_turn", lambda *_: [2.0, 1.0] if faster else [1.0, 2.0])
    status = main([str(run_folder), "--out", str(tmp_path / "out"), "--precision", "int8", "--max-loss", "0.2"])
    said = capsys.readouterr()
    assert status == (0 if faster else 1)
    if not faster:
        assert "precision=int8 is not kept: it is not faster in onnxruntime (batch of 1 1.0 -> 2.0 ms;" in said.err
        assert "true accept rate" not in said.err  # which takes minutes to measure
        assert "\n" not in said.err.strip()
        assert list(tmp_path.iterdir()) == []
        return
    assert "onnxruntime, batch of 16: 2.0 -> 1.0 ms" in said.out
    kinds = {node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}
    assert kinds >= {"QuantizeLinear", "DequantizeLinear"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.onnx",
        "model.json",
        "model.safetensors",
        "config.json",
        "README.md",
    }
    paths = sorted(pictures.rglob("*.png"))[:20]
    wanted = Recogniser.load(tmp_path / "out", engine="torch").embed(paths)
    for engine in ("onnxruntime", "openvino"):
        found = Recogniser.load(tmp_path / "out", engine=engine).embed(paths)
        cosine = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
        assert cosine.min() > 0.9
        assert not np.allclose(found, wanted, atol=1e-4)
    about = ModelDescription.read(tmp_path / "out" / "model.json")
    assert about.checks["gate"]["milliseconds"]["1"] == [2.0, 1.0]


@pytest.mark.usefixtures("traced_once")
def test_bfloat16_is_the_same_file_and_a_word_to_openvino(
    run_folder: Path, export_folder: Path, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO alone computes in bfloat16")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16")
    monkeypatch.setattr(gate, "in_turn", lambda *_: [2.0, 1.0])
    options = ExportOptions(precision="bfloat16", engine="openvino", max_loss=0.2)
    export_run(run_folder, tmp_path / "out", options=options)
    paths = sorted(pictures.rglob("*.png"))[:8]
    wanted = Recogniser.load(export_folder).embed(paths)
    reduced, exact = Recogniser.load(tmp_path / "out"), Recogniser.load(tmp_path / "out", engine="onnxruntime")
    np.testing.assert_allclose(exact.embed(paths), wanted, atol=1e-5)
    assert not np.allclose(reduced.embed(paths), wanted, atol=1e-4)
    np.testing.assert_allclose(reduced.embed(paths), wanted, rtol=0.1, atol=0.1)


def test_float16(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "in_turn", lambda *_: [2.0, 1.0])
    export_run(run_folder, tmp_path / "out", options=ExportOptions(precision="float16", max_loss=0.2))
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert {tensor.data_type for tensor in graph.initializer} >= {onnx.TensorProto.FLOAT16}
    assert graph.input[0].type.tensor_type.elem_type == graph.output[0].type.tensor_type.elem_type == 1
    images = np.random.default_rng(0).standard_normal((3, 3, 24, 24)).astype(np.float32)
    network = Recogniser.load(tmp_path / "out").network
    np.testing.assert_allclose(network(images), TorchEngine(Run(run_folder).network)(images), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--precision", "bfloat16"], "use --engine openvino"),
        (["--precision", "int8", "--format", "pt2"], "leave --format pt2 out"),
        (["--max-loss", "2"], "max_loss=2"),
    ],
)
def test_words_that_do_not_go_together(
    run_folder: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, str(run_folder), "--out", str(tmp_path / "out"), *words)


def test_a_reduced_precision_needs_identities(
    run_folder: Path, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few").mkdir()
    shutil.copytree(pictures / "id00", tmp_path / "few" / "a")
    words = ["--images", str(tmp_path / "few"), "--precision", "float16", "--out", str(tmp_path / "out")]
    assert "at least 20 identities" in refused(capsys, str(run_folder), *words)


def test_an_export_that_is_killed_leaves_nothing(run: Path) -> None:
    command = [sys.executable, "-m", "lightning_pfc.commands.export", str(run)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not list(run.glob(".export~*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    assert not (run / "export").exists()
    assert not list(run.glob(".export~*"))


@pytest.mark.parametrize("name", ["export", "export[1]"])
def test_only_what_dead_exports_left_of_this_name_is_swept(tmp_path: Path, name: str) -> None:
    """Not what another host, or a container with this host's name, may be writing, nor that of another folder."""
    dead, here = os.spawnlp(os.P_NOWAIT, "true", "true"), this_host()
    os.waitpid(dead, 0)
    stays = [f".{name}~elsewhere~{dead}.part", f".{name}~elsewhere~{dead}.old", f".{name}.v2~{here}~{dead}.old"]
    for each in [*stays, f".{name}~{here}~{dead}.part"]:  # the last is what a kill -9 leaves
        (tmp_path / each).mkdir()
    with publish(tmp_path / name) as partial:
        assert {path.name for path in tmp_path.iterdir()} == {*stays, partial.name}
    (tmp_path / f".{name}.again~{here}~{dead}.old").mkdir()
    with publish(tmp_path / f"{name}.again", replace=True):  # its old one has returned
        assert (tmp_path / f"{name}.again").is_dir()


@pytest.mark.parametrize("name", ["glyphnet", "iresnet18"])
def test_networks_with_a_convolution_of_our_own_take_batches_of_any_size(name: str, tmp_path: Path) -> None:
    network = timm.create_model(name, img_size=32, in_chans=3, num_classes=16).eval()
    names = {"input_name": "images", "output_name": "embeddings"}
    write_onnx(network, (3, 32, 32), tmp_path / "m.onnx", **names, metadata={})
    engine = open_engine("onnxruntime", tmp_path / "m.onnx", threads=1)
    for images in (1, 3, 64):
        x = torch.randn(images, 3, 32, 32)
        with torch.no_grad():
            alike = torch.cosine_similarity(torch.from_numpy(engine(x.numpy())), network(x))
        assert alike.min() > 1 - 1e-5
