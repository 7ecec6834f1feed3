"""From a run folder to an export: each product is compared with the step before it, and only then published."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.data.preprocessing import METADATA_KEY, Preprocessing
from lightning_pfc.deploy.card import write_card
from lightning_pfc.deploy.class_centers import write_centers
from lightning_pfc.deploy.description import FILE, Alignment, Centers, ModelDescription, ModelFile
from lightning_pfc.deploy.engines import Engine, open_engine
from lightning_pfc.deploy.errors import ExportError
from lightning_pfc.deploy.export_options import ExportOptions, check_options
from lightning_pfc.deploy.fidelity import FLOAT32_BOUND, Fidelity, compare_engines
from lightning_pfc.deploy.figures import as_dict, figures_of, histogram, set_scores
from lightning_pfc.deploy.folder import checksums, publish
from lightning_pfc.deploy.gate import judge_rates, judge_times, refuse, resolved_rates
from lightning_pfc.deploy.onnx_file import write_onnx, write_pt2
from lightning_pfc.deploy.output import Output
from lightning_pfc.deploy.pack import check_insightface, copy_detector, rename_first_nodes
from lightning_pfc.deploy.reduced import CALIBRATION_PICTURES, write_int8
from lightning_pfc.deploy.samples import Samples, open_samples
from lightning_pfc.deploy.torch_engine import TorchEngine
from lightning_pfc.runs.network import EmbeddingModel
from lightning_pfc.runs.run_folder import Run
from lightning_pfc.runs.thresholds import Thresholds

MODEL = {"onnx": "model.onnx", "pt2": "model.pt2"}
_CHECKED = 256  # pictures
_PACKAGES = ("lightning-pfc", "torch", "timm", "onnx", "onnxruntime", "onnxscript", "openvino")


def export_run(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    options: ExportOptions | None = None,
) -> ModelDescription:
    """Do what ``pfc-export RUN`` does.

    Args:
        run: folder of the run.
        out: the folder to write, whole or not at all; ``RUN/export`` by default.
        checkpoint: another one than the run's last.
        options: see there.

    Returns:
        What ``model.json`` says.

    Raises:
        ExportError: there is nothing to export, the export is not what was trained, or the folder is there already.
        GateError: a reduced precision loses too much or gains nothing; has the figures.
        EngineError: a package is missing.
        OSError: the folder cannot be written.
    """
    wanted = options or ExportOptions()
    check_options(wanted)
    opened = Run(run, checkpoint)
    target = Path(out) if out is not None else opened.folder / "export"
    with publish(target, replace=wanted.replace) as folder:
        return _Exporting(opened, wanted, folder, target.name).description()


class _Exporting:
    """The steps, each of which may end it."""

    def __init__(self, run: Run, options: ExportOptions, folder: Path, name: str) -> None:
        self.run, self.options, self.folder, self.name = run, options, folder, name
        fit = options.fit or ("crop" if run.preprocessing.fit == "exact" else None)
        self.preprocessing: Preprocessing = run.preprocessing.changed(fit=fit)
        self.network: EmbeddingModel = run.network
        self.scores: dict[str, Tensor] = {}  # of the pairs of each set, in float32
        self.gate: Mapping[str, Any] = {}
        if options.pack == "insightface":
            check_insightface(self.preprocessing, options.format)
        self.samples: Samples = open_samples(run, run.preprocessing, options.images, options.pictures)

    def description(self) -> ModelDescription:
        """Write and check everything; the description is written last."""
        options = self.options
        model = self._model_file()
        detector = None
        if options.detector is not None:
            detector = copy_detector(options.detector, self.folder, pack=options.pack)
        self.network.save_pretrained(self.folder)
        fidelity = self._write_model(model)
        if options.pack == "insightface":
            rename_first_nodes(self.folder / model.file)
        centers = self._centers()
        thresholds, left_out = self._thresholds()
        about = ModelDescription(
            model=model,
            preprocessing=self.preprocessing,
            alignment=self._alignment(),
            detector=detector,
            centers=centers,
            thresholds=thresholds,
            weights=self.network.fingerprint(),
            trained_on=self._trained_on(),
            checks={
                "fidelity": fidelity.to_dict(),
                "figures": self._figures(),
                "scores": self._histogram(),
                "gate": self.gate,
                "left_out": left_out,
            },
            versions=_versions(),
        )
        write_card(self.folder / "README.md", self.name, about, license=options.license)
        about = about.changed(sha256=checksums(self.folder))
        about.write(self.folder / FILE)
        return about

    def _model_file(self) -> ModelFile:
        options = self.options
        return ModelFile(
            file=MODEL[options.format],
            kind=options.format,
            precision=options.precision,
            engine="torch" if options.format == "pt2" else options.engine,
            width=self.network.config.embedding_dim,
            flip="sum" if options.flip else "none",
            unit=options.normalize,
        )

    def _write_model(self, model: ModelFile) -> Fidelity:
        network = Output(self.network, flip=model.flip, unit=model.unit).eval()
        path = self.folder / model.file
        engine: Engine
        if model.kind == "pt2":
            write_pt2(network, self.preprocessing.image_shape, path)
            engine = _Program(path)
        else:
            self._write_onnx(network, model, path)
            engine = open_engine(model.engine, path)
        fidelity = self._checked(TorchEngine(network), engine)
        if model.precision != "float32":
            return self._reduce(model, network, path, engine)
        self.scores = self._scored(engine)
        return fidelity

    def _scored(self, engine: Engine) -> dict[str, Tensor]:
        return {name: set_scores(engine, part, self.preprocessing) for name, part in self.samples.sets.items()}

    def _write_onnx(self, network: torch.nn.Module, model: ModelFile, path: Path) -> None:
        write_onnx(
            network,
            self.preprocessing.image_shape,
            path,
            input_name=model.input,
            output_name=model.output,
            metadata={METADATA_KEY: json.dumps(self._judged(model).to_config())},
        )

    def _reduce(self, model: ModelFile, network: Output, path: Path, float32: Engine) -> Fidelity:
        """Put a file of the reduced precision in the place of the float32 one, if it stands the comparison."""
        resolved_rates(self.samples.sets)
        made = path.with_name("reduced.onnx")
        if model.precision == "int8":
            images = self.samples.floats(CALIBRATION_PICTURES, self.preprocessing)
            write_int8(path, made, images, input_name=model.input)
        elif model.precision == "float16":
            half = Output(copy.deepcopy(self.network), flip=model.flip, unit=model.unit, dtype=torch.float16)
            self._write_onnx(half.eval(), model, made)
        else:
            made = path  # bfloat16: the same file
        reduced = open_engine(model.engine, made, precision=model.precision)
        images = self.samples.floats(_CHECKED, self.preprocessing)
        found = judge_times(float32, reduced, images, self.options.max_loss)
        refuse(found, model.precision, model.engine)  # what is no faster need not be measured for minutes
        self.scores = self._scored(float32)
        found = judge_rates(reduced, self.scores, self.samples.sets, self.preprocessing, found)
        refuse(found, model.precision, model.engine)
        self.gate = found.to_dict()
        made.replace(path)
        return compare_engines(TorchEngine(network), reduced, images)

    def _judged(self, model: ModelFile) -> Preprocessing:
        """The record in the file itself: whoever opens it alone must not add mirror images a second time."""
        return self.preprocessing.changed(flip="none") if model.flip == "sum" else self.preprocessing

    def _checked(self, reference: Engine, engine: Engine) -> Fidelity:
        found = compare_engines(reference, engine, self.samples.floats(_CHECKED, self.preprocessing))
        if found.cosine_loss > FLOAT32_BOUND:
            raise ExportError(
                f"the exported network is not the one that was trained: on {found.pictures} pictures of "
                f"{self.samples.source} the cosine of an embedding to the module's own is as low as 1 - "
                f"{found.cosine_loss:.1e}, and {FLOAT32_BOUND:.0e} is allowed; nothing was written"
            )
        return found

    def _figures(self) -> Mapping[str, Any]:
        sets = self.samples.sets
        return as_dict([figure for name in sets for figure in figures_of(self.scores[name], name, sets[name])])

    def _histogram(self) -> Mapping[str, Any] | None:
        """Of the last set, which is one of the test where the run has several."""
        name = next(reversed(self.scores), None) if self.scores else None
        return None if name is None else histogram(self.scores[name], name, self.samples.sets[name])

    def _centers(self) -> Centers | None:
        if not self.options.centers:
            return None
        names = None if self.samples.data is None else self.samples.data.class_names
        return write_centers(self.folder, self.run.checkpoint, self.run.hyper_parameters, names)

    def _thresholds(self) -> tuple[Thresholds, list[str]]:
        """Those of the run that were chosen on these very weights, and the names of the others."""
        mine = self.network.fingerprint()
        found = self.run.thresholds
        kept = {name: threshold for name, threshold in found.items() if threshold.model == mine}
        return Thresholds(kept), [name for name in found if name not in kept]

    def _alignment(self) -> Alignment | None:
        from lightning_pfc.data.curation.alignment import TEMPLATE

        channels, height, width = self.preprocessing.image_shape
        if channels != 3 or height != width:
            return None
        return Alignment(template=tuple((float(x), float(y)) for x, y in TEMPLATE), size=112)

    def _trained_on(self) -> Mapping[str, Any]:
        values, results = self.run.hyper_parameters, self.run.results
        loss = values.get("loss")
        found = {
            "data": self.samples.source if self.samples.data is not None else None,
            "images": None if self.samples.data is None else self.samples.data.num_images,
            "classes": values.get("num_classes"),
            "backbone": values.get("backbone"),
            "loss": loss.get("name") if isinstance(loss, Mapping) else loss,
            "sample_rate": values.get("sample_rate"),
            "steps": results.get("steps"),
            "seed": results.get("seed"),
        }
        return {key: value for key, value in found.items() if value is not None}


class _Program:
    """A ``torch.export`` file that was just written here."""

    name = "torch.export"

    def __init__(self, path: Path) -> None:
        self._module = torch.export.load(path).module()

    def __call__(self, images: Any) -> Any:
        """(b, C, H, W) float32 to (b, D) float32."""
        with torch.inference_mode():
            return self._module(torch.from_numpy(images)).numpy()


def _versions() -> dict[str, str]:
    return {name: version for name in _PACKAGES if (version := _version(name))}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
