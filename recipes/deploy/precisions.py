"""Accuracy, size and speed of one network in float32, float16, bfloat16 and int8, in onnxruntime and in OpenVINO.

    python recipes/deploy/precisions.py make WORK NAME=RUN ...     files and what each recognises, into WORK
    python recipes/deploy/precisions.py make WORK NAME=FILE.onnx:FOLDER     of an ONNX file (RGB, 0 to 255), on pictures
    python recipes/deploy/precisions.py time WORK                  times, on a quiet machine
    python recipes/deploy/precisions.py table WORK                 prints the table, of what is there so far

Each result is kept in WORK/NAME/results.json as soon as it is there, and one that is there is not measured again. The
cosine is the least of 256 pictures' with the embedding in float32. What the gate of ``pfc-export`` keeps: no more than
0.002 of the true accept rate lost, and faster.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lightning_pfc.data.preprocessing import METADATA_KEY, Preprocessing
from lightning_pfc.deploy.engines import Engine, open_engine
from lightning_pfc.deploy.figures import set_scores
from lightning_pfc.deploy.gate import LEAST_GAIN, in_turn
from lightning_pfc.deploy.onnx_file import write_onnx
from lightning_pfc.deploy.output import Output
from lightning_pfc.deploy.reduced import CALIBRATION_PICTURES, write_int8
from lightning_pfc.deploy.samples import open_samples, samples_of_folder
from lightning_pfc.faces.unpacking import unpack
from lightning_pfc.metrics.functional import tar_at_far
from lightning_pfc.runs.run_folder import Run

FAR, MAX_LOSS = 1e-3, 0.002
PICTURES = int(os.environ.get("PICTURES", "2000"))  # of a set, at most
WAYS = (
    ("float32", "onnxruntime"),
    ("float16", "onnxruntime"),
    ("int8", "onnxruntime"),
    ("float32", "openvino"),
    ("float16", "openvino"),
    ("bfloat16", "openvino"),
    ("int8", "openvino"),
)


class Subject(NamedTuple):
    """A network to be measured."""

    input: str
    preprocessing: Preprocessing
    samples: Any


class Results:
    """What is known of a network so far, in a file that is written with each figure."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "results.json"
        self._known: dict[str, dict[str, float]] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def of(self, way: tuple[str, str]) -> dict[str, float]:
        """The figures of a precision in an engine."""
        return self._known.get(" ".join(way), {})

    def add(self, way: tuple[str, str], **figures: float) -> None:
        """Keep some."""
        self._known[" ".join(way)] = self.of(way) | figures
        self._path.write_text(json.dumps(self._known, indent=1))


