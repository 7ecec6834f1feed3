"""An attacker's pickles and archives at every door that reads files of others: nothing runs, and one line names it."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_pfc.checkpoint import CheckpointError
from lightning_pfc.checkpoint.dcp_storage import small_name
from lightning_pfc.checkpoint.manifest import BLOCK, MANIFEST, Manifest
from lightning_pfc.checkpoint.manifest_entries import FileEntry
from lightning_pfc.commands.ckpt import main
from lightning_pfc.data.errors import FormatError
from lightning_pfc.evaluation.bins import BinImages
from lightning_pfc.transfer.sources import open_weights
from tests.audit import Seen, watch
from tests.hostile_pickles import archives, programs, text, torch_pickle, write_torch
from tests.unit.test_from_a_file import checkpoint, load_from_checkpoint, network, resume, write
from tests.unit.test_interchange import first_generation, second_generation
from tests.unit.test_interchange_peers import plsc_files
from tests.unit.test_interchange_wrong_files import classifiers

LIMIT = 400  # characters that are worth reading of one line

# -- the doors: each gets a folder with the attacker's files, and ends with what was said


def command(*words: str) -> str:
    """What ``pfc-ckpt`` says; nothing if it is content."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(list(words))
    assert (status > 0) == bool(said.getvalue()), words
    return said.getvalue().removesuffix("\n")


def imported(project: str, source: str) -> Callable[[str], str]:
    return lambda folder: command("import", "--from", project, f"{folder}/{source}", f"{folder}/made/out.safetensors")


def of_checkpoint(name: str, *words: str, source: str = "x.pt") -> Callable[[str], str]:
    return lambda folder: command(name, f"{folder}/{source}", *(word.format(folder) for word in words))


def function(call: Callable[[str], Any], source: str) -> Callable[[str], str]:
    def door(folder: str) -> str:
        try:
            call(f"{folder}/{source}")
        except (CheckpointError, FormatError, ValueError) as error:
            return str(error)
        return ""

    return door


MADE = "{0}/made/out"
OF_TORCH: dict[str, Callable[[str], str]] = {
    **{f"import {project}": imported(project, "x.pt") for project in ("insightface", "adaface", "cvlface")},
    **{f"import {project}": imported(project, "x.pt") for project in ("facenet-pytorch", "linear", "lvface", "pml")},
    "import ranks": imported("insightface", "first"),
    "import checkpoints": imported("insightface", "second"),
    "import classifiers": imported("cvlface", "classifiers"),
    "import a hub's folder": imported("cvlface", "hub"),
    "export": of_checkpoint("export", MADE, "--to", "linear"),
    "verify": of_checkpoint("verify"),
    "inspect": of_checkpoint("inspect"),
    "merge": of_checkpoint("merge", MADE + ".safetensors"),
    "drop": of_checkpoint("drop", MADE, "--classes", "1"),
    "fuse": of_checkpoint("fuse", MADE, "--classes", "1,2"),
    "append": of_checkpoint("append", MADE, "--count", "2"),
    "init_from": function(open_weights, "x.pt"),
    "init_from a hub's folder": function(open_weights, "transformers"),
    "load_from_checkpoint": function(load_from_checkpoint, "x.pt"),
    "network": function(network, "x.pt"),
    "resume": function(resume, "x.pt"),
}
OF_FOLDERS: dict[str, Callable[[str], str]] = {
    "load_from_checkpoint": function(load_from_checkpoint, "ours.ckpt"),
    "network": function(network, "ours.ckpt"),
    "resume": function(resume, "ours.ckpt"),
    "merge": of_checkpoint("merge", MADE + ".safetensors", source="ours.ckpt"),
    "drop": of_checkpoint("drop", MADE, "--classes", "1", source="ours.ckpt"),
    "export": of_checkpoint("export", MADE, "--to", "linear", source="ours.ckpt"),
    "init_from": function(open_weights, "ours.ckpt"),
}
OF_ARRAYS: dict[str, Callable[[str], str]] = {
    "import plsc": imported("plsc", "x.pdparams"),
    "import plsc's ranks": imported("plsc", "plsc"),
    "import plsc's optimizers": imported("plsc", "optimizers"),
    "import mxnet": imported("mxnet", "x.pdparams"),
    "a verification set": function(BinImages, "x.bin"),
}
DOORS = {"torch": OF_TORCH, "folders": OF_FOLDERS, "arrays": OF_ARRAYS}
# Where a pickle is not even looked at, what stands there is said instead.
OTHERWISE = {"import mxnet": "no file of mx.nd.save"}


def through(kind: str, folder: str) -> dict[str, str]:
    return {name: door(folder) for name, door in DOORS[kind].items()}


