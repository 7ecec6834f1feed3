"""IJB-B and IJB-C from the folders that InsightFace's users have: ``loose_crop/`` and ``meta/``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_pfc.data.curation.alignment import align
from lightning_pfc.data.errors import FormatError, reading
from lightning_pfc.data.formats import decode
from lightning_pfc.data.formats.folder import read_image_file
from lightning_pfc.data.formats.lines import text_lines
from lightning_pfc.data.formats.patterns import Paths
from lightning_pfc.evaluation.context import EvaluationContext
from lightning_pfc.evaluation.identification import identification_rate, search, tpir_at_fpir
from lightning_pfc.evaluation.intervals import proportion_interval, tar_interval
from lightning_pfc.evaluation.pairs import IndexedPairs
from lightning_pfc.evaluation.report import Measurement, ProtocolResult, ScoredPairs, unresolved
from lightning_pfc.evaluation.templates import (
    TemplateMode,
    template_features,
    template_scores,
    tpr_at_nearest_fpr,
)
from lightning_pfc.metrics.functional import area_under_roc, tar_at_far
from lightning_pfc.metrics.verification import rate_name
from lightning_pfc.storage.enclosure import Enclosure, as_paths

Floats = npt.NDArray[np.float64]
_MAX_TABLE = 1 << 30  # bytes of a list of a gallery
# IJB-C calls its galleries G1 and G2, IJB-B S1 and S2.
_GALLERIES = ("G1", "G2", "S1", "S2")


class IJBImages:
    """The images of IJB, aligned by the five points that come with them.

    Attributes:
        templates: Template of each image, (n,) int64.
        media: Medium of each image, (n,) int64.
        detector_scores: Detector score of each image, (n,) float64.

    Args:
        root: Folder with ``loose_crop/`` and ``meta/``.
        subset: ``"ijbb"`` or ``"ijbc"``.
        input_size: (C, H, W); C must be 3.
        allow: Folders besides ``root`` that links in it may lead into.

    Raises:
        FileNotFoundError: When a file is missing.
        FormatError: When a table is damaged (names the byte of the line).
    """

    def __init__(self, root: str | Path, subset: str, input_size: tuple[int, int, int], *, allow: Paths = ()) -> None:
        self.folder = Path(root) / "loose_crop"
        self._inside = Enclosure(self.folder, [root, *as_paths(allow)])
        meta = Path(root) / "meta"
        if input_size[0] != 3 or input_size[1] != input_size[2]:
            raise ValueError(f"input_size={input_size}: IJB needs a model for square colour images")
        self.image_shape = input_size
        media = read_table(meta / f"{subset}_face_tid_mid.txt", _name_and_two)
        points = read_table(meta / f"{subset}_name_5pts_score.txt", _name_and_points)
        if [m[0] for m in media] != [p[0] for p in points]:
            raise FormatError(
                f"its images are not those of {subset}_face_tid_mid.txt", path=meta / f"{subset}_name_5pts_score.txt"
            )
        self.names = [m[0] for m in media]
        with reading(meta / f"{subset}_face_tid_mid.txt", "a table of templates and media"):
            self.templates = torch.tensor([m[1] for m in media])
            self.media = torch.tensor([m[2] for m in media])
        values = np.array([p[1] for p in points])
        self.points: Floats = values[:, :10].reshape(-1, 5, 2)
        self.detector_scores = torch.from_numpy(values[:, 10].copy())

    def __len__(self) -> int:
        return len(self.names)

    def fetch(self, index: npt.NDArray[np.int64]) -> Tensor:
        """(b,) positions to (b, 3, H, W) uint8 aligned faces."""
        faces = []
        for i in index.tolist():
            path = self.folder / self.names[i]
            with reading(path, "a face with five points"):
                image = decode(read_image_file(self.names[i], inside=self._inside), where=str(path))
                faces.append(align(image, self.points[i], size=self.image_shape[1]))
        return torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)


def read_table(path: Path, parse: Callable[[list[str]], Any]) -> list[Any]:
    """Rows of a text table with spaces between fields.

    Raises:
        FileNotFoundError: When it is not there.
        FormatError: When a row cannot be parsed (names the byte), or there is none.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such table: {path}")
    rows = []
    with reading(path, "a table"):
        Enclosure(path.parent.parent).real(f"{path.parent.name}/{path.name}")
        for offset, line in text_lines(path):
            if line.strip():
                try:
                    rows.append(parse(line.split()))
                except (ValueError, IndexError) as error:
                    raise FormatError(f"not a row of this table: {line[:80]!r}", path=path, offset=offset) from error
    if not rows:
        raise FormatError("the table is empty", path=path, offset=0)
    return rows


