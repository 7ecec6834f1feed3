"""The protocols of evaluation, by the names that configs know; a new one is one more method of :class:`Evaluator`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_pfc.data.images import ImageTable
from lightning_pfc.evaluation.all_pairs import all_pairs_tar
from lightning_pfc.evaluation.bins import BinImages
from lightning_pfc.evaluation.context import EvaluationContext
from lightning_pfc.evaluation.faces import labels_of, open_faces, shared_labels
from lightning_pfc.evaluation.group_gaps import compare_groups
from lightning_pfc.evaluation.identification import DISTRACTOR, check_widths, rank_among_distractors
from lightning_pfc.evaluation.identification_rates import cumulative_match, identify
from lightning_pfc.evaluation.ijb import evaluate_ijb
from lightning_pfc.evaluation.intervals import ratio_interval
from lightning_pfc.evaluation.one_shot import one_shot
from lightning_pfc.evaluation.pairs import IndexedPairs, PairedImages, pairs_by_name
from lightning_pfc.evaluation.protocol_config import check_protocol, protocol
from lightning_pfc.evaluation.report import Measurement, ProtocolResult, unresolved
from lightning_pfc.evaluation.templates import TemplateMode
from lightning_pfc.evaluation.verification import verify_pairs
from lightning_pfc.metrics.verification import rate_name


class Evaluator(EvaluationContext):
    """Runs protocols with one model; every rank must run the same ones.

    A method under ``@protocol`` is one that a config knows by name: its arguments are the keys of the config, and it
    returns what it measured. So a new protocol is a method here, and what it computes a function in a file of its own.

    Args:
        embedder: The model; None if all sets are embeddings made elsewhere.
        settings: What the protocols share.
        peers: The ranks; None takes the default process group if there is one.
    """

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

    @protocol("bin")
    def bin(self, name: str, path: str) -> ProtocolResult:
        """Verification on a ``.bin`` file."""
        images = BinImages(path)
        return self.verify(name, images.pairs(), self.pictures(name, images))

    @protocol("run")
    def run_set(self, name: str, path: str, set: str = "test") -> ProtocolResult:
        """Verification on identities that a run of ``pfc-train`` held out: those of its validation or its test."""
        part = self.held_out(name, path, set)
        pairs = IndexedPairs(part.pairs.first, part.pairs.second, part.pairs.same, part.pairs.fold)
        return self.verify(name, pairs, part.images, identities=part.identity)

    @protocol("pairs")
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

    @protocol("groups")
    def groups(self, name: str, of: Mapping[str, Any], far: float = 1e-3) -> ProtocolResult:
        """A set for each group of people (RFW): the numbers of each, and the gaps between them.

        The gaps are between accuracies of groups judged each by its own thresholds, as RFW reports, and between the
        false accept and false reject rates of groups judged by ONE threshold, that of ``far`` over all groups' pairs.
        """
        parts = {group: self.run(f"{name}/{group}", entry) for group, entry in of.items()}
        return compare_groups(self, name, parts, far)

    # --- all pairs and identification --------------------------------------------------------------------------------

    @protocol("all_pairs")
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

    @protocol("identification", "tinyface")
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

    @protocol("open_set")
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

    @protocol("one_shot")
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

    @protocol("megaface")
    def megaface(self, name: str, probes: str, distractors: str) -> ProtocolResult:
        """Every image against every other one of its identity, hidden among distractors."""
        faces, embeddings = self._open(f"{name}.probes", probes)
        _, others = self._open(f"{name}.distractors", distractors)
        who, rank = rank_among_distractors(embeddings, labels_of(faces), others, peers=self.peers)
        found = cumulative_match(self, rank, who)
        text = f"{len(rank):,} trials of {len(embeddings):,} images among {len(others):,} distractors; by identity"
        return ProtocolResult(name, text, found)

    @protocol("ijb")
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

    def _named_pairs(self, name: str, path: str, embeddings: str) -> ProtocolResult:
        faces = open_faces(embeddings, None)
        if faces.names is None or faces.embeddings is None:
            raise ValueError(f"{embeddings} has no names, which a list of pairs needs")
        pairs = pairs_by_name(path, faces.names, where=embeddings)
        return self.verify(name, pairs, None, embeddings=faces.embeddings, identities=faces.labels)
