"""What a data set may not do: no file outside it is opened, none written, nothing run, nothing waited for, no room made
for mere claims. Every reader and importer, in a process under an audit hook."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tests.audit import Seen, watch

SECRET = b"secret of somebody else"


def jpeg(seed: int = 0, size: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((size, size)).save(out, "JPEG")
    return out.getvalue()


# --- what runs in the other process -----------------------------------------------------------------------------------


def read(kind: str, path: str, **more: Any) -> list[str]:
    """Opens what lies at a path and reads all of it; how the things that were read begin."""
    found = READERS[kind](Path(path), **more)
    return [data[:40].hex() if isinstance(data, bytes) else str(data)[:200] for data in found]


def _images(format: str) -> Callable[..., Iterator[bytes]]:
    def reader(path: Path, **more: Any) -> Iterator[bytes]:
        from lightning_pfc.data.formats import open_images

        images = open_images(path, format, **more)
        for place in range(len(images)):
            images.locate(place)
            images.name(place)
            yield images.read(place)

    return reader


def _source(path: Path, **more: Any) -> Iterator[Any]:
    from lightning_pfc.data import Files

    source = Files(path=path, image_size=16, fit="crop", **more)
    source.prepare()
    data = source.open()
    yield data.train.fetch(np.arange(data.num_images)).shape


def _bin(path: Path) -> Iterator[bytes]:
    from lightning_pfc.evaluation import BinImages

    images = BinImages(path)
    images.pairs()
    for place in range(len(images)):
        yield images.read(place)


def _pairs(path: Path, **more: Any) -> Iterator[bytes]:
    from lightning_pfc.evaluation import PairedImages

    images = PairedImages(path, **more)
    for place in range(len(images)):
        yield images.read(place)


def _faces(path: Path, **more: Any) -> Iterator[Any]:
    from lightning_pfc.evaluation.faces import open_faces

    faces = open_faces(path, (3, 16, 16), **more)
    if faces.embeddings is not None:
        yield from faces.embeddings.tolist()
    elif faces.images is not None:
        yield faces.images.fetch(np.arange(len(faces))).numpy().tobytes()


def _ijb(path: Path) -> Iterator[Any]:
    from lightning_pfc.evaluation import EvaluationSettings, Evaluator, TorchEmbedder

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4))
    evaluator = Evaluator(
        TorchEmbedder(network, (3, 16, 16)), EvaluationSettings(replicates=0, fars=(), ranks=(1,), fpirs=(0.5,))
    )
    result = evaluator.run("ijb", {"type": "ijb", "root": str(path), "subset": "ijbb"})
    yield result.description
    for measured in result.measurements:
        yield measured.value


def _align(path: Path, target: str) -> Iterator[str]:
    from lightning_pfc.data.curation.alignment import align_files

    done, failures = align_files(path / "points.tsv", path, target, size=16, progress=False)
    if failures:
        raise ValueError(failures[0])
    yield str(done)


def _glyphs(path: Path) -> Iterator[Any]:
    from lightning_pfc.data.glyphs.store import _open
    from lightning_pfc.data.images import ArrayImages

    store = _open(path, "key")
    yield ArrayImages(store.images).fetch(np.arange(len(store.images))).numpy().tobytes()


def _fonts(path: Path) -> Iterator[str]:
    from lightning_pfc.data.glyphs.fonts import debian_fonts

    yield from sorted({face.digest() for face in debian_fonts([path]).faces})


def _array(path: Path) -> Iterator[Any]:
    from lightning_pfc.data.arrays import NpyFile, read_npz

    if path.suffix == ".npy":
        rows = NpyFile(path)
        yield rows[np.arange(len(rows))].tobytes()
    else:
        for array in read_npz(path, ("emb", "label"))[0].values():
            yield array.tobytes()


def _command(path: Path, words: list[str]) -> Iterator[str]:
    """``pfc-data WORDS``; for ``{path}`` stands the path."""
    import contextlib

    from lightning_pfc.commands.data import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main([word.replace("{path}", str(path)) for word in words])
    if status == 2:
        raise ValueError(said.getvalue())
    yield said.getvalue()


def _onnx(path: Path) -> Iterator[Any]:
    from lightning_pfc.evaluation import OnnxEmbedder

    yield OnnxEmbedder(path)(torch.zeros((1, 3, 2, 2), dtype=torch.uint8)).tolist()


READERS: dict[str, Callable[..., Iterator[Any]]] = {
    **{name: _images(name) for name in ("folder", "list", "parquet", "huggingface", "webdataset", "recordio")},
    "source": _source,
    "bin": _bin,
    "pairs": _pairs,
    "faces": _faces,
    "ijb": _ijb,
    "align": _align,
    "glyphs": _glyphs,
    "fonts": _fonts,
    "array": _array,
    "command": _command,
    "onnx": _onnx,
}


# --- harmless data of each kind ---------------------------------------------------------------------------------------


def make_folder(root: Path) -> Path:
    for name in ("ann", "bob"):
        (root / name).mkdir(parents=True)
        for number in range(2):
            (root / name / f"{number}.jpg").write_bytes(jpeg(number))
    return root


def make_parquet(path: Path, rows: list[Any], labels: list[Any] | None = None) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, kind), "label": labels or [0] * len(rows)})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return path


def make_saved(root: Path, filename: str = "data.arrow", rows: list[Any] | None = None) -> Path:
    """What ``save_to_disk`` writes."""
    import pyarrow as pa

    root.mkdir(parents=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows or [{"bytes": jpeg(), "path": None}], kind), "label": [0]})
    with pa.OSFile(str(root / "data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    features = {"image": {"_type": "Image"}, "label": {"names": ["ann"], "_type": "ClassLabel"}}
    (root / "dataset_info.json").write_text(json.dumps({"features": features}))
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": filename}]}))
    return root


def make_tar(path: Path, names: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def make_records(path: Path) -> Path:
    from lightning_pfc.data.formats.recordio_writer import RecordWriter, pack_image

    path.parent.mkdir(parents=True, exist_ok=True)
    with RecordWriter(path) as writer:
        for number in range(3):
            writer.write(pack_image(number // 2, jpeg(number), key=number))
    return path


def make_ijb(root: Path) -> Path:
    (root / "loose_crop").mkdir(parents=True)
    (root / "meta").mkdir()
    names = [f"{n}.jpg" for n in range(1, 5)]
    for number, name in enumerate(names):
        (root / "loose_crop" / name).write_bytes(jpeg(number, 112))
    meta = root / "meta"
    (meta / "ijbb_face_tid_mid.txt").write_text("".join(f"{name} {n} {n}\n" for n, name in enumerate(names, 1)))
    points = "38 51 73 51 56 71 41 92 70 92"
    (meta / "ijbb_name_5pts_score.txt").write_text("".join(f"{name} {points} 0.9\n" for name in names))
    (meta / "ijbb_template_pair_label.txt").write_text("1 2 1\n1 3 0\n2 4 0\n3 4 1\n")
    (meta / "ijbb_1N_gallery_S1.csv").write_text("TEMPLATE_ID,SUBJECT_ID\n1,1\n3,2\n")
    (meta / "ijbb_1N_gallery_S2.csv").write_text("TEMPLATE_ID,SUBJECT_ID\n2,1\n")
    (meta / "ijbb_1N_probe_mixed.csv").write_text("TEMPLATE_ID,SUBJECT_ID\n2,1\n4,2\n")
    return root


def make_glyphs(root: Path) -> Path:
    root.mkdir(parents=True)
    np.save(root / "images.npy", np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8))
    np.savez(root / "table.npz", codepoints=np.array([65, 66], np.uint32), designs=np.zeros(2, np.uint8))
    (root / "info.json").write_text(json.dumps({"designs": ["a"], "heldout": [], "description": {}}))
    return root


def make_onnx(path: Path, location: str | None = None) -> Path:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    path.parent.mkdir(parents=True, exist_ok=True)
    weight = onnx.numpy_helper.from_array(np.ones((12, 2), np.float32), "weight")
    if location is not None:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "96")):
            weight.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["data"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], ["out"])],
        "g",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 2, 2])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 2])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def make_fonts(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "uming.ttc").write_bytes(b"a font")
    return root


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Arguments of :func:`read` for harmless data of each kind."""
    root = tmp_path_factory.mktemp("good")
    folder = make_folder(root / "folder")
    (root / "folder.tsv").write_text("folder/ann/0.jpg\tann\nfolder/bob/1.jpg\tbob\n")
    (root / "pairs.txt").write_text("folder/ann/0.jpg folder/ann/1.jpg 1\nfolder/ann/0.jpg folder/bob/1.jpg 0\n")
    (root / "p.bin").write_bytes(pickle.dumps(([jpeg()] * 4, [True, False])))
    np.savez(root / "e.npz", emb=np.eye(3, dtype=np.float32), label=np.arange(3))
    np.save(root / "e.npy", np.eye(3, dtype=np.float32))
    (root / "npy" / "ann").mkdir(parents=True)
    np.save(root / "npy" / "ann" / "1.npy", np.ones(4, np.float32))
    (folder / "points.tsv").write_text("ann/0.jpg\t2\t2\t9\t2\t5\t6\t3\t9\t8\t9\n")
    make_parquet(root / "t" / "data" / "train-00000-of-00001.parquet", [{"bytes": jpeg(), "path": None}])
    (root / "suspects.tsv").write_text("image\treason\n0\tbroken\n")
    return {
        "folder": {"kind": "folder", "path": str(folder)},
        "source": {"kind": "source", "path": str(folder)},
        "list": {"kind": "list", "path": str(root / "folder.tsv")},
        "parquet": {"kind": "parquet", "path": str(root / "t")},
        "arrow": {
            "kind": "parquet",
            "path": str(make_parquet(root / "t.arrow", [{"bytes": None, "path": "folder/ann/0.jpg"}])),
        },
        "huggingface, saved": {"kind": "huggingface", "path": str(make_saved(root / "saved"))},
        "huggingface, tables": {"kind": "huggingface", "path": str(root / "t")},
        "webdataset": {
            "kind": "webdataset",
            "path": str(make_tar(root / "a.tar", {"1.jpg": jpeg(), "1.cls": b"0"})),
        },
        "recordio": {"kind": "recordio", "path": str(make_records(root / "a.rec"))},
        "bin": {"kind": "bin", "path": str(root / "p.bin")},
        "pairs": {"kind": "pairs", "path": str(root / "pairs.txt")},
        "faces, images": {"kind": "faces", "path": str(folder)},
        "faces, npz": {"kind": "faces", "path": str(root / "e.npz")},
        "faces, npy": {"kind": "faces", "path": str(root / "npy")},
        "ijb": {"kind": "ijb", "path": str(make_ijb(root / "ijb"))},
        "align": {"kind": "align", "path": str(folder), "target": str(root / "aligned")},
        "glyphs": {"kind": "glyphs", "path": str(make_glyphs(root / "glyphs"))},
        "fonts": {"kind": "fonts", "path": str(make_fonts(root / "fonts"))},
        "npy": {"kind": "array", "path": str(root / "e.npy")},
        "npz": {"kind": "array", "path": str(root / "e.npz")},
        "onnx": {"kind": "onnx", "path": str(make_onnx(root / "m" / "m.onnx"))},
        "check": {"kind": "command", "path": str(folder), "words": ["check", "{path}", "--quiet"]},
        "exclude": {
            "kind": "command",
            "path": str(root / "suspects.tsv"),
            "words": ["convert", str(folder), str(root / "aligned" / "out"), "--to", "folder", "--exclude", "{path}",
                      "--quiet"],
        },
    }  # fmt: skip