# -- the files


def harmless(folder: Path) -> Path:
    """What several files make up, as its owner wrote it; of each attack one is another."""
    (folder / "made").mkdir(parents=True)
    first_generation(folder / "first", 2)
    second_generation(folder / "second", 2)
    classifiers(folder / "classifiers")
    for name in ("plsc", "optimizers"):
        plsc_files(folder / name, 2)
    write(folder / "ours.ckpt", checkpoint(), folder=True)
    return folder


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # it may be a link to the owner's
    path.write_bytes(content)


def with_torch(folder: Path, make: Callable[[Path], None]) -> None:
    """Everything that holds a file of ``torch.save``, with the attacker's in its place, of several the second."""
    make(folder / "x.pt")
    for place in IN_FOLDERS:
        put(folder / place, (folder / "x.pt").read_bytes())


IN_FOLDERS = (
    "first/rank_1_softmax_weight.pt",
    "second/checkpoint_gpu_1.pt",
    "classifiers/classifier_rank1.pt",
    "hub/pretrained_model/model.pt",
    "transformers/pytorch_model.bin",
)


def with_folder(folder: Path, make: Callable[[Path], None] | None) -> None:
    """A checkpoint folder of one rank whose small parts are the attacker's, checksums and all; None for nobody's."""
    path = folder / "ours.ckpt"
    if make is None:
        return
    small = path / small_name(0)
    small.unlink()
    make(small)
    manifest = Manifest.read(path)
    manifest.files[small.name] = FileEntry(small.stat().st_size, sums(small))
    (path / MANIFEST).unlink()
    manifest.write(path)


def sums(path: Path) -> list[int]:
    content = path.read_bytes()
    return [zlib.crc32(content[at : at + BLOCK]) for at in range(0, len(content), BLOCK)]


def with_arrays(folder: Path, value: bytes) -> None:
    """Pickles that are not torch's."""
    content = b"\x80\x04}" + text("head.weight") + value + b"s."
    put(folder / "x.bin", b"\x80\x04](C\x01aC\x01ae]\x88a" + value + b"\x87.")
    for place in ("x.pdparams", "plsc/latest_rank1.pdparams", "optimizers/latest_rank1.pdopt"):
        put(folder / place, content)


def attacks(kind: str, root: Path, line: str) -> dict[str, str]:
    """Writes them all, a folder each, and ``good`` beside them; what is to be named of each."""
    owners, attack = harmless(root / "owners"), WRITERS[kind]

    def folder(name: str) -> Path:
        return Path(shutil.copytree(owners, root / name, copy_function=os.link))

    named = {}
    for name, (value, named[name]) in programs(line).items():
        attack(folder(name), value if kind == "arrays" else functools.partial(write_torch, pickled=torch_pickle(value)))
    for name, (make, what) in archives(line).items() if kind != "arrays" else ():
        attack(folder(name), make)
        named[name] = what
    good = {"arrays": b"K\x01", "torch": functools.partial(torch.save, checkpoint()), "folders": None}
    attack(folder("good"), good[kind])
    return named


WRITERS: dict[str, Callable[[Path, Any], None]] = {"torch": with_torch, "folders": with_folder, "arrays": with_arrays}


Made = tuple[dict[str, Seen], dict[str, str], Path]


@pytest.fixture(scope="module", params=list(DOORS))
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Every attack at every door of a kind, under the audit hook; what is to be named of each; the witness."""
    kind = request.param
    root = tmp_path_factory.mktemp(kind)
    witness = root / "it_ran"
    named = attacks(kind, root, f"touch {witness}")
    cases = {name: {"kind": kind, "folder": str(root / name)} for name in named}
    result = watch(
        "tests.unit.test_hostile_doors:through",
        cases,
        readable=[root],
        writable=[root / name / "made" for name in named],
        warm={"kind": kind, "folder": str(root / "good")},
        memory=24 << 30,
        timeout=240,
    )
    return result, named, witness


def test_nothing_runs_and_nothing_is_written(seen: Made) -> None:
    result, named, witness = seen
    assert set(result) == set(named)
    for name, found in result.items():
        assert found.offences == [], name
        assert found.error == "", f"{name}: {found.message}"
        assert found.grown < 300, name  # MiB
        assert not os.listdir(witness.parent / name / "made"), name
    assert not witness.exists()


def test_one_line_names_what_was_found(seen: Made) -> None:
    result, named, witness = seen
    for name, found in result.items():
        for door, said in found.value.items():
            where = f"{name}, {door}: {said!r}"
            assert said.isprintable(), where
            assert len(said) < LIMIT + 2 * len(str(witness)), where
            assert re.search(OTHERWISE.get(door, named[name]), said), where
