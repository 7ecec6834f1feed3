"""The blocks of README.md and docs/ run, one after the other as a reader would, in one folder with small data.

SHORTENED has the words that are put in place of a page's own, NOT_RUN why a line is not run here. Whoever adds a block
to a page runs it or says why not: a line of neither is an error, and so is an entry that meets no line.
"""

from __future__ import annotations

import importlib
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
from PIL import Image
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import lightning_pfc
from lightning_pfc.commands.judging import evaluate
from tests.deployed import small_words
from tests.docs import Block, Command, blocks, commands_of, shell_commands

TRAINS = "a training; its config is resolved in test_docs.py, and tests/trainer trains by the same command"
DATA = "needs data or a model of others; its words are parsed in test_docs.py"
SERVES = "stays until it is stopped; tests/unit/test_serving_docs.py"
NETWORK = "brings programs from the network"
ALIKE = "one like it is run on this page"
NOT_RUN: dict[str, str] = {
    "python recipes/": "measures for minutes; that it exists and has these flags: test_docs.py",
    "python -m lightning_pfc.kernels": "compiles for minutes; tests/unit/test_kernels_compile.py",
    "pfc-plan --classes 1e7 --rate 0.1 --device cpu": "measures this machine, whose memory may not do",
    "pfc-export runs/glyphs": "what the next lines use was made so; tests/unit/test_deploy_export.py",
    "pip ": NETWORK,
    "unzip ": NETWORK,
    "export PFC_DATA_ROOT": "sets where the next lines look; set where they are resolved",
    "pytest": "this",
    "pfc-train": TRAINS,
    "torchrun": TRAINS,
    "curl": SERVES,
    "pfc-serve": SERVES,
    "pfc-eval ckpt_path=runs/X/checkpoints/last.ckpt +protocols.lfw": DATA,
    "pfc-eval embedder=onnx": DATA,
    "pfc-eval run=runs/X calibrate.far=1e-4": "needs 100,000 pairs of strangers; README's line is run with fewer",
    "pfc-eval run=runs/X '+protocols.mine={type: all_pairs, path: my_pictures/}'": ALIKE,
    "pfc-eval run=runs/X calibrate.fpir": ALIKE,
    "pfc-export runs/mine": "what the next lines use was made so; tests/unit/test_deploy_export.py",
    "pfc-export runs/X": "compares engines for minutes; tests/unit/test_deploy_export.py",
    "pfc-embed runs/X/export photos/": "needs a face detector; tests/unit/test_faces.py",
    "pfc-data align --detector": "needs a face detector; tests/unit/test_faces.py",
    "pfc-data overlap": "needs two sets and a calibrated export; tests/unit/test_overlap.py",
    "pfc-data merge": "needs what the line before would have written; tests/unit/test_overlap.py",
}
"""How a line of a console block begins, and why it is not run."""
PYTHON_NOT_RUN = {
    "docs/export.md:python2": "insightface is another project's package; tests/unit/test_deploy_pack.py",
    "docs/gpu.md:python1": "needs a GPU; tests/unit/test_graphs.py",
}
SHORTENED: dict[str, list[tuple[str, str]]] = {
    "README.md:diff1": [("1_000_000", "100"), ("devices=8", "accelerator='cpu', devices=1, **quiet")],
    "README.md:python2": [
        ('"resnet50"', '"test_resnet"'),
        ("93_431", "100"),
        ('devices=8, num_nodes=4, precision="bf16-mixed"', "accelerator='cpu', devices=1, **quiet"),
    ],
    "README.md:python4": [('"data=glyphs"', "*few"), ('if __name__ == "__main__":', "if True:")],
    "docs/backbones.md:python1": [("iresnet50", "mobilefacenet")],
    "docs/cluster.md:python1": [("devices=8", "accelerator='cpu', devices=1, **quiet")],
    "docs/data.md:python1": [("num_workers=8", "num_workers=0"), ("image_size=112", "image_size=24, fit='crop'")],
    "docs/samplers.md:python1": [
        ("1_000_000", "100"),
        ('PartialFC(..., sampler="retrieval")', 'PartialFC(**head, sampler="retrieval")'),
        ("PartialFC(..., sampler={", "PartialFC(**head, sampler={"),
    ],
    "docs/strategy.md:python1": [('"nccl"', '"gloo", init_method=store, rank=0, world_size=1'), ("100_000", "100")],
}
"""By block, what stands in the page and what is run in its place: fewer classes, one process, no GPU."""
CONSOLE_SHORTENED = {
    "calibrate.far=1e-3": "calibrate.far=0.1",  # of the few strangers that there are
    "calibrate.far=1e-2": "calibrate.far=0.1",
}
PYTHON = [block for block in blocks() if block.language in ("python", "diff")]
SHELL = list(shell_commands())