def warmed(good: dict[str, dict[str, Any]], tmp: Path) -> list[dict[str, Any]]:
    """The same calls once more, with targets of their own."""
    calls = []
    for arguments in good.values():
        changed = json.loads(json.dumps(arguments).replace("/aligned", f"/aligned-{tmp.name}"))
        calls.append(changed)
    return calls


@pytest.fixture(scope="module")
def seen(good: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Seen]]:
    """What each reader did with harmless, hostile and huge data: one process, since its imports take the time."""
    tmp = tmp_path_factory.mktemp("hostile")
    root, outside, huge = tmp / "data", tmp / "outside", tmp / "huge"
    for folder in (root, outside, huge):
        folder.mkdir()
    (outside / "secret.jpg").write_bytes(SECRET)
    (outside / "table.txt").write_bytes(SECRET)
    np.save(outside / "1.npy", np.frombuffer(SECRET + bytes(1), np.float32))
    make_tar(outside / "1.tar", {"2.jpg": SECRET, "2.cls": b"0"})
    make_parquet(outside / "1.parquet", [{"bytes": SECRET, "path": None}])
    make_parquet(outside / "data.arrow", [{"bytes": SECRET, "path": None}])
    harmless = Path(good["list"]["path"]).parent
    groups = {"good": good, "hostile": hostile(root, outside), "huge": bombs(huge)}
    found = watch(
        "tests.unit.test_data_safety:read",
        {f"{group}/{name}": arguments for group, cases in groups.items() for name, arguments in cases.items()},
        readable=[root, harmless, huge],
        writable=[root / "aligned", harmless / "aligned"],
        warm=warmed(good, tmp),
        memory=12 << 30,  # who fills it dies alone
    )
    assert len(found) == sum(map(len, groups.values()))
    return {group: {name: found[f"{group}/{name}"] for name in cases} for group, cases in groups.items()}