def make(work: Path, name: str, source: str) -> None:
    """Write the files, and measure what each way recognises."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    subject = _file(folder, source) if ".onnx:" in source else _run(folder, Path(source))
    images = subject.samples.floats(CALIBRATION_PICTURES, subject.preprocessing)
    np.save(folder / "images.npy", images[:16])
    if not (folder / "int8.onnx").exists():
        write_int8(folder / "float32.onnx", folder / "int8.onnx", images, input_name=subject.input)
    part = list(subject.samples.sets.values())[-1]
    results = Results(folder)
    wanted = _embed(open_engine("onnxruntime", folder / "float32.onnx"), images)
    for way in _ways(folder):
        if "tar" in results.of(way):
            continue
        precision, engine = way
        network = open_engine(engine, _path(folder, precision), precision=precision)
        cosine = float((_embed(network, images) * wanted).sum(1).min())
        rate = tar_at_far(set_scores(network, part, subject.preprocessing), part.pairs.same, FAR).tar
        results.add(way, tar=rate, cosine=cosine, bytes=os.path.getsize(_path(folder, precision)))
        print(name, precision, engine, f"{rate:.4f}, cosine {cosine:.6f}", flush=True)


def _embed(network: Engine, images: np.ndarray) -> np.ndarray:
    rows = np.concatenate([network(images[i : i + 16]) for i in range(0, len(images), 16)]).astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _ways(folder: Path) -> list[tuple[str, str]]:
    return [way for way in WAYS if _path(folder, way[0]).exists()]


def _run(folder: Path, source: Path) -> Subject:
    run = Run(source)
    for precision, dtype in (("float32", torch.float32), ("float16", torch.float16)):
        write_onnx(
            Output(deepcopy(run.network), dtype=dtype).eval(),
            run.preprocessing.image_shape,
            _path(folder, precision),
            input_name="images",
            output_name="embeddings",
            metadata={},
        )
    return Subject("images", run.preprocessing, open_samples(run, run.preprocessing, None, PICTURES))


def _file(folder: Path, source: str) -> Subject:
    import onnx

    path, pictures = source.split(".onnx:")
    content = unpack(Path(path + ".onnx").read_bytes())
    model = onnx.load_model_from_string(content)
    weights = {tensor.name for tensor in model.graph.initializer}
    [value] = [value for value in model.graph.input if value.name not in weights]
    size = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
    value.type.tensor_type.shape.dim[0].dim_param = "batch"
    kept = [each for each in model.graph.input if each.name == value.name]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    record = Preprocessing(size=(size[1], size[2]), channels=size[0], fit="crop", mean=(0.0,), std=(1.0,))
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]  # shapes of a batch of one
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(record.to_config()))
    onnx.save(model, folder / "float32.onnx")
    return Subject(value.name, record, samples_of_folder(Path(pictures), record, PICTURES))


def _path(folder: Path, precision: str) -> Path:
    return folder / f"{'float32' if precision == 'bfloat16' else precision}.onnx"


def measure(folder: Path) -> None:
    """Times of all ways of one network, taking turns."""
    ways, results, images = _ways(folder), Results(folder), np.load(folder / "images.npy")
    if all("ms, 16" in results.of(way) for way in ways):
        return
    engines = [open_engine(engine, _path(folder, precision), precision=precision) for precision, engine in ways]
    for count in (1, 16):
        for way, milliseconds in zip(ways, in_turn(engines, images[:count]), strict=True):
            results.add(way, **{f"ms, {count}": milliseconds})


def rows(folder: Path) -> Iterator[str]:
    """Lines of the table for one network."""
    results = Results(folder)
    for way in WAYS:
        found, before = results.of(way), results.of(("float32", way[1]))
        if not found:
            continue
        times = [f"{found[key]:.1f}" if key in found else "" for key in ("ms, 1", "ms, 16")]
        cells = [f"{100 * found['tar']:.2f} %", f"{found['cosine']:.5f}", f"{found['bytes'] / 1e6:.1f} MB", *times]
        yield f"| {' | '.join([folder.name, way[1], way[0], *cells, _mark(way[0], found, before)])} |"


def _mark(precision: str, found: dict[str, float], before: dict[str, float]) -> str:
    """What the gate would say."""
    if precision == "float32" or "ms, 16" not in found:
        return ""
    if before["tar"] - found["tar"] > MAX_LOSS:
        return "refused: it loses"
    gains = [found[key] / before[key] for key in ("ms, 1", "ms, 16")]
    return "kept" if min(gains) < LEAST_GAIN and max(gains) * LEAST_GAIN < 1 else "refused: not faster"


def main() -> None:
    """See the top of the file."""
    word, work, *sources = sys.argv[1:]
    torch.set_num_threads(2)
    for source in sources if word == "make" else []:
        name, _, place = source.partition("=")
        make(Path(work), name, place)
    if word == "make":
        return
    folders = sorted(path.parent for path in Path(work).glob("*/results.json"))
    if word == "time":
        for folder in folders:
            measure(folder)
    print("| network | engine | precision | TAR at FAR 0.1 % | cosine | file | ms, 1 picture | ms, 16 | the gate |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for folder in folders:
        for line in rows(folder):
            print(line, flush=True)


if __name__ == "__main__":
    main()