def _reason(command: Command) -> str | None:
    """The beginning in NOT_RUN that the line has, if any."""
    line = str(command).partition(": ")[2]
    return next((start for start in NOT_RUN if line.startswith(start)), None)


def _is_run(block: Block) -> bool:
    if block.language == "console":
        return any(_reason(command) is None for command in commands_of(block))
    return block in PYTHON and str(block) not in PYTHON_NOT_RUN


def test_every_line_is_run_or_says_why_not() -> None:
    assert set(map(_reason, SHELL)) - {None} == set(NOT_RUN)
    assert sum(_reason(command) is None for command in SHELL) >= 16
    of_python = {str(block) for block in PYTHON}
    assert set(PYTHON_NOT_RUN) < of_python
    assert set(SHORTENED) < of_python


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, pictures: Path, run_folder: Path, export_folder: Path) -> Path:
    """What the pages talk of: a run and its export, folders of pictures, lists, and single pictures."""
    home = tmp_path_factory.mktemp("reader")
    for name in ("runs/X", "runs/glyphs", "runs/mine"):
        shutil.copytree(run_folder, home / name)
        shutil.copytree(export_folder, home / name / "export")
    shutil.copy(run_folder / "checkpoints/last.ckpt", home / "last.ckpt")
    for number, name in enumerate(("photos", "more-photos", "faces", "pictures", "aligned", "b")):
        shutil.copytree(pictures, home / name)
        for folder in sorted((home / name).iterdir())[(number + 2) * 3 :]:
            shutil.rmtree(folder)
    shutil.copytree(pictures, home / "faces_emore")
    held_out = sorted(folder.name for folder in (home / "pictures").iterdir())[:5]
    (home / "runs/mine/identities").mkdir(exist_ok=True)
    (home / "runs/mine/identities/test.txt").write_text("".join(f"{name}\n" for name in held_out))
    known = sorted((home / "photos").iterdir())[0]
    for name in ("a.jpg", "b.jpg", "face.jpg", "someone.jpg", "anna1.jpg", "anna2.jpg", "new.jpg"):
        shutil.copy(known / "p1.jpg", home / name)
    for name in ("a.png", "b.png", "someone.png"):
        shutil.copy(known / "p0.png", home / name)
    Image.new("RGB", (30, 30), (200, 30, 90)).save(home / "new.jpg")
    aligned = home / "aligned"
    one, two, *_ = (path.name for path in sorted(aligned.iterdir()))
    (home / "pairs.txt").write_text(f"{one}/p0.png {one}/p1.jpg 1\n{one}/p0.png {two}/p1.jpg 0\n")
    main = importlib.import_module("lightning_pfc.commands.data").main
    *_, one, two = (path.name for path in sorted(pictures.iterdir()))
    (home / "strangers.txt").write_text(f"{one}/p0.png {one}/p1.jpg 1\n{one}/p0.png {two}/p1.jpg 0\n")
    assert main(["make-bin", str(home / "strangers.txt"), str(pictures), str(home / "lfw.bin")]) == 0
    torch.save(timm.create_model("mobilefacenet", num_classes=0).state_dict(), home / "backbone.pth")
    points = ["10", "10", "20", "10", "15", "15", "11", "20", "19", "20"]
    (home / "landmarks.tsv").write_text("\t".join([f"{known.name}/p0.png", *points]) + "\n")
    rng = np.random.default_rng(0)
    rows, labels = rng.standard_normal((40, 8)).astype(np.float32), np.arange(40) // 4
    np.savez(home / "embeddings.npz", emb=rows, label=labels, path=np.array([f"{n}.png" for n in range(40)]))
    torch.manual_seed(0)
    return home