def test_reading_opens_nothing_else_writes_nothing_and_runs_nothing(seen: dict[str, dict[str, Seen]]) -> None:
    """Every reader on harmless data: what it opens lies in the data, and nothing else happens."""
    for name, found in seen["good"].items():
        assert not found.offences, (name, found.offences)
        assert not found.error, (name, found.message)
        assert found.value, name


# --- names that lead elsewhere ----------------------------------------------------------------------------------------


def hostile(root: Path, outside: Path) -> dict[str, dict[str, Any]]:
    """Data of each kind whose names lead out of it, or to what is no regular file."""
    secret = outside / "secret.jpg"
    up = os.path.relpath(secret, root)

    def linked(name: str, target: Path, kind: str) -> dict[str, Any]:
        folder = make_folder(root / name)
        (folder / "ann" / "9.jpg").symlink_to(target)
        return {"kind": kind, "path": str(folder)}

    def with_fifo(name: str, kind: str) -> dict[str, Any]:
        folder = make_folder(root / name)
        os.mkfifo(folder / "ann" / "9.jpg")
        return {"kind": kind, "path": str(folder)}

    cases: dict[str, dict[str, Any]] = {
        "folder: link to a file": linked("f1", secret, "folder"),
        "folder: link to a device": linked("f2", Path("/dev/zero"), "folder"),
        "folder: FIFO": with_fifo("f3", "folder"),
        "source: link to a file": linked("f4", secret, "source"),
        "source: FIFO": with_fifo("f5", "source"),
        "faces: FIFO": with_fifo("f6", "faces"),
    }
    (make_folder(root / "f7") / "eve").symlink_to(outside)
    cases["folder: link to a folder"] = {"kind": "folder", "path": str(root / "f7")}
    loop = make_folder(root / "f8") / "ann" / "again"
    loop.symlink_to(root / "f8" / "ann")
    cases["folder: link in a circle"] = {"kind": "folder", "path": str(root / "f8")}

    os.mkfifo(root / "fifo.jpg")
    (root / "inner.jpg").symlink_to(secret)
    for name, path in {
        "absolute": str(secret), "above": up, "link": "inner.jpg", "FIFO": "fifo.jpg", "device": "/dev/zero",
        "kernel": "/proc/self/environ",
    }.items():  # fmt: skip
        (root / f"{name}.tsv").write_text(f"path\tlabel\n{path}\t0\n")
        cases[f"list: {name}"] = {"kind": "list", "path": str(root / f"{name}.tsv")}
        rows = [{"bytes": None, "path": path}]
        cases[f"parquet: {name}"] = {
            "kind": "parquet", "path": str(make_parquet(root / f"{name}.parquet", rows)),
        }  # fmt: skip
        cases[f"arrow: {name}"] = {"kind": "parquet", "path": str(make_parquet(root / f"{name}.arrow", rows))}
        cases[f"huggingface: {name}"] = {"kind": "huggingface", "path": str(make_saved(root / f"hf {name}", rows=rows))}
        (root / f"{name} pairs.txt").write_text(f"{path} {path} 1\n")
        cases[f"pairs: {name}"] = {"kind": "pairs", "path": str(root / f"{name} pairs.txt")}
        ijb = make_ijb(root / f"ijb {name}")
        (ijb / "loose_crop" / "fifo.jpg").symlink_to(root / "fifo.jpg")
        (ijb / "loose_crop" / "inner.jpg").symlink_to(secret)
        for table in ("ijbb_face_tid_mid.txt", "ijbb_name_5pts_score.txt"):
            text = (ijb / "meta" / table).read_text()
            (ijb / "meta" / table).write_text(text.replace("1.jpg ", f"{path} ", 1))
        cases[f"ijb: {name}"] = {"kind": "ijb", "path": str(ijb)}
        align = make_folder(root / f"align {name}")
        (align / "fifo.jpg").symlink_to(root / "fifo.jpg")
        (align / "inner.jpg").symlink_to(secret)
        (align / "points.tsv").write_text(f"{path}\t2\t2\t9\t2\t5\t6\t3\t9\t8\t9\n")
        cases[f"align: {name}"] = {"kind": "align", "path": str(align), "target": str(root / "aligned")}
        if name in ("absolute", "above"):
            folder = root / f"hf file {name}"
            table = outside / "data.arrow"  # type: ignore[assignment]
            saved = make_saved(folder, os.path.relpath(table, folder) if name == "above" else str(table))
            cases[f"huggingface: file {name}"] = {"kind": "huggingface", "path": str(saved)}
            cases[f"onnx: {name}"] = {
                "kind": "onnx", "path": str(make_onnx(root / f"onnx {name}" / "m.onnx", path)),
            }  # fmt: skip
    for link, target in {
        "meta/ijbb_face_tid_mid.txt": outside / "table.txt", "meta/ijbb_1N_gallery_S1.csv": outside / "table.txt",
        "meta/ijbb_template_pair_label.txt": Path("/dev/zero"),
    }.items():  # fmt: skip
        ijb = make_ijb(root / f"ijb {Path(link).stem}")
        (ijb / link).unlink()
        (ijb / link).symlink_to(target)
        cases[f"ijb: {link} is a link"] = {"kind": "ijb", "path": str(ijb)}

    def replaced(make: Callable[[Path], Path], name: str, inner: str, target: Path | None, kind: str) -> dict[str, Any]:
        whole = make(root / name)
        place = whole / inner if whole.is_dir() else whole.with_suffix(inner)
        place.unlink(missing_ok=True)
        if target is None:
            os.mkfifo(place)
        else:
            place.symlink_to(target)
        return {"kind": kind, "path": str(whole)}

    for number, (end, target) in enumerate((("a link", outside / "table.txt"), ("a FIFO", None))):
        cases[f"recordio: .idx is {end}"] = replaced(make_records, f"r{number}.rec", ".idx", target, "recordio")
        cases[f"recordio: names are {end}"] = replaced(make_records, f"n{number}.rec", ".names.txt", target, "recordio")
        for inner in ("info.json", "table.npz", "images.npy"):
            cases[f"glyphs: {inner} is {end}"] = replaced(make_glyphs, f"g{number}{inner}", inner, target, "glyphs")
        for inner in ("state.json", "dataset_info.json", "data.arrow"):
            cases[f"huggingface: {inner} is {end}"] = replaced(
                make_saved, f"h{number}{inner}", inner, target, "huggingface"
            )
        shards = root / f"shards{number}"
        shards.mkdir()
        make_tar(shards / "0.tar", {"1.jpg": jpeg(), "1.cls": b"0"})
        if target is None:
            os.mkfifo(shards / "1.tar")
        else:
            (shards / "1.tar").symlink_to(outside / "1.tar")
        cases[f"webdataset: shard is {end}"] = {"kind": "webdataset", "path": str(shards)}
        cases[f"webdataset: matching shard is {end}"] = {"kind": "webdataset", "path": str(shards / "*.tar")}
        tables = root / f"tables{number}"
        make_parquet(tables / "0.parquet", [{"bytes": jpeg(), "path": None}])
        npy = root / f"npy{number}" / "ann"
        npy.mkdir(parents=True)
        for place, behind in ((tables / "1.parquet", outside / "1.parquet"), (npy / "1.npy", outside / "1.npy")):
            if target is None:
                os.mkfifo(place)
            else:
                place.symlink_to(behind)
        cases[f"parquet: file is {end}"] = {"kind": "parquet", "path": str(tables)}
        cases[f"huggingface: table is {end}"] = {"kind": "huggingface", "path": str(tables)}
        cases[f"faces: npy is {end}"] = {"kind": "faces", "path": str(npy.parent)}
    for kind, suffix in {
        "list": ".tsv", "parquet": ".parquet", "recordio": ".rec", "webdataset": ".tar", "bin": ".bin", "pairs": ".txt",
        "faces": ".npz", "array": ".npy", "onnx": ".onnx",
    }.items():  # fmt: skip
        os.mkfifo(root / f"itself{suffix}")
        cases[f"{kind}: FIFO itself"] = {"kind": kind, "path": str(root / f"itself{suffix}")}
    os.mkfifo(root / "itself.arrow")
    cases["arrow: FIFO itself"] = {"kind": "parquet", "path": str(root / "itself.arrow")}
    card = root / "card"
    (card / "data").mkdir(parents=True)
    (card / "data" / "a.csv").write_text("image,label\na.jpg,0\n")
    for number, files in enumerate((f"[{secret}]", "https://example.org/a.csv", "../../*.csv")):
        (root / f"card{number}").mkdir()
        (root / f"card{number}" / "a.csv").write_text("image,label\na.jpg,0\n")
        (root / f"card{number}" / "README.md").write_text(
            f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n"
        )
        cases[f"huggingface: card {number}"] = {"kind": "huggingface", "path": str(root / f"card{number}")}
    return cases


