"""The protocols by name, run one after the other with one model."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_pfc.checked import check_call, check_path
from lightning_pfc.data.images import ImageTable
from lightning_pfc.data.preprocessing import Flip, Preprocessing
from lightning_pfc.data.verification import VerificationSet
from lightning_pfc.evaluation.all_pairs import all_pairs_tar
from lightning_pfc.evaluation.bins import BinImages
from lightning_pfc.evaluation.embedders import Embedder, embed_images, preprocessing_of
from lightning_pfc.evaluation.faces import EncodedFaces, FaceSet, labels_of, of_identities, open_faces, shared_labels
from lightning_pfc.evaluation.group_gaps import compare_groups
from lightning_pfc.evaluation.identification import DISTRACTOR, check_widths, rank_among_distractors
from lightning_pfc.evaluation.identification_rates import cumulative_match, identify
from lightning_pfc.evaluation.ijb import evaluate_ijb
from lightning_pfc.evaluation.intervals import ratio_interval
from lightning_pfc.evaluation.one_shot import one_shot
from lightning_pfc.evaluation.pairs import IndexedPairs, PairedImages, pairs_by_name
from lightning_pfc.evaluation.peers import Peers
from lightning_pfc.evaluation.report import Measurement, ProtocolResult, unresolved
from lightning_pfc.evaluation.run_pictures import held_out
from lightning_pfc.evaluation.settings import EvaluationSettings
from lightning_pfc.evaluation.templates import TemplateMode
from lightning_pfc.evaluation.verification import verify_pairs
from lightning_pfc.metrics.functional.checks import check_rate
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

    def run(self, name: str, protocol: str | os.PathLike[str] | Mapping[str, Any]) -> ProtocolResult:
        """Run one protocol.

        Args:
            name: What the user calls the set.
            protocol: A file (``.bin``, or a list of pairs beside its images), or a mapping with ``type`` and the
                arguments of the method of that name.

        Returns:
            The numbers.

        Raises:
            ValueError: For an unknown type or argument (says which exist), what the protocol itself finds wrong, or
                where there was nothing to measure.
        """
        method, arguments = check_protocol(name, protocol)
        result = method(self, name, **arguments)
        if not result.measurements:
            raise ValueError(f"protocols.{name} measured nothing: {result.description}")
        return result

    # --- verification ------------------------------------------------------------------------------------------------

    def bin(self, name: str, path: str) -> ProtocolResult:
        """Verification on a ``.bin`` file."""
        images = BinImages(path)
        return self.verify(name, images.pairs(), self.pictures(name, images))

    def run_set(self, name: str, path: str, set: str = "test") -> ProtocolResult:
        """Verification on identities that a run of ``pfc-train`` held out: those of its validation or its test."""
        part = self.held_out(name, path, set)
        pairs = IndexedPairs(part.pairs.first, part.pairs.second, part.pairs.same, part.pairs.fold)
        return self.verify(name, pairs, part.images, identities=part.identity)

    def pairs(self, name: str, path: str, images: str | None = None, embeddings: str | None = None) -> ProtocolResult:
        """Verification on a list of pairs, over a folder of images or over embeddings with names."""
        if embeddings is not None:
            return self._named_pairs(name, path, embeddings)
        listed = PairedImages(path, images, allow=self.settings.allow)
        identities = torch.from_numpy(listed.identities)
        return self.verify(name, listed.pairs(), self.pictures(name, listed), identities=identities)

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
        return verify_pairs(self, name, pairs, embeddings, images, identities)

    def groups(self, name: str, of: Mapping[str, Any], far: float = 1e-3) -> ProtocolResult:
        """A set for each group of people (RFW): the numbers of each, and the gaps between them.

        The gaps are between accuracies of groups judged each by its own thresholds, as RFW reports, and between the
        false accept and false reject rates of groups judged by ONE threshold, that of ``far`` over all groups' pairs.
        """
        parts = {group: self.run(f"{name}/{group}", entry) for group, entry in of.items()}
        return compare_groups(self, name, parts, far)

    # --- all pairs and identification --------------------------------------------------------------------------------

    def all_pairs(self, name: str, path: str, block: int = 2048, identities: str | None = None) -> ProtocolResult:
        """True accept rates over all pairs of a set of images or embeddings with identities, or of those of a list."""
        faces, embeddings = self._open(name, path, identities)
        labels = labels_of(faces)
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
            f"identity at the threshold found{unresolved('FAR', self.settings.fars, result.num_impostor, 'of them')}"
        )
        return ProtocolResult(name, text, found)

    def identification(self, name: str, gallery: str, probes: str, distractors: str | None = None) -> ProtocolResult:
        """Probes against a gallery (and distractors): CMC, and TPIR at FPIR if some probes have no mate.

        Identities are matched by their names. TinyFace is this protocol.
        """
        enrolled, gallery_rows = self._open(f"{name}.gallery", gallery)
        sought, probe_rows = self._open(f"{name}.probes", probes)
        gallery_labels, probe_labels = shared_labels(enrolled, sought)
        if distractors is not None:
            _, more = self._open(f"{name}.distractors", distractors)
            check_widths(gallery=gallery_rows, distractors=more)
            gallery_rows = torch.cat([gallery_rows, more])
            gallery_labels = torch.cat([gallery_labels, torch.full((len(more),), DISTRACTOR)])
        return identify(self, name, probe_rows, probe_labels, gallery_rows, gallery_labels)

    def open_set(self, name: str, path: str, identities: str | None = None) -> ProtocolResult:
        """One set as gallery and probes: the first image of each identity with several is enrolled, the rest search."""
        faces, embeddings = self._open(name, path, identities)
        labels = torch.unique(labels_of(faces), return_inverse=True)[1]
        several = torch.bincount(labels)[labels] > 1
        if not bool(several.any()):
            raise ValueError(f"protocols.{name}: no identity of {path} has two images, one to enroll and one to search")
        first = torch.zeros_like(several)
        position = torch.full((int(labels.max()) + 1,), len(labels))
        first[position.scatter_reduce_(0, labels, torch.arange(len(labels)), "amin")] = True
        enrolled = several & first
        return identify(self, name, embeddings[~enrolled], labels[~enrolled], embeddings[enrolled], labels[enrolled])

    def one_shot(self, name: str, path: str, identities: str | None = None, draws: int = 10) -> ProtocolResult:
        """One drawn image of each identity is known, and every other one searches: the mean over several draws."""
        faces, embeddings = self._open(name, path, identities)
        labels = labels_of(faces)
        found = one_shot(
            embeddings,
            labels,
            ranks=self.settings.ranks,
            draws=draws,
            level=self.settings.level,
            seed=self.settings.seed,
        )
        if not found:
            raise ValueError(
                f"protocols.{name}: no identity has two images, there is only one identity, or settings.ranks "
                f"({', '.join(map(str, self.settings.ranks))}) are not below the number of identities"
            )
        text = f"{len(torch.unique(labels)):,} identities, {len(labels):,} images; jackknife by identity"
        return ProtocolResult(name, text, found)

    def megaface(self, name: str, probes: str, distractors: str) -> ProtocolResult:
        """Every image against every other one of its identity, hidden among distractors."""
        faces, embeddings = self._open(f"{name}.probes", probes)
        _, others = self._open(f"{name}.distractors", distractors)
        who, rank = rank_among_distractors(embeddings, labels_of(faces), others, peers=self.peers)
        found = cumulative_match(self, rank, who)
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

    def interval(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """An interval by one of the functions of ``evaluation.intervals``, or None when none are wanted."""
        if not self.settings.replicates:
            return None
        return function(*arguments, level=self.settings.level)

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

    def _wanted(self, name: str) -> Preprocessing:
        self.input_size(name)  # refuses where there is no model
        known = self.preprocessing
        assert known is not None
        return known

    def pictures(self, name: str, encoded: Any) -> EncodedFaces:
        """Encoded images of a protocol as the model wants them."""
        return EncodedFaces(encoded, self._wanted(name), max_pixels=self.settings.max_pixels)

    def held_out(self, name: str, path: str, set: str) -> VerificationSet:
        """A set of identities that a run held out, as the model wants its pictures, bounded as the run says."""
        return held_out(Run(path), set, self._wanted(name))

    def faces(self, path: str, identities: str | None = None) -> FaceSet:
        """Images, as the model wants them, or embeddings made elsewhere; perhaps of the identities of a list alone."""
        s = self.settings
        faces = open_faces(path, self.preprocessing, max_pixels=s.max_pixels, allow=s.allow)
        return faces if identities is None else of_identities(faces, identities)

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
        faces = self.faces(path, identities)
        if faces.embeddings is not None:
            return faces, faces.embeddings
        if faces.images is None:
            raise ValueError(f"protocols.{name} is empty")
        return faces, self.embed(faces.images)

    def _named_pairs(self, name: str, path: str, embeddings: str) -> ProtocolResult:
        faces = open_faces(embeddings, None)
        if faces.names is None or faces.embeddings is None:
            raise ValueError(f"{embeddings} has no names, which a list of pairs needs")
        pairs = pairs_by_name(path, faces.names, where=embeddings)
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
    if str(kind) not in PROTOCOLS:
        raise ValueError(f"protocols.{name} has type {kind!r}; there are: {', '.join(sorted(PROTOCOLS))}")
    method = PROTOCOLS[str(kind)]
    try:
        inspect.signature(method).bind(None, name, **arguments)
    except TypeError as error:
        raise ValueError(f"protocols.{name} of type {kind}: {error}") from error
    for key in _FILES & set(arguments):
        if arguments[key] is not None:
            check_path(f"protocols.{name}.{key}", arguments[key])
    _check_values(f"protocols.{name}", method, arguments)
    return method, arguments


def _check_values(where: str, method: Callable[..., ProtocolResult], arguments: Mapping[str, Any]) -> None:
    """Values that are no paths, before a model is loaded and the first set measured."""
    check_call(method, {key: value for key, value in arguments.items() if key not in _FILES}, where)
    for key in ("block", "draws"):
        if key in arguments and arguments[key] < 1:
            raise ValueError(f"{where}.{key}={arguments[key]} must be at least 1")
    if "far" in arguments:
        check_rate(arguments["far"], f"{where}.far")
    if not isinstance(arguments.get("of", {}), Mapping):
        raise ValueError(f"{where}.of={arguments['of']!r} must be groups by name: {{GROUP: PROTOCOL, ...}}")


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