@pytest.mark.parametrize("page", sorted({block.page for block in blocks() if _is_run(block)}))
def test_page(page: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks in their order, in a folder of their own."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    before = dist.is_initialized()
    try:
        for block in blocks():
            if block.page == page:
                _run(block, tmp_path)
    finally:
        if dist.is_initialized() and not before:
            dist.destroy_process_group()


def _run(block: Block, folder: Path) -> None:
    for command in commands_of(block):
        if _reason(command) is None:
            _type(command)
    if block.language in ("python", "diff") and str(block) not in PYTHON_NOT_RUN:
        _execute(block, folder)


def _type(command: Command) -> None:
    line = str(command).partition(": ")[2]
    for theirs, ours in CONSOLE_SHORTENED.items():
        line = line.replace(theirs, ours)
    name, *words = shlex.split(line)
    if name == "pfc-eval":
        assert evaluate(*words, "output_dir=judged")["metrics"]
        return
    module = importlib.import_module(f"lightning_pfc.commands.{name.removeprefix('pfc-')}")
    assert module.main(words) == 0, line


def _execute(block: Block, folder: Path) -> None:
    text = block.text
    for theirs, ours in SHORTENED.get(str(block), []):
        assert theirs in text
        text = text.replace(theirs, ours)
    if block.language == "diff":
        text = "\n".join(line[1:] for line in text.splitlines() if not line.startswith("-"))
    names = _surroundings(folder)
    _BEFORE.get(str(block), lambda names: None)(names)
    exec(compile(text, str(block), "exec"), names)
    _AFTERWARDS.get(str(block), lambda names: None)(names)


def _surroundings(folder: Path) -> dict[str, Any]:
    """What the text around the blocks has made already."""
    from lightning_pfc import data, losses

    torch.manual_seed(0)
    batch = torch.randn(8, 3, 32, 32), torch.randint(100, (8,))
    head = {"embedding_dim": 16, "num_classes": 100, "sample_rate": 0.1, "loss": "ArcFace"}
    module = lightning_pfc.PartialFCModule(backbone="test_resnet", num_classes=100, embedding_dim=16)
    return {
        **{name: getattr(lightning_pfc, name) for name in lightning_pfc.__all__},
        **{name: getattr(data, name) for name in ("Files", "Joint")},
        "ArcFace": losses.ArcFace,
        "L": L,
        "torch": torch,
        "nn": torch.nn,
        "dist": dist,
        "DistributedDataParallel": DistributedDataParallel,
        "device": "cpu",
        "net": torch.nn.Linear(4, 512),
        "head": head,
        "module": module,
        "batch": batch,
        "images": torch.randn(8, 4),
        "labels": batch[1],
        "store": f"file://{folder}/store",
        "datamodule": L.LightningDataModule.from_datasets(TensorDataset(*batch), batch_size=4),
        "loader": DataLoader(TensorDataset(*batch), batch_size=4),
        "F": torch.nn.functional,
        "few": [*small_words(folder / "faces_emore"), f"output_dir={folder}/by_script", "trainer.max_epochs=1"],
        "image_bytes": (folder / "a.jpg").read_bytes(),
        "pil_image": Image.open(folder / "b.jpg"),
        "array": np.asarray(Image.open(folder / "a.png")),
        "quiet": {
            "max_steps": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder / "trainer"),
        },
    }


def _step(names: dict[str, Any], **words: Any) -> None:
    """A head with these words takes a step."""
    head = names["PartialFC"](**{**names["head"], **words})
    loss = head(torch.randn(8, 16), names["batch"][1])
    loss.backward()
    assert torch.isfinite(loss)


def _resnet50(names: dict[str, Any]) -> None:
    names["resnet50"] = lambda num_classes: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, num_classes))


def _recogniser(names: dict[str, Any]) -> None:
    assert torch.isfinite(names["Recogniser"]().training_step(names["batch"], 0))


def _two_heads(names: dict[str, Any]) -> None:
    model = names["TwoHeads"](num_styles=3, backbone="test_resnet", num_classes=100, embedding_dim=16)
    images, labels = names["batch"]
    assert torch.isfinite(model.training_loss(model(images), (images, labels, labels % 3)))


def _a_head(names: dict[str, Any]) -> None:
    names |= {"head": names["PartialFC"](**names["head"]), "backbone": torch.nn.Linear(4, 16)}


_BEFORE: dict[str, Callable[[dict[str, Any]], object]] = {
    "README.md:diff1": _resnet50,
    "docs/gpu.md:python2": _a_head,
    "README.md:python1": lambda names: names["module"].training_step(names["batch"], 0).backward(),
}
_AFTERWARDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "README.md:diff1": _recogniser,
    "README.md:python1": lambda names: names["optimizer"].step(),
    "README.md:python3": _two_heads,
    "docs/data.md:python2": lambda names: names["embedding"].norm(),
    "docs/gpu.md:python2": lambda names: names["loss"].backward(),
    "docs/losses.md:python1": lambda names: _step(names, loss=names["Quadratic"](scale=8.0)),
    "docs/samplers.md:python2": lambda names: _step(names, sampler=names["Neighbours"](radius=2)),
}