def test_names_in_data_lead_nowhere_else(seen: dict[str, dict[str, Seen]]) -> None:
    hostile = seen["hostile"]
    wrong = {name: found for name, found in hostile.items() if found.offences or not _refused(found)}
    assert not wrong, wrong
    assert not any(SECRET.hex() in str(found.value) for found in hostile.values())
    slow = {name: found.seconds for name, found in hostile.items() if found.seconds > 2}
    assert not slow, slow
    assert max(found.grown for found in hostile.values()) < 64


def _refused(found: Seen) -> bool:
    """By the documented error, in one line."""
    return found.error in ("FormatError", "BrokenImageError", "ValueError") and len(found.message.splitlines()) == 1


def test_links_inside_and_folders_that_the_user_names_are_followed(tmp_path: Path) -> None:
    store, outside = tmp_path / "faces" / "ann", tmp_path / "outside" / "eve"
    make_folder(tmp_path / "faces")
    outside.mkdir(parents=True)
    (outside / "0.jpg").write_bytes(jpeg(7))
    (tmp_path / "faces" / "zoe").symlink_to(store)
    (tmp_path / "faces" / "bob" / "9.jpg").symlink_to("../ann/0.jpg")
    assert len(read("folder", str(tmp_path / "faces"))) == 7
    (tmp_path / "faces" / "eve").symlink_to(outside)
    with pytest.raises(ValueError, match=rf"eve leads to {outside}.*say so: allow="):
        read("folder", str(tmp_path / "faces"))
    assert len(read("folder", str(tmp_path / "faces"), allow=[str(tmp_path / "outside")])) == 8
    assert read("source", str(tmp_path / "faces"), allow=[str(tmp_path / "outside")]) == ["torch.Size([8, 3, 16, 16])"]
    (tmp_path / "list.tsv").write_text(f"{outside}/0.jpg\teve\n")
    assert len(read("list", str(tmp_path / "list.tsv"))) == 1
    (tmp_path / "faces" / "list.tsv").write_text(f"{outside}/0.jpg\teve\n")
    with pytest.raises(ValueError, match="allow="):
        read("list", str(tmp_path / "faces" / "list.tsv"))
    assert len(read("list", str(tmp_path / "faces" / "list.tsv"), root=str(tmp_path / "outside"))) == 1
    assert len(read("list", str(tmp_path / "faces" / "list.tsv"), allow=str(outside))) == 1
    (tmp_path / "alias").symlink_to(tmp_path / "faces")  # what the user names may be a link
    assert len(read("folder", str(tmp_path / "alias"), allow=[str(tmp_path / "outside")])) == 8
    records = make_records(tmp_path / "store" / "a.rec")
    (tmp_path / "here").mkdir()
    for suffix in (".rec", ".idx"):
        (tmp_path / "here" / f"b{suffix}").symlink_to(records.with_suffix(suffix))
    assert len(read("recordio", str(tmp_path / "here" / "b.rec"))) == 3


