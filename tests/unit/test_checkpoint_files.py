"""Files of a checkpoint: layouts that cover every row once, sealed single files, and nothing but one kind of error."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import pickle
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lightning_pfc.checkpoint import CheckpointError, Manifest, load_folder, verify_folder
from lightning_pfc.checkpoint.archive import load_archive
from lightning_pfc.checkpoint.blocks import BlockWriter
from lightning_pfc.checkpoint.manifest import MANIFEST, _digest
from lightning_pfc.checkpoint.publish import prepare_file, prepare_folder
from lightning_pfc.checkpoint.reader import read_checkpoint
from lightning_pfc.checkpoint.seal import SEAL_BLOCK, SealWriter, read_seal
from lightning_pfc.checkpoint.single import load_file, save_file
from lightning_pfc.commands.ckpt import main
from lightning_pfc.distributed import Comm
from lightning_pfc.storage.makers import this_host
from tests.file_limit import no_file_over

WEIGHT = "state_dict/head.weight"
SMALL = "rank-00000.pt"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    path = Path(__file__).parents[2] / "recipes" / "benchmarks" / "checkpoint_fuzz" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz_checkpoints", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(recipe: ModuleType, tmp_path: Path) -> Path:
    recipe.write_folder(tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


@pytest.fixture
def file(recipe: ModuleType, tmp_path: Path) -> Path:
    save_file(tmp_path / "b.ckpt", recipe.make_checkpoint())
    return tmp_path / "b.ckpt"


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """A reader that waits for ever is ended."""

    def late(*args: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# -- fuzzing: a thousand a reader; recipes/benchmarks/checkpoint_fuzz/fuzz.py does more


@pytest.mark.parametrize("target", ["bytes-folder", "fitted-manifest", "fitted-small", "bytes-file", "fitted-file"])
def test_damaged_checkpoints_are_refused_by_one_kind_of_error(recipe: ModuleType, target: str) -> None:
    result = recipe.fuzz(target, 1000, seed=1)
    assert result["read"] + result["refused"] == 1000
    if target.startswith("bytes"):
        assert result["read"] == 0, "a changed byte was not found"
    else:
        assert result["refused"] > 300
    assert result["growth"] < 100  # MiB


# -- the layout, with a digest that fits


def _weight(content: Any) -> Any:
    return content["tensors"][WEIGHT]


def _chunk(content: Any) -> Any:
    return _weight(content)["chunks"][0]


def _split(content: Any, *parts: tuple[int, int]) -> None:
    """Have the weight lie in parts: first row and rows."""
    [chunk] = _weight(content)["chunks"]
    row = 4 * chunk["shape"][1]
    _weight(content)["chunks"] = [
        {**chunk, "start": chunk["start"] + first * row, "offset": [first, 0], "shape": [rows, chunk["shape"][1]]}
        for first, rows in parts
    ]


LAYOUTS: dict[str, tuple[Callable[[Any], object], str]] = {
    "no chunks": (lambda c: _weight(c).update(chunks=[]), "row 0 of .* lies nowhere"),
    "a row without a chunk": (lambda c: _split(c, (0, 20), (21, 29)), "row 20 of .* lies nowhere"),
    "the last row": (lambda c: _split(c, (0, 49)), "row 49 of .* lies nowhere"),
    "an overlap": (lambda c: _split(c, (0, 30), (20, 30)), "row 20 of .* lies twice"),
    "twice": (lambda c: _split(c, (0, 50), (0, 50)), "row 0 of .* lies twice"),
    "behind the rows": (lambda c: _split(c, (0, 50), (50, 1)), "ends behind its 50 rows"),
    "a negative start": (lambda c: _chunk(c).update(start=-8), "start of a part .* is -8"),
    "a start behind the file": (lambda c: _chunk(c).update(start=1 << 40), "ends behind the .* bytes of rank-00000"),
    "a start of another type": (lambda c: _chunk(c).update(start="0"), "start of a part .* is '0'"),
    "a negative offset": (lambda c: _chunk(c).update(offset=[-1, 0]), "the offset of a part"),
    "half a row": (lambda c: _chunk(c).update(offset=[0, 4]), "not whole rows"),
    "true for one": (lambda c: _weight(c).update(shape=[50, True]), "the shape of"),
    "a huge shape": (lambda c: _weight(c).update(shape=[1 << 62, 8]), "the shape of"),
    "a huge shape without rows": (lambda c: _weight(c).update(shape=[0, 10**30], chunks=[]), "the shape of"),
    "rows in a pickle": (lambda c: _chunk(c).update(file=SMALL, start=0), "not a file of tensors"),
    "a float": (lambda c: _weight(c).update(shape=[50.0, 8]), "the shape of"),
    "an unknown dtype": (lambda c: _weight(c).update(dtype=["F32"]), "dtype"),
    "another dtype": (lambda c: _weight(c).update(dtype="F64"), "lie in the same bytes|ends behind"),
    "two tensors in one place": (
        lambda c: _chunk(c).update(start=c["tensors"]["state_dict/backbone.weight"]["chunks"][0]["start"]),
        "lie in the same bytes",
    ),
    "no files": (lambda c: c.update(files={}, tensors={}), "it names no files"),
    "no small file": (lambda c: c["files"].pop(SMALL), "no file rank-00000.pt"),
    "more ranks than files": (lambda c: c.update(world_size=2), "no file rank-00001.pt"),
    "ranks of another type": (lambda c: c.update(world_size=None), "world_size is None"),
    "too few checksums": (lambda c: c["files"][SMALL].update(crc32=[]), "needs 1 checksums"),
    "a negative size": (lambda c: c["files"][SMALL].update(size=-1), "the size of"),
    "a list of checksums": (lambda c: c["files"][SMALL].update(crc32=[[0]]), "not a number of 32 bits"),
    "a file elsewhere": (lambda c: c["files"].update({"../x": c["files"][SMALL]}), "not a file of this checkpoint"),
    "a hidden file": (lambda c: c["files"].update({".x": c["files"][SMALL]}), "not a file of this checkpoint"),
    "a step": (lambda c: c["info"].update(global_step="7"), "global_step is '7'"),
    "a list": (lambda c: c.update(tensors=[]), "AttributeError"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_checked_before_a_byte_is_read(folder: Path, name: str) -> None:
    change, message = LAYOUTS[name]
    content = json.loads((folder / MANIFEST).read_text())
    content.pop("sha256")
    change(content)
    (folder / MANIFEST).write_text(json.dumps({"sha256": _digest(content), **content}))
    for path in folder.glob("rank-*"):
        path.chmod(0)
        path.unlink()  # whoever opens one says so
    for read in (Manifest.read, verify_folder, read_checkpoint):
        with pytest.raises(CheckpointError, match=f"manifest.json cannot be used: .*({message})"):
            read(folder)
    assert main(["verify", str(folder)]) == 1


def test_a_manifest_of_nested_lists_is_an_error_like_others(folder: Path) -> None:
    (folder / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be used: RecursionError"):
        Manifest.read(folder)


def test_verify_says_what_it_verified(folder: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "each row of them in one place" in text
    assert f"{WEIGHT} 50x8" in text
    assert "3 files" in text  # of two ranks, and the names of the classes
    assert main(["verify", str(file)]) == 0
    assert "the checksums of all its bytes match" in capsys.readouterr().out
    assert main(["verify", str(folder / MANIFEST)]) == 1
    assert main(["verify", str(folder / "nothing")]) == 2


# -- what is not a file


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "link"])
@pytest.mark.parametrize("name", [SMALL, "rank-00000.safetensors", MANIFEST])
def test_only_ordinary_files_of_the_folder_are_opened(folder: Path, tmp_path: Path, name: str, kind: str) -> None:
    target = folder / name
    (tmp_path / "elsewhere").write_bytes(target.read_bytes())
    target.unlink()
    if kind == "fifo":
        os.mkfifo(target)
    elif kind == "device":
        target.symlink_to("/dev/zero")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to(tmp_path / "elsewhere")
    with time_limit(10):
        for read in (verify_folder, read_checkpoint, lambda path: load_folder(path, Comm.single(), _Anything())):
            with pytest.raises(CheckpointError, match=name if name != MANIFEST else "a.ckpt"):
                read(folder)
        assert main(["verify", str(folder)]) == 1


class _Anything:
    def __call__(self, key: str, stored: Any) -> None:
        return None

    def wants(self, key: str) -> bool:
        return True


def test_a_fifo_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "last.ckpt")
    with time_limit(10):
        with pytest.raises(CheckpointError, match="a FIFO"):
            load_file(tmp_path / "last.ckpt")
        for command in (["verify"], ["inspect"], ["drop", "--classes", "1"]):
            words = [command[0], str(tmp_path / "last.ckpt"), *([str(tmp_path / "out")] if command[1:] else [])]
            assert main([*words, *command[1:]]) == 1


# -- one file, sealed


def test_every_byte_of_a_file_is_under_a_checksum(file: Path, recipe: ModuleType) -> None:
    data = file.read_bytes()
    assert load_file(file)["global_step"] == 7
    for place in [*range(0, len(data), 97), *range(len(data) - 60, len(data))]:
        changed = bytearray(data)
        changed[place] ^= 4
        file.write_bytes(changed)
        with pytest.raises(CheckpointError):
            load_file(file)


def test_torch_and_zipfile_read_a_sealed_file(file: Path, recipe: ModuleType) -> None:
    content, expected = torch.load(file, weights_only=True), recipe.make_checkpoint()
    assert torch.equal(content["state_dict"]["head.weight"], expected["state_dict"]["head.weight"])
    assert content["hyper_parameters"] == expected["hyper_parameters"]
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None


def test_a_file_may_be_read_altered_and_saved_by_torch(file: Path) -> None:
    content = torch.load(file, weights_only=True)
    content["global_step"] = 8
    torch.save(content, file)
    assert load_file(file)["global_step"] == 8


def test_files_of_others_are_checked_by_the_sums_of_their_records(tmp_path: Path, recipe: ModuleType) -> None:
    path = tmp_path / "plain.ckpt"
    torch.save(recipe.make_checkpoint(), path)
    assert main(["verify", str(path)]) == 0
    weight = recipe.make_checkpoint()["state_dict"]["head.weight"].numpy().tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(weight) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        load_file(path)
    assert main(["verify", str(path)]) == 1


def test_blocks_are_summed_up_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_pfc.checkpoint.seal.SEAL_BLOCK", 1000)
    assert SEAL_BLOCK == 64 << 20
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.arange(999)}}, buffer)
    data = buffer.getvalue()
    written = []
    for step in (1, 7, 22, 23, 500, len(data)):
        out = io.BytesIO()
        writer = SealWriter(out.write)
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])
        writer.finish()
        written.append(out.getvalue())
        seal = read_seal(out)
        assert seal is not None
        assert (seal.size, len(seal.crc32)) == (len(data), -(-len(data) // 1000))
        seal.check(out)
    assert len(set(written)) == 1


# -- what a file claims


class _Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def _packed(path: Path) -> None:
    """A zip file that is small as long as it is packed."""
    torch.save({"state_dict": {"head.weight": torch.zeros(1 << 22)}}, path)
    records = {}
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data)


def _itself(path: Path) -> None:
    tree: list[Any] = []
    tree.append(tree)
    torch.save({"state_dict": {}, "loops": tree}, path)


def _doubling(path: Path) -> None:
    tree: list[Any] = [1]
    for _ in range(40):
        tree = [tree, tree]
    torch.save({"state_dict": {}, "loops": tree}, path)


CLAIMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "expanded": (
        lambda path: torch.save({"state_dict": {"w": torch.zeros(1).expand(1 << 40)}}, path),
        "claims the shape",
    ),
    "packed": (_packed, "is packed"),
    "in itself": (_itself, "without end"),
    "doubling": (_doubling, "without end"),
    "code": (lambda path: torch.save({"state_dict": _Bomb(str(path.parent / "made"))}, path), "could run code"),
    "not a zip": (lambda path: path.write_bytes(pickle.dumps({"state_dict": {}})), "not a file of torch.save"),
    "a list": (lambda path: torch.save([1], path), "a checkpoint is a dict"),
    "no weights": (lambda path: torch.save({"epoch": 1}, path), "has no state_dict"),
    "empty": (lambda path: path.write_bytes(b""), "not a file of torch.save"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_what_a_file_claims_is_bounded(name: str, tmp_path: Path) -> None:
    make, message = CLAIMS[name]
    path = tmp_path / "x.ckpt"
    make(path)
    with time_limit(60), pytest.raises(CheckpointError, match=message) as caught:
        load_file(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "made").exists()
    assert main(["verify", str(path)]) == 1


def test_what_a_small_file_claims_is_bounded() -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(1).expand(1 << 40)}, buffer)
    buffer.seek(0)
    with pytest.raises(ValueError, match="claims the shape"):
        load_archive(buffer)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_centers_that_cannot_be_read(
    folder: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    centers = tmp_path / f"centers{suffix}"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 8), }"
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    for data in (b"", b"\xff" * 50, (1 << 40).to_bytes(8, "little"), npy):
        centers.write_bytes(data)
        capsys.readouterr()
        assert main(["append", str(folder), str(tmp_path / "out"), "--centers", str(centers)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# -- the first cause


def write_blocks(path: Path, count: int) -> None:
    with BlockWriter(path) as out:
        for _ in range(count):
            out.write(b"x" * (8 << 20))


def test_a_full_disk_is_what_is_said(tmp_path: Path, recipe: ModuleType) -> None:
    save_file(tmp_path / "a.ckpt", recipe.make_checkpoint())
    large = {**recipe.make_checkpoint(), "state_dict": {"w": torch.zeros(6 << 20)}}
    with no_file_over(9 << 20):
        with pytest.raises(CheckpointError, match=r"File too large"):
            save_file(tmp_path / "a.ckpt", large)
        with pytest.raises(OSError, match="File too large"):
            write_blocks(tmp_path / "blocks", 3)
    (tmp_path / "blocks").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
    assert load_file(tmp_path / "a.ckpt")["global_step"] == 7


def test_what_a_signal_raises_during_a_save_is_not_a_failed_save(tmp_path: Path, recipe: ModuleType) -> None:
    class Killed:
        """Raises while it is pickled, as the handler for a lost loader worker does."""

        def __reduce__(self) -> Any:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    for save in (
        lambda: save_file(tmp_path / "a.ckpt", {**recipe.make_checkpoint(), "x": Killed()}),
        lambda: recipe.save_folder(tmp_path / "b.ckpt", {"x": Killed()}, {}, Comm.single(), {}),
    ):
        with pytest.raises(RuntimeError, match=r"^DataLoader worker .* is killed") as caught:
            save()
        assert not isinstance(caught.value, CheckpointError)
    assert list(tmp_path.iterdir()) == []


# -- what died runs have left


def test_only_what_is_dead_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node")
    process = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(process, 0)
    dead, old, node = f"{process}-0123abcd", 3 * 86_400, this_host()
    names = {
        f".pfc-saving-{node}-{dead}": False,
        f".pfc-removing-{node}-{dead}": False,
        f".pfc-saving-node-2-{dead}": True,  # of the host node-2, which is not this one
        f".pfc-saving-node.17-{dead}": True,  # of a container with the name of this host and numbers of its own
        f".pfc-saving-{node.rpartition('.')[0]}.00000000-{dead}": True,  # of another host with the name of this one
        f".pfc-saving-{node}-{os.getppid()}-0123abcd": True,  # its process runs
        f".pfc-saving-other-{dead}": True,
        f".pfc-saving-old-{dead}": False,  # nothing was written to it for days
        ".pfc-saving-notes": True,
    }
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "rank-00000.pt").write_bytes(b"x")
        if "-old-" in name:
            for path in (tmp_path / name / "rank-00000.pt", tmp_path / name):
                os.utime(path, (path.stat().st_mtime - old,) * 2)
    prepare_folder(tmp_path / "a.ckpt").rmdir()
    prepare_file(tmp_path / "b.ckpt")
    assert {path.name for path in tmp_path.iterdir()} == {name for name, stays in names.items() if stays}
