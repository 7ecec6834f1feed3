"""``model.json``: what must be known of a model besides its weights. docs/export.md has it in words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any, Literal, cast

from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.deploy.errors import ExportError
from lightning_pfc.deploy.precisions import PRECISIONS
from lightning_pfc.runs.plain import Reader, is_file_name, read_json
from lightning_pfc.runs.thresholds import Thresholds
from lightning_pfc.storage.whole_files import write_json

FORMAT, VERSION = "lightning-pfc export", 1
FILE = "model.json"
KINDS = ("onnx", "pt2")
MAX_SIDE, MAX_WIDTH = 1 << 14, 1 << 20

Precision = Literal["float32", "float16", "bfloat16", "int8"]
Flip = Literal["none", "sum"]


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """The network.

    Attributes:
        file: its name in the folder.
        kind: ``"onnx"``, or ``"pt2"`` (``torch.export``).
        precision: what it computes in.
        engine: which engine a reduced precision was tried in; any engine opens a float32 model.
        input, output: names of the tensors.
        width: D of an embedding.
        flip: ``"sum"`` where the network itself adds the embedding of the mirror image.
        unit: whether embeddings come out with length one.
    """

    file: str
    kind: Literal["onnx", "pt2"] = "onnx"
    precision: Precision = "float32"
    engine: str = "onnxruntime"
    input: str = "images"
    output: str = "embeddings"
    width: int
    flip: Flip = "none"
    unit: bool = False


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Where the five points of a face lie in the pictures that the model was trained on.

    Attributes:
        template: (5, 2) x and y of the eyes, the nose tip and the corners of the mouth, left ones first, as seen.
        size: edge of the picture that the template is for.
    """

    template: tuple[tuple[float, float], ...]
    size: int


@dataclass(frozen=True, kw_only=True)
class Centers:
    """Class centers as a gallery.

    Attributes:
        file: safetensors with ``centers`` (C K, D), and ``bias`` (C,) where the classes have one.
        names: text file with the name of class i in line i.
        classes: C.
        per_class: K, 1 unless the loss has several centers for a class, of which the nearest counts.
        score: ``"cosine"``, or ``"dot"`` for a loss that does not normalise.
    """

    file: str
    names: str
    classes: int
    per_class: int = 1
    score: Literal["cosine", "dot"] = "cosine"


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """All of ``model.json``.

    Attributes:
        model: the network.
        preprocessing: how a picture becomes its input.
        alignment: of faces; None for other pictures.
        detector: file of the face detector for photos, if there is one.
        centers: class centers, if they were exported.
        thresholds: by name.
        weights: fingerprint of the weights.
        trained_on, checks, versions: for people and programs that ask; nothing here depends on them.
        sha256: of every other file of the folder, by name.
    """

    model: ModelFile
    preprocessing: Preprocessing
    alignment: Alignment | None = None
    detector: str | None = None
    centers: Centers | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    weights: str = ""
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)

    def changed(self, **values: Any) -> ModelDescription:
        """With other values in place of these."""
        return replace(self, **values)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all."""
        content = {key: value for key, value in vars(self).items() if key not in ("preprocessing", "thresholds")}
        content = {key: asdict(value) if is_dataclass(value) else value for key, value in content.items()}  # type: ignore[arg-type]
        content |= {"preprocessing": self.preprocessing.to_config(), "thresholds": self.thresholds.to_dict()}
        write_json(path, {"format": FORMAT, "version": VERSION, **content})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ModelDescription:
        """Read and check the file.

        Raises:
            ExportError: it is not there, is of another format or version, or a value is not what it must be.
        """
        top = Reader(read_json(path), path)
        if top.content.get("format") != FORMAT:
            raise ExportError(f"is no description of an export (format is {top.content.get('format')!r})", path)
        if top.integer("version", 0, 1 << 30) != VERSION:
            raise ExportError(
                f"has version {top.content['version']}, this package reads {VERSION}: update lightning-pfc, or export "
                "again",
                path,
            )
        try:
            thresholds = Thresholds.from_dict(top.content.get("thresholds", {}), os.fspath(path))
        except ValueError as error:
            raise ExportError(str(error), path) from error
        return cls(
            model=_model(top.at("model")),
            preprocessing=_preprocessing(top.at("preprocessing")),
            alignment=_alignment(top.at("alignment")) if "alignment" in top else None,
            detector=top.file("detector") if "detector" in top else None,
            centers=_centers(top.at("centers")) if "centers" in top else None,
            thresholds=thresholds,
            weights=top.text("weights", ""),
            trained_on=dict(top.at("trained_on").content) if "trained_on" in top else {},
            checks=dict(top.at("checks").content) if "checks" in top else {},
            versions=dict(top.at("versions").content) if "versions" in top else {},
            sha256=_sums(top.at("sha256")),
        )


def _model(reader: Reader) -> ModelFile:
    return ModelFile(
        file=reader.file("file"),
        kind=cast("Any", reader.choice("kind", KINDS)),
        precision=cast("Any", reader.choice("precision", PRECISIONS)),
        engine=reader.text("engine"),
        input=reader.text("input"),
        output=reader.text("output"),
        width=reader.integer("width", 1, MAX_WIDTH),
        flip=cast("Any", reader.choice("flip", ("none", "sum"))),
        unit=reader.boolean("unit"),
    )


def _preprocessing(reader: Reader) -> Preprocessing:
    try:
        return Preprocessing.from_config(reader.content)
    except (TypeError, ValueError) as error:
        raise ExportError(f"preprocessing: {error}", reader.path) from error


def _alignment(reader: Reader) -> Alignment:
    points = reader.content.get("template")
    if not isinstance(points, list) or len(points) != 5:
        raise reader.error("template must be five points")
    rows = [Reader({"point": point}, reader.path, f"{reader.where}.template").numbers("point", 2) for point in points]
    return Alignment(
        template=tuple((x, y) for x, y in rows),
        size=reader.integer("size", 8, MAX_SIDE),
    )


def _centers(reader: Reader) -> Centers:
    return Centers(
        file=reader.file("file"),
        names=reader.file("names"),
        classes=reader.integer("classes", 1, 1 << 40),
        per_class=reader.integer("per_class", 1, 1 << 16, 1),
        score=cast("Any", reader.choice("score", ("cosine", "dot"))),
    )


def _sums(reader: Reader) -> dict[str, str]:
    for name, value in reader.content.items():
        right = isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
        if not is_file_name(str(name)) or not right:
            raise reader.error(f"{name!r}: {value!r} is not the sha256 of a file of the folder")
    return dict(reader.content)