# --- sizes that a file claims -----------------------------------------------------------------------------------------


def bombs(root: Path) -> dict[str, dict[str, Any]]:
    """Small files that claim, or unpack to, what no memory holds."""
    long_name = "a" * 3000
    many = {f"{n}.jpg": b"x" for n in range(500)} | {f"{n}.cls": b"0" for n in range(500)}
    ordered = {key: many[key] for key in sorted(many, key=lambda name: (int(name.split(".")[0]), name))}
    long = {f"{long_name}.jpg": b"x", f"{long_name}.cls": b"0"}
    label = {"x.jpg": b"x", "x.cls": b"y" * (1 << 20)}
    cases = {
        "tar: one long name": {"kind": "webdataset", "path": str(make_tar(root / "a.tar", ordered | long))},
        "tar: one long label": {"kind": "webdataset", "path": str(make_tar(root / "b.tar", ordered | label))},
    }
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 22 << 30
    (root / "c.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    cases["tar: a name of 22 GiB"] = {"kind": "webdataset", "path": str(root / "c.tar")}
    folder = make_folder(root / "f")
    deep = folder / "ann" / "/".join(["d" * 200] * 15)
    deep.mkdir(parents=True)
    (deep / "0.jpg").write_bytes(jpeg())
    for number in range(200):
        (folder / "bob" / f"x{number}.jpg").write_bytes(b"x")
    cases["folder: one long path"] = {"kind": "folder", "path": str(folder)}
    (root / "l.tsv").write_text("".join(f"{n}.jpg\tp{n}\n" for n in range(2000)) + f"z.jpg\t{'n' * 60_000}\n")
    for number in range(2000):
        (root / f"{number}.jpg").write_bytes(b"x")
    (root / "z.jpg").write_bytes(b"x")
    cases["list: one long label"] = {"kind": "list", "path": str(root / "l.tsv")}

    for name, array in {
        "zeros": np.zeros(280 << 20, np.uint8).reshape(-1, 4), "claim": np.zeros((4, 4), np.float32),
    }.items():  # fmt: skip
        path = root / f"{name}.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            out = io.BytesIO()
            np.lib.format.write_array(out, np.asarray(array))
            data = out.getvalue()
            if name == "claim":
                data = data.replace(b"(4, 4)", b"(9999999999, 4)")
            archive.writestr("emb.npy", data)
        cases[f"npz: {name}"] = {"kind": "array", "path": str(path)}
        cases[f"faces: {name}"] = {"kind": "faces", "path": str(path)}
    plain = io.BytesIO()
    np.save(plain, np.zeros((4, 4), np.float32))
    (root / "c.npy").write_bytes(plain.getvalue().replace(b"(4, 4), }      ", b"(999999999, 4)}"))
    cases["npy: claim"] = {"kind": "array", "path": str(root / "c.npy")}

    import pyarrow as pa
    import pyarrow.parquet as pq

    one = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), pa.array([b"x" * 4_000_000]))
    pq.write_table(pa.table({"image": one, "label": np.zeros(1000, np.int64)}), root / "d.parquet")
    cases["parquet: one picture a thousand times"] = {"kind": "parquet", "path": str(root / "d.parquet")}
    labels = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array(["y" * 100_000]))
    pq.write_table(pa.table({"image": pa.array([b"x"] * 100_000), "label": labels}), root / "e.parquet")
    cases["parquet: one label many times"] = {"kind": "parquet", "path": str(root / "e.parquet")}
    pq.write_table(pa.table({"image": pa.nulls(10_000_000, pa.binary()), "label": np.zeros(10_000_000, np.int8)}),
                   root / "r.parquet", compression="zstd")  # fmt: skip
    cases["parquet: ten million rows of nothing"] = {"kind": "parquet", "path": str(root / "r.parquet")}
    for codec in ("zstd", "lz4"):
        table = pa.table({"image": pa.array([bytes(400 << 20)], pa.large_binary()), "label": [0]})
        options = pa.ipc.IpcWriteOptions(compression=codec)
        with (
            pa.OSFile(str(root / f"{codec}.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, table.schema, options=options) as writer,
        ):
            writer.write_table(table)
        cases[f"arrow: {codec}"] = {"kind": "parquet", "path": str(root / f"{codec}.arrow")}
    rec = make_records(root / "a.rec").read_bytes()
    (root / "b.rec").write_bytes(rec[:4] + struct.pack("<I", (1 << 29) - 1) + rec[8:])
    cases["recordio: a record of 512 MiB"] = {"kind": "recordio", "path": str(root / "b.rec")}
    for opcode in (b"\x8e\xff\xff\xff\xff\x01\0\0\0", b"B\xff\xff\xff\x7f", b"T\xff\xff\xff\x7f"):
        path = root / f"{opcode[0]}.bin"
        path.write_bytes(b"\x80\x04" + opcode + b".")
        cases[f"bin: {opcode!r}"] = {"kind": "bin", "path": str(path)}
    return cases


def test_a_small_file_fills_no_memory(seen: dict[str, dict[str, Seen]]) -> None:
    fine = {"tar: one long name", "tar: one long label", "folder: one long path", "list: one long label"}
    huge = seen["huge"]
    for name, found in huge.items():
        assert found.grown < 400, (name, found.grown)
        assert found.seconds < 20, (name, found.seconds)
        assert not found.offences, (name, found.offences)
        if name in fine:
            assert not found.error, (name, found.message)
        elif not name.startswith("parquet: one"):
            assert _refused(found), (name, found.error, found.message)
    for name in ("parquet: one picture a thousand times", "parquet: one label many times"):
        assert not huge[name].error or _refused(huge[name])


# --- files that shrink ------------------------------------------------------------------------------------------------


def shrinking(root: Path) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Opens data of each kind that lies in one file; what comes back reads the last of it."""
    from lightning_pfc.data.arrays import NpyFile
    from lightning_pfc.data.formats import open_images
    from lightning_pfc.data.images import ArrayImages
    from lightning_pfc.evaluation import BinImages

    big = [jpeg(n, 200) for n in range(12)]

    def last(images: Any) -> Callable[[], Any]:
        return lambda: images.read(len(images) - 1)

    def records(path: Path) -> Path:
        from lightning_pfc.data.formats.recordio_writer import RecordWriter, pack_image

        with RecordWriter(path) as writer:
            for number, data in enumerate(big):
                writer.write(pack_image(number, data, key=number))
        return path

    def array(path: Path) -> Path:
        np.save(path, np.zeros((60, 64, 64), np.uint8))
        return path

    def verification(path: Path) -> Path:
        path.write_bytes(pickle.dumps((big, [True] * 6)))
        return path

    def tar(path: Path) -> Path:
        return make_tar(path, {f"{n}.{e}": d for n, data in enumerate(big) for e, d in (("jpg", data), ("cls", b"0"))})

    rows = [{"bytes": data, "path": None} for data in big]
    return {
        "a.rec": lambda: last(open_images(records(root / "a.rec"))),
        "a.tar": lambda: last(open_images(tar(root / "a.tar"))),
        "a.parquet": lambda: last(open_images(make_parquet(root / "a.parquet", rows))),
        "a.arrow": lambda: last(open_images(make_parquet(root / "a.arrow", rows))),
        "p.bin": lambda: last(BinImages(verification(root / "p.bin"))),
        "a.npy": lambda: (lambda f: lambda: f[np.array([59])])(NpyFile(array(root / "a.npy"))),
        "m.npy": lambda: (lambda t: lambda: t.fetch(np.array([59])))(
            ArrayImages(np.load(array(root / "m.npy"), mmap_mode="r"))
        ),
    }


class Shrunk(Dataset[str]):
    """What reading each of some files says."""

    def __init__(self, readers: dict[str, Callable[[], Any]]) -> None:
        self.readers = readers

    def __len__(self) -> int:
        return len(self.readers)

    def __getitem__(self, index: int) -> str:
        reader = list(self.readers.values())[index]
        try:
            reader()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "read"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_shrinks_is_an_error_and_not_the_end(tmp_path: Path, workers: int) -> None:
    pytest.importorskip("pyarrow")
    readers = {name: opened() for name, opened in shrinking(tmp_path).items()}
    shrunk = Shrunk(readers)
    assert {shrunk[index] for index in range(len(shrunk))} == {"read"}
    for name in readers:
        os.truncate(tmp_path / name, (tmp_path / name).stat().st_size // 2 if name != "a.parquet" else 4)
    table = readers["a.parquet"].__closure__[0].cell_contents  # type: ignore[attr-defined]
    table._files[0]._held = (-1, "", -1, None)  # the group of rows that it holds
    for name, said in zip(readers, DataLoader(Shrunk(readers), batch_size=None, num_workers=workers), strict=True):
        assert said.startswith("FormatError"), (name, said)
        assert name in said
