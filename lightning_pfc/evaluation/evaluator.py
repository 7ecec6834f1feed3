"""The protocols by name, run one after the other with one model."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.images import ImageTable
from lightning_pfc.data.preprocessing import Flip, Preprocessing
from lightning_pfc.evaluation.all_pairs import all_pairs_tar
from lightning_pfc.evaluation.bins import BinImages
from lightning_pfc.evaluation.bootstrap import auc_interval, proportion_interval, ratio_interval, tar_interval
from lightning_pfc.evaluation.embedders import Embedder, embed_images, preprocessing_of
from lightning_pfc.evaluation.faces import EncodedFaces, FaceSet, of_identities, open_faces
from lightning_pfc.evaluation.identification import (
    DISTRACTOR,
    identification_rate,
    identified,
    rank_among_distractors,
    search,
    tpir_at_fpir,
)
from lightning_pfc.evaluation.ijb import evaluate_ijb
from lightning_pfc.evaluation.one_shot import one_shot
from lightning_pfc.evaluation.pairs import IndexedPairs, PairedImages, read_pairs
from lightning_pfc.evaluation.peers import Peers
from lightning_pfc.evaluation.report import Measurement, ProtocolResult, ScoredPairs
from lightning_pfc.evaluation.settings import EvaluationSettings
from lightning_pfc.evaluation.templates import TemplateMode
from lightning_pfc.metrics.functional import (
    area_under_roc,
    cosine_from_squared_distance,
    equal_error_rate,
    fold_of_pair,
    kfold_accuracy,
    kfold_tar_at_far,
    pair_squared_distances,
    tar_at_far,
)
from lightning_pfc.metrics.verification import rate_name
from lightning_pfc.runs.run_folder import Run


class Evaluator:
    """Runs protocols with one model; every rank must run the same ones.

    Args:
        embedder: The model; None if all sets are embeddings made elsewhere.
        settings: What the protocols share.
        peers: The ranks; None takes the default process group if there is one.
    """

    def __init__(
        self, embedder: Embedder | None, settings: EvaluationSettings | None = None, peers: Peers | None = None
    ) -> None:
        self.embedder = embedder
        self.settings = settings or EvaluationSettings()
        self.peers = peers or Peers.current()
        s = self.settings
        self._draws: dict[str, Any] = {"level": s.level, "replicates": s.replicates, "seed": s.seed}

    def run(self, name: str, protocol: str | os.PathLike[str] | Mapping[str, Any]) -> ProtocolResult:
        """Run one protocol.

        Args:
            name: What the user calls the set.
            protocol: A file (``.bin``, or a list of pairs beside its images), or a mapping with ``type`` and the
                arguments of the method of that name.

        Returns:
            The numbers.

        Raises:
            ValueError: For an unknown type or argument (says which exist), or what the protocol itself finds wrong.
        """
        method, arguments = check_protocol(name, protocol)
        return method(self, name, **arguments)

    # --- verification ------------------------------------------------------------------------------------------------

    def bin(self, name: str, path: str) -> ProtocolResult:
        """Verification on a ``.bin`` file."""
        images = BinImages(path)
        return self.verify(name, images.pairs(), self._pictures(name, images))

    def run_set(self, name: str, path: str, set: str = "test") -> ProtocolResult:
        """Verification on identities that a run of ``pfc-train`` held out: those of its validation or its test."""
        part = Run(path).verification_set(set)
        pairs = IndexedPairs(part.pairs.first, part.pairs.second, part.pairs.same, part.pairs.fold)
        return self.verify(name, pairs, part.images, identities=part.identity)

    def pairs(self, name: str, path: str, images: str | None = None, embeddings: str | None = None) -> ProtocolResult:
        """Verification on a list of pairs, over a folder of images or over embeddings with names."""
        if embeddings is not None:
            return self._named_pairs(name, path, embeddings)
        listed = PairedImages(path, images, allow=self.settings.allow)
        identities = torch.from_numpy(listed.identities)
        return self.verify(name, listed.pairs(), self._pictures(name, listed), identities=identities)

    def verify(
        self,
        name: str,
        pairs: IndexedPairs,
        images: ImageTable | None,
        *,
        embeddings: Tensor | None = None,
        identities: Tensor | None = None,
    ) -> ProtocolResult:
        """Verification of given pairs of images or embeddings."""
        if embeddings is None:
            if images is None:
                raise ValueError("verify needs images or embeddings")
            embeddings = self.embed(images)
        distances = pair_squared_distances(embeddings, pairs.first, pairs.second)
        scores, same = cosine_from_squared_distance(distances), pairs.same
        who = None if identities is None or bool((identities < 0).any()) else identities
        sides = None if who is None else (who[pairs.first], who[pairs.second])
        found: list[Measurement] = []
        threshold = None
        if bool((pairs.fold >= 0).any()):
            folds = 1 + int(pairs.fold.max())
            result = kfold_accuracy(distances, same, num_folds=folds, fold=pairs.fold)
            exact = kfold_accuracy(distances, same, num_folds=folds, fold=pairs.fold, thresholds="exact")
            inside = pairs.fold >= 0
            right = (distances[inside] < result.fold_threshold[pairs.fold[inside]]) == same[inside]
            interval = self.interval(proportion_interval, right, None if sides is None else sides[0][inside])
            threshold = 1.0 - 0.5 * float(result.fold_threshold.median())
            note = f"{folds} folds, std {result.std:.4f}; with exact thresholds {exact.mean:.4f}"
            found.append(Measurement("accuracy", result.mean, interval, note))
            if bool(inside.all()):
                val = kfold_tar_at_far(distances, same, 1e-3, num_folds=folds)
                note = f"threshold from the other folds, std {val.std:.4f}, far {val.far:.1e}"
                found.append(Measurement("val@far=1e-3", val.tar, None, note))
        interval = self.interval(auc_interval, scores, same, sides, replicates=min(200, self.settings.replicates))
        found.append(Measurement("auc", area_under_roc(scores, same), interval))
        found.append(Measurement("eer", equal_error_rate(scores, same)))
        impostors = int((~same).sum())
        for far in self.settings.fars:
            if far * impostors < 1:
                continue
            point = tar_at_far(scores, same, far)
            interval = self.interval(tar_interval, scores, same, far, sides)
            note = f"{point.false_accepts} false, cos > {point.threshold:.4f}"
            found.append(Measurement(f"tar@far={rate_name(far)}", point.tar, interval, note))
        unit = "pairs" if who is None else "identities"
        text = (
            f"verification, {len(same)} pairs ({int(same.sum())} genuine) of {len(embeddings)} images, "
            f"flip {self.flip}, intervals by {unit}"
        )
        return ProtocolResult(name, text, found, ScoredPairs(scores, pairs, images, threshold))

    def groups(self, name: str, of: Mapping[str, Any], far: float = 1e-3) -> ProtocolResult:
        """A set for each group of people (RFW): the numbers of each, and the gaps between them.

        The gaps are between accuracies of groups judged each by its own thresholds, as RFW reports, and between the
        false accept and false reject rates of groups judged by ONE threshold, that of ``far`` over all groups' pairs.
        """
        parts = {group: self.run(f"{name}/{group}", entry) for group, entry in of.items()}
        if len(parts) < 2:
            raise ValueError(f"protocols.{name}.of names {len(parts)} groups; a gap needs at least two")
        scored = {group: part.scored for group, part in parts.items() if part.scored is not None}
        if len(scored) < len(parts):
            raise ValueError(f"protocols.{name}.of must name verification sets (bin or pairs)")
        found = [
            Measurement(f"{group}/{m.name}", m.value, m.interval, m.note)
            for group, part in parts.items()
            for m in part.measurements
        ]
        scores = torch.cat([s.scores for s in scored.values()])
        same = torch.cat([s.pairs.same for s in scored.values()])
        common = tar_at_far(scores, same, far)
        rates: dict[str, list[float]] = {"accuracy": [], "far": [], "frr": []}
        for group, s in scored.items():
            accepted = s.scores > common.threshold
            own_far = float(accepted[~s.pairs.same].double().mean())
            own_frr = float((~accepted)[s.pairs.same].double().mean())
            found.append(
                Measurement(f"{group}/far@common", own_far, self.interval(proportion_interval, accepted[~s.pairs.same]))
            )
            found.append(
                Measurement(f"{group}/frr@common", own_frr, self.interval(proportion_interval, ~accepted[s.pairs.same]))
            )
            rates["far"].append(own_far)
            rates["frr"].append(own_frr)
            rates["accuracy"] += [m.value for m in parts[group].measurements if m.name == "accuracy"]
        for rate, values in rates.items():
            if len(values) == len(parts):
                note = f"largest less smallest; mean {np.mean(values):.4f}, std {np.std(values):.4f}"
                found.append(Measurement(f"gap/{rate}", max(values) - min(values), None, note))
        text = (
            f"{len(parts)} groups ({', '.join(parts)}); @common: cosine above {common.threshold:.4f}, "
            f"FAR {rate_name(far)} over all pairs"
        )
        return ProtocolResult(name, text, found)

    # --- all pairs and identification --------------------------------------------------------------------------------

    def all_pairs(self, name: str, path: str, block: int = 2048, identities: str | None = None) -> ProtocolResult:
        """True accept rates over all pairs of a set of images or embeddings with identities, or of those of a list."""
        faces, embeddings = self._open(name, path, identities)
        labels = _labels(faces)
        result = all_pairs_tar(embeddings, labels, self.settings.fars, block=block, peers=self.peers)
        found = []
        for n, point in enumerate(result.points):
            if point.wanted_far * result.num_impostor < 1:
                continue
            interval = self.interval(ratio_interval, result.accepted_by_identity[n], result.pairs_by_identity)
            note = f"{point.false_accepts} false, cos > {point.threshold:.4f}"
            found.append(Measurement(f"tar@far={rate_name(point.wanted_far)}", point.tar, interval, note))
        total = result.num_genuine + result.num_impostor
        text = (
            f"all {total:,} pairs ({result.num_genuine:,} genuine) of {len(labels):,} images, exact; intervals by "
            "identity at the threshold found"
        )
        return ProtocolResult(name, text, found)

    def identification(self, name: str, gallery: str, probes: str, distractors: str | None = None) -> ProtocolResult:
        """Probes against a gallery (and distractors): CMC, and TPIR at FPIR if some probes have no mate.

        Identities are matched by their names. TinyFace is this protocol.
        """
        enrolled, gallery_rows = self._open(f"{name}.gallery", gallery)
        sought, probe_rows = self._open(f"{name}.probes", probes)
        gallery_labels, probe_labels = _shared_labels(enrolled, sought)
        if distractors is not None:
            _, more = self._open(f"{name}.distractors", distractors)
            gallery_rows = torch.cat([gallery_rows, more])
            gallery_labels = torch.cat([gallery_labels, torch.full((len(more),), DISTRACTOR)])
        return self._identify(name, probe_rows, probe_labels, gallery_rows, gallery_labels)

    def open_set(self, name: str, path: str, identities: str | None = None) -> ProtocolResult:
        """One set as gallery and probes: the first image of each identity with several is enrolled, the rest search."""
        faces, embeddings = self._open(name, path, identities)
        labels = torch.unique(_labels(faces), return_inverse=True)[1]
        several = torch.bincount(labels)[labels] > 1
        first = torch.zeros_like(several)
        position = torch.full((int(labels.max()) + 1,), len(labels))
        first[position.scatter_reduce_(0, labels, torch.arange(len(labels)), "amin")] = True
        enrolled = several & first
        return self._identify(name, embeddings[~enrolled], labels[~enrolled], embeddings[enrolled], labels[enrolled])

    def one_shot(self, name: str, path: str, identities: str | None = None, draws: int = 10) -> ProtocolResult:
        """One drawn image of each identity is known, and every other one searches: the mean over several draws."""
        faces, embeddings = self._open(name, path, identities)
        labels = _labels(faces)
        found = one_shot(
            embeddings,
            labels,
            ranks=self.settings.ranks,
            draws=draws,
            level=self.settings.level,
            seed=self.settings.seed,
        )
        if not found:
            raise ValueError(f"protocols.{name}: no identity has two images, or there is only one identity")
        text = f"{len(torch.unique(labels)):,} identities, {len(labels):,} images; jackknife by identity"
        return ProtocolResult(name, text, found)

    def megaface(self, name: str, probes: str, distractors: str) -> ProtocolResult:
        """Every image against every other one of its identity, hidden among distractors."""
        faces, embeddings = self._open(f"{name}.probes", probes)
        _, others = self._open(f"{name}.distractors", distractors)
        who, rank = rank_among_distractors(embeddings, _labels(faces), others, peers=self.peers)
        found = [
            Measurement(f"rank-{k}", identification_rate(rank, k), self.interval(proportion_interval, rank < k, who))
            for k in self.settings.ranks
        ]
        text = f"{len(rank):,} trials of {len(embeddings):,} images among {len(others):,} distractors; by identity"
        return ProtocolResult(name, text, found)

    def ijb(
        self,
        name: str,
        root: str,
        subset: Literal["ijbb", "ijbc"] = "ijbc",
        feature_norm: Literal["keep", "unit"] = "keep",
        detector: bool = True,
        identification: bool = True,
    ) -> ProtocolResult:
        """IJB-B or IJB-C in the layout of InsightFace: 1:1, and 1:N if the gallery lists are there."""
        if self.embedder is None:
            raise ValueError(f"protocols.{name} holds images, but there is no model to embed them")
        mode = TemplateMode(flip=self.flip == "sum", feature_norm=feature_norm, detector=detector)
        return evaluate_ijb(self, name, root, subset, mode, identification)

    # --- details -----------------------------------------------------------------------------------------------------

    def _identify(
        self, name: str, probes: Tensor, probe_labels: Tensor, gallery: Tensor, gallery_labels: Tensor
    ) -> ProtocolResult:
        results = search(probes, probe_labels, gallery, gallery_labels, peers=self.peers)
        rank, who = results.rank[results.mated], probe_labels[results.mated]
        found = []
        if len(rank):
            found += [
                Measurement(
                    f"rank-{k}", identification_rate(rank, k), self.interval(proportion_interval, rank < k, who)
                )
                for k in self.settings.ranks
            ]
        strangers = int((~results.mated).sum())
        for fpir in self.settings.fpirs if strangers and len(rank) else ():
            if fpir * strangers < 1:
                continue
            value, threshold = tpir_at_fpir(results, fpir)
            interval = self.interval(proportion_interval, identified(results, threshold), who)
            found.append(Measurement(f"tpir@fpir={rate_name(fpir)}", value, interval, f"cos > {threshold:.4f}"))
        nobody = int((gallery_labels == DISTRACTOR).sum())
        text = (
            f"{len(rank):,} probes with a mate and {strangers:,} without in a gallery of {len(gallery):,} images"
            f"{f' ({nobody:,} distractors)' if nobody else ''}; intervals by identity, thresholds held"
        )
        return ProtocolResult(name, text, found)

    def interval(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """An interval by one of the functions of ``evaluation.bootstrap``, or None when none are wanted."""
        if not self.settings.replicates:
            return None
        return function(*arguments, **{**self._draws, **options})

    def input_size(self, name: str) -> tuple[int, int, int]:
        """(C, H, W) that the model wants."""
        if self.embedder is None:
            raise ValueError(
                f"protocols.{name} holds images, but there is no model: choose embedder=checkpoint or onnx"
            )
        return self.embedder.input_size

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How pictures are made for the model: what it says, but for the user's words; None without one."""
        s = self.settings
        if self.embedder is None:
            return None
        return preprocessing_of(self.embedder).changed(fit=s.fit, resampling=s.resampling, flip=s.flip)

    @property
    def flip(self) -> Flip:
        """Whether the embeddings of mirror images are added."""
        known = self.preprocessing
        return known.flip if known else self.settings.flip or "none"

    def _pictures(self, name: str, encoded: Any) -> EncodedFaces:
        self.input_size(name)  # refuses where there is no model
        known = self.preprocessing
        assert known is not None
        return EncodedFaces(encoded, known, max_pixels=self.settings.max_pixels)

    def embed(self, images: ImageTable) -> Tensor:
        """Embeddings of all pictures, (N, D), the same on every rank."""
        if self.embedder is None:
            raise ValueError("there is no model to embed images: choose embedder=checkpoint or onnx")
        s = self.settings
        return embed_images(
            self.embedder,
            images,
            flip=self.flip,
            batch_size=s.batch_size,
            num_workers=s.num_workers,
            peers=self.peers,
        )

    def _open(self, name: str, path: str, identities: str | None = None) -> tuple[FaceSet, Tensor]:
        faces = open_faces(path, self.preprocessing, max_pixels=self.settings.max_pixels, allow=self.settings.allow)
        if identities is not None:
            faces = of_identities(faces, identities)
        if faces.embeddings is not None:
            return faces, faces.embeddings
        if faces.images is None:
            raise ValueError(f"protocols.{name} is empty")
        return faces, self.embed(faces.images)

    def _named_pairs(self, name: str, path: str, embeddings: str) -> ProtocolResult:
        faces = open_faces(embeddings, None)
        if faces.names is None or faces.embeddings is None:
            raise ValueError(f"{embeddings} has no names, which a list of pairs needs")
        listed, folds = read_pairs(path)
        row = {n: i for i, n in enumerate(faces.names)}
        row.update({Path(n).with_suffix("").as_posix(): i for n, i in list(row.items())})
        missing = [n for pair in listed for n in pair[:2] if n not in row]
        if missing:
            raise FormatError(
                f"{len(missing)} images have no embedding in {embeddings}, the first is {missing[0]!r}", path=path
            )
        count = len(listed)
        fold = fold_of_pair(count, folds) if count >= folds > 1 else torch.full((count,), -1)
        pairs = IndexedPairs(
            torch.tensor([row[p.first] for p in listed]),
            torch.tensor([row[p.second] for p in listed]),
            torch.tensor([p.same for p in listed]),
            fold,
        )
        return self.verify(name, pairs, None, embeddings=faces.embeddings, identities=faces.labels)