def evaluate_ijb(
    context: EvaluationContext,
    name: str,
    root: str,
    subset: Literal["ijbb", "ijbc"],
    mode: TemplateMode,
    identification: bool,
) -> ProtocolResult:
    """The 1:1 protocol, and 1:N over both galleries where their lists are there; the mode stands in every name."""
    if subset not in ("ijbb", "ijbc"):
        raise ValueError(f"subset={subset!r} is unknown; use 'ijbb' or 'ijbc'")
    images = IJBImages(root, subset, context.input_size(name), allow=context.settings.allow)
    features = context.embed(images)
    pooled, numbers = template_features(
        features, images.templates, images.media, detector_scores=images.detector_scores, mode=mode
    )
    meta = Path(root) / "meta"
    table = meta / f"{subset}_template_pair_label.txt"
    with reading(table, "a table of pairs of templates"):
        rows = torch.tensor(read_table(table, _three_numbers))
    scores = template_scores(pooled, numbers, rows[:, 0], rows[:, 1])
    same = rows[:, 2] == 1
    prefix = f"1:1[{mode.name}]"
    found = [Measurement(f"{prefix}/auc", area_under_roc(scores, same))]
    impostors = int((~same).sum())
    for far in context.settings.fars:
        if far * impostors < 1:
            continue
        point = tar_at_far(scores, same, far)
        interval = context.interval(tar_interval, scores, same, far)
        published = tpr_at_nearest_fpr(scores, same, far)
        note = f"{point.false_accepts} false accepts; at the nearest point, as published tables: {published:.4f}"
        found.append(Measurement(f"{prefix}/tar@far={rate_name(far)}", point.tar, interval, note))
    text = f"{subset}, {len(images):,} images in {len(numbers):,} templates, {len(rows):,} pairs"
    if identification:
        more, words = _one_to_n(context, meta, subset, mode, pooled, numbers)
        found += more
        text += words
    first = torch.searchsorted(numbers, rows[:, 0].contiguous())
    second = torch.searchsorted(numbers, rows[:, 1].contiguous())
    pairs = IndexedPairs(first, second, same, torch.full_like(first, -1))
    left_out = unresolved("FAR", context.settings.fars, impostors, "impostor pairs")
    return ProtocolResult(name, f"{text}; intervals by pairs and probes{left_out}", found, ScoredPairs(scores, pairs))


def _one_to_n(
    context: EvaluationContext, meta: Path, subset: str, mode: TemplateMode, pooled: Tensor, numbers: Tensor
) -> tuple[list[Measurement], str]:
    """Each gallery apart (probes without a mate in it are strangers), then the mean of both, as the protocol says."""
    names = [f"{subset}_1N_gallery_{part}.csv" for part in _GALLERIES]
    galleries = [meta / name for name in names if (meta / name).exists()]
    probes_file = meta / f"{subset}_1N_probe_mixed.csv"
    if not galleries:
        return [], f", 1:N left out (meta/ has none of {', '.join(names)})"
    if not probes_file.exists():
        return [], f", 1:N left out (meta/ has no {probes_file.name})"
    probe_templates, probe_subjects = _subjects(probes_file)
    found: list[Measurement] = []
    values: dict[str, list[float]] = {}
    for path in galleries:
        templates, subjects = _subjects(path)
        results = search(
            _rows(pooled, numbers, probe_templates, probes_file),
            probe_subjects,
            _rows(pooled, numbers, templates, path),
            subjects,
            peers=context.peers,
        )
        rank = results.rank[results.mated]
        for k in context.settings.ranks:
            values.setdefault(f"rank-{k}", []).append(identification_rate(rank, k))
        if bool((~results.mated).any()):
            for fpir in context.settings.fpirs:
                values.setdefault(f"tpir@fpir={rate_name(fpir)}", []).append(tpir_at_fpir(results, fpir)[0])
        if len(galleries) == 1:
            for k in context.settings.ranks:
                interval = context.interval(proportion_interval, rank < k, probe_subjects[results.mated])
                found.append(Measurement(f"1:N[{mode.name}]/rank-{k}", values[f"rank-{k}"][0], interval))
    known = {m.name for m in found}
    for key, numbers_found in values.items():
        full = f"1:N[{mode.name}]/{key}"
        if full not in known:
            note = "mean of galleries: " + ", ".join(f"{v:.4f}" for v in numbers_found)
            found.append(Measurement(full, float(np.mean(numbers_found)), None, note))
    return found, f", {len(probe_templates):,} probes against {len(galleries)} galleries"


def _rows(pooled: Tensor, numbers: Tensor, wanted: Tensor, path: Path) -> Tensor:
    row = torch.searchsorted(numbers, wanted).clamp(max=len(numbers) - 1)
    missing = numbers[row] != wanted
    if bool(missing.any()):
        raise FormatError(f"template {int(wanted[missing][0])} has no image", path=path)
    return pooled[row]


def _subjects(path: Path) -> tuple[Tensor, Tensor]:
    """Templates and their subjects from a CSV with columns TEMPLATE_ID and SUBJECT_ID, each template once."""
    with reading(path, "a list of templates and subjects"):
        text = Enclosure(path.parent.parent).read(f"{path.parent.name}/{path.name}", _MAX_TABLE).decode("utf-8-sig")
        return _read_subjects(text, path)


def _read_subjects(text: str, path: Path) -> tuple[Tensor, Tensor]:
    found: dict[int, int] = {}
    reader = csv.DictReader(io.StringIO(text))
    try:
        rows = [(int(row["TEMPLATE_ID"]), int(row["SUBJECT_ID"])) for row in reader]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        reason = f"line {reader.line_num} lacks a number in TEMPLATE_ID or SUBJECT_ID"
        raise FormatError(reason, path=path) from error
    for template, subject in rows:
        if found.setdefault(template, subject) != subject:
            raise FormatError(f"template {template} is of the subjects {found[template]} and {subject}", path=path)
    if not found:
        raise FormatError("the list is empty", path=path)
    return torch.tensor(list(found)), torch.tensor(list(found.values()))


def _name_and_two(fields: list[str]) -> tuple[str, int, int]:
    name, template, medium = fields
    return _inside(name), int(template), int(medium)


def _name_and_points(fields: list[str]) -> tuple[str, list[float]]:
    if len(fields) != 12:
        raise ValueError
    values = [float(field) for field in fields[1:]]
    if not all(map(math.isfinite, values)):
        raise ValueError
    return _inside(fields[0]), values


def _three_numbers(fields: list[str]) -> tuple[int, int, int]:
    first, second, same = fields
    return int(first), int(second), int(same)


def _inside(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError
    return name
