"""Probes against a gallery: what is reported of a search."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pfc.evaluation.context import EvaluationContext
from lightning_pfc.evaluation.identification import (
    DISTRACTOR,
    identification_rate,
    identified,
    search,
    tpir_at_fpir,
)
from lightning_pfc.evaluation.intervals import proportion_interval
from lightning_pfc.evaluation.report import Measurement, ProtocolResult, unresolved
from lightning_pfc.metrics.verification import rate_name


def identify(
    context: EvaluationContext, name: str, probes: Tensor, probe_labels: Tensor, gallery: Tensor, gallery_labels: Tensor
) -> ProtocolResult:
    """The CMC of probes with a mate, and TPIR at FPIR where some have none.

    Args:
        context: Whose settings are followed.
        name: What the user calls the set.
        probes: (P, D) embeddings that search.
        probe_labels: Identity of each, (P,) int64.
        gallery: (G, D) enrolled embeddings.
        gallery_labels: Identity of each, (G,) int64, or ``DISTRACTOR``.

    Raises:
        ValueError: No probe has a mate, or every gallery image is one of every probe, so that nothing can be missed.
    """
    results = search(probes, probe_labels, gallery, gallery_labels, peers=context.peers)
    rank, who = results.rank[results.mated], probe_labels[results.mated]
    strangers = int((~results.mated).sum())
    _refuse_without_question(name, len(rank), strangers, gallery_labels)
    found = cumulative_match(context, rank, who)
    for fpir in context.settings.fpirs if strangers else ():
        if fpir * strangers < 1:
            continue
        value, threshold = tpir_at_fpir(results, fpir)
        interval = context.interval(proportion_interval, identified(results, threshold), who)
        found.append(Measurement(f"tpir@fpir={rate_name(fpir)}", value, interval, f"cos > {threshold:.4f}"))
    distractors = int((gallery_labels == DISTRACTOR).sum())
    text = (
        f"{len(rank):,} probes with a mate and {strangers:,} without in a gallery of {len(gallery):,} images"
        f"{f' ({distractors:,} distractors)' if distractors else ''}; intervals by identity, thresholds held"
        f"{unresolved('FPIR', context.settings.fpirs, strangers, 'probes without a mate') if strangers else ''}"
    )
    return ProtocolResult(name, text, found)


def _refuse_without_question(name: str, mated: int, strangers: int, gallery_labels: Tensor) -> None:
    if not mated:
        raise ValueError(
            f"protocols.{name}: not one of {strangers:,} probes has its identity in the gallery, so nothing can be "
            "found; identities are matched by name: of the data, of the folder of an embedding, or by label"
        )
    if not strangers and len(torch.unique(gallery_labels)) < 2:
        raise ValueError(
            f"protocols.{name}: gallery and probes show one identity, so every answer is right; a second one is needed"
        )


def cumulative_match(context: EvaluationContext, rank: Tensor, who: Tensor) -> list[Measurement]:
    """How often the mate is among the first k (CMC), for each k of the settings.

    Args:
        context: Whose settings are followed.
        rank: Of each probe's mate, (n,) int64; 0 is the first.
        who: Identity of each probe, (n,) int64.
    """
    return [
        Measurement(f"rank-{k}", identification_rate(rank, k), context.interval(proportion_interval, rank < k, who))
        for k in context.settings.ranks
    ]