_FILES = {"path", "images", "embeddings", "gallery", "probes", "distractors", "root", "identities"}

PROTOCOLS: dict[str, Callable[..., ProtocolResult]] = {
    "all_pairs": Evaluator.all_pairs,
    "bin": Evaluator.bin,
    "groups": Evaluator.groups,
    "identification": Evaluator.identification,
    "ijb": Evaluator.ijb,
    "megaface": Evaluator.megaface,
    "open_set": Evaluator.open_set,
    "pairs": Evaluator.pairs,
    "one_shot": Evaluator.one_shot,
    "run": Evaluator.run_set,
    "tinyface": Evaluator.identification,
}


def check_protocol(
    name: str, protocol: str | os.PathLike[str] | Mapping[str, Any]
) -> tuple[Callable[..., ProtocolResult], dict[str, Any]]:
    """The method and the arguments that a protocol of a config stands for, without running it.

    Raises:
        ValueError: As :meth:`Evaluator.run`.
    """
    if not isinstance(protocol, Mapping):
        protocol = {"type": "bin" if str(protocol).endswith(".bin") else "pairs", "path": protocol}
    arguments = dict(protocol)
    kind = arguments.pop("type", None)
    if kind not in PROTOCOLS:
        raise ValueError(f"protocols.{name} has type {kind!r}; there are: {', '.join(sorted(PROTOCOLS))}")
    method = PROTOCOLS[str(kind)]
    try:
        inspect.signature(method).bind(None, name, **arguments)
    except TypeError as error:
        raise ValueError(f"protocols.{name} of type {kind}: {error}") from error
    return method, arguments


