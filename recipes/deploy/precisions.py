"""Accuracy, size and speed of one network in float32, bfloat16 and int8, in onnxruntime and in OpenVINO.

    python recipes/deploy/precisions.py make WORK NAME=RUN ...     files and true accept rates, into WORK
    python recipes/deploy/precisions.py make WORK NAME=FILE.onnx:FOLDER     of an ONNX file (RGB, 0 to 255), on pictures
    python recipes/deploy/precisions.py time WORK                  times, on a quiet machine; prints the table

What the gate of ``pfc-export`` would keep has a plus: no more than 0.002 of the true accept rate lost, and faster.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lightning_pfc.data.preprocessing import METADATA_KEY, Preprocessing
from lightning_pfc.deploy import samples as samples_module
from lightning_pfc.deploy.engines import open_engine
from lightning_pfc.deploy.figures import set_scores
from lightning_pfc.deploy.gate import LEAST_GAIN, in_turn
from lightning_pfc.deploy.onnx_file import write_onnx
from lightning_pfc.deploy.output import Output
from lightning_pfc.deploy.reduced import CALIBRATION_PICTURES, write_int8
from lightning_pfc.faces.unpacking import unpack
from lightning_pfc.metrics.functional import tar_at_far
from lightning_pfc.runs.run_folder import Run

FAR, MAX_LOSS = 1e-3, 0.002
WAYS = (("float32", "onnxruntime"), ("int8", "onnxruntime"), ("float32", "openvino"), ("bfloat16", "openvino"))
WAYS = (*WAYS, ("int8", "openvino"))


class Subject(NamedTuple):
    """A network to be measured."""

    input: str
    preprocessing: Preprocessing
    samples: Any


def make(work: Path, name: str, source: str) -> None:
    """Write float32 and int8 files, and measure what each way recognises."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    subject = _file(folder, source) if ".onnx:" in source else _run(folder, Path(source))
    images = subject.samples.floats(CALIBRATION_PICTURES, subject.preprocessing)
    write_int8(folder / "float32.onnx", folder / "int8.onnx", images, input_name=subject.input)
    np.save(folder / "images.npy", images[:16])
    part_name, part = list(subject.samples.sets.items())[-1]
    rates = {}
    for precision, engine in WAYS:
        network = open_engine(engine, _path(folder, precision), precision=precision)
        scores = set_scores(network, part, subject.preprocessing)
        rates[f"{precision} {engine}"] = tar_at_far(scores, part.pairs.same, FAR).tar
        print(name, precision, engine, f"{rates[f'{precision} {engine}']:.4f}", flush=True)
    (folder / "rates.json").write_text(json.dumps({"set": part_name, "rates": rates}))


def _run(folder: Path, source: Path) -> Subject:
    run = Run(source)
    write_onnx(
        Output(run.network).eval(),
        run.preprocessing.image_shape,
        folder / "float32.onnx",
        input_name="images",
        output_name="embeddings",
        metadata={},
    )
    return Subject("images", run.preprocessing, samples_module.open_samples(run, run.preprocessing, None))


def _file(folder: Path, source: str) -> Subject:
    import onnx

    path, pictures = source.split(".onnx:")
    content = unpack(Path(path + ".onnx").read_bytes())
    (folder / "float32.onnx").write_bytes(content)
    model = onnx.load_model_from_string(content)
    weights = {tensor.name for tensor in model.graph.initializer}
    [value] = [value for value in model.graph.input if value.name not in weights]
    size = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
    value.type.tensor_type.shape.dim[0].dim_param = "batch"
    kept = [each for each in model.graph.input if each.name == value.name]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    record = Preprocessing(size=(size[1], size[2]), channels=size[0], fit="crop", mean=(0.0,), std=(1.0,))
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(record.to_config()))
    onnx.save(model, folder / "float32.onnx")
    return Subject(value.name, record, samples_module._of_folder(Path(pictures), record))


def _path(folder: Path, precision: str) -> Path:
    return folder / ("int8.onnx" if precision == "int8" else "float32.onnx")


def rows(folder: Path) -> Iterator[str]:
    """Lines of the table for one network."""
    rates = json.loads((folder / "rates.json").read_text())["rates"]
    images = np.load(folder / "images.npy")
    engines = [open_engine(engine, _path(folder, precision), precision=precision) for precision, engine in WAYS]
    one, many = in_turn(engines, images[:1]), in_turn(engines, images)
    for place, (precision, engine) in enumerate(WAYS):
        before = WAYS.index(("float32", engine))
        gains = [times[place] / times[before] for times in (one, many)]
        lost = rates[f"float32 {engine}"] - rates[f"{precision} {engine}"]
        kept = lost <= MAX_LOSS and min(gains) < LEAST_GAIN and max(gains) * LEAST_GAIN < 1
        reason = "it loses" if lost > MAX_LOSS else "not faster"
        mark = "" if precision == "float32" else "kept" if kept else f"refused: {reason}"
        size = os.path.getsize(_path(folder, precision)) / 1e6
        rate = 100 * rates[f"{precision} {engine}"]
        cells = [
            folder.name,
            engine,
            precision,
            f"{rate:.2f} %",
            f"{size:.1f} MB",
            f"{one[place]:.1f}",
            f"{many[place]:.1f}",
        ]
        yield f"| {' | '.join([*cells, mark])} |"


def main() -> None:
    """See the top of the file."""
    word, work, *sources = sys.argv[1:]
    samples_module.MOST_PICTURES = int(os.environ.get("PICTURES", "2000"))
    torch.set_num_threads(2)
    if word == "make":
        for source in sources:
            name, _, place = source.partition("=")
            make(Path(work), name, place)
        return
    print("| network | engine | precision | TAR at FAR 0.1 % | file | ms, 1 picture | ms, 16 pictures | the gate |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for folder in sorted(path.parent for path in Path(work).glob("*/rates.json")):
        for line in rows(folder):
            print(line, flush=True)


if __name__ == "__main__":
    main()