def missing_files(name: str, protocol: str | os.PathLike[str] | Mapping[str, Any]) -> list[str]:
    """The files and folders of a protocol that are not there; patterns of shards are left to their reader.

    Raises:
        ValueError: As :meth:`Evaluator.run`.
    """
    arguments = check_protocol(name, protocol)[1]
    groups = arguments.get("of", {})
    within = [path for group, entry in groups.items() for path in missing_files(f"{name}.of.{group}", entry)]
    named = [str(value) for key, value in arguments.items() if key in _FILES and value is not None]
    return [path for path in named if not set(path) & set("{*") and not Path(path).exists()] + within


def _labels(faces: FaceSet) -> Tensor:
    if faces.labels is None:
        raise ValueError(f"{faces.source} names no identities (label), which this protocol needs")
    return faces.labels


def _shared_labels(gallery: FaceSet, probes: FaceSet) -> tuple[Tensor, Tensor]:
    """Labels of two sets in one numbering: by the folder in their names where both have one, else as they are."""
    one, two = _folders(gallery), _folders(probes)
    if one is None or two is None:
        return _labels(gallery), _labels(probes)
    number = {identity: i for i, identity in enumerate(sorted({*one, *two}))}
    return torch.tensor([number[i] for i in one]), torch.tensor([number[i] for i in two])


def _folders(faces: FaceSet) -> list[str] | None:
    if faces.names is None or not all("/" in name for name in faces.names):
        return None
    return [name.split("/", 1)[0] for name in faces.names]
