"""Gaps between groups of people: of accuracies, and of error rates at one threshold."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from lightning_pfc.evaluation.context import EvaluationContext
from lightning_pfc.evaluation.intervals import proportion_interval
from lightning_pfc.evaluation.report import Measurement, ProtocolResult, ScoredPairs
from lightning_pfc.metrics.functional import tar_at_far
from lightning_pfc.metrics.verification import rate_name


def compare_groups(
    context: EvaluationContext, name: str, results: Mapping[str, ProtocolResult], far: float
) -> ProtocolResult:
    """The numbers of each group, and the gaps between them.

    Args:
        context: Whose settings are followed.
        name: What the user calls the set.
        results: What verification found on each group.
        far: False accept rate over the pairs of all groups, at whose threshold the groups are compared.

    Raises:
        ValueError: There are not two groups, or one is no verification set.
    """
    if len(results) < 2:
        raise ValueError(f"protocols.{name}.of names {len(results)} groups; a gap needs at least two")
    scored = {group: result.scored for group, result in results.items() if result.scored is not None}
    if len(scored) < len(results):
        raise ValueError(f"protocols.{name}.of must name verification sets (bin or pairs)")
    found = [
        Measurement(f"{group}/{m.name}", m.value, m.interval, m.note)
        for group, result in results.items()
        for m in result.measurements
    ]
    scores = torch.cat([s.scores for s in scored.values()])
    threshold = tar_at_far(scores, torch.cat([s.pairs.same for s in scored.values()]), far).threshold
    rates: dict[str, list[float]] = {"accuracy": [], "far": [], "frr": []}
    for group, s in scored.items():
        errors = _errors(context, group, s, threshold)
        found += errors
        for rate, error in zip(("far", "frr"), errors, strict=True):
            rates[rate].append(error.value)
        rates["accuracy"] += [m.value for m in results[group].measurements if m.name == "accuracy"]
    for rate, values in rates.items():
        if len(values) == len(results):
            note = f"largest less smallest; mean {np.mean(values):.4f}, std {np.std(values):.4f}"
            found.append(Measurement(f"gap/{rate}", max(values) - min(values), None, note))
    text = (
        f"{len(results)} groups ({', '.join(results)}); @common: cosine above {threshold:.4f}, "
        f"FAR {rate_name(far)} over all pairs"
    )
    return ProtocolResult(name, text, found)


def _errors(context: EvaluationContext, group: str, scored: ScoredPairs, threshold: float) -> list[Measurement]:
    """False accept and false reject rate of one group at the threshold of all."""
    accepted, same = scored.scores > threshold, scored.pairs.same
    wrong = {"far": accepted[~same], "frr": ~accepted[same]}
    return [
        Measurement(f"{group}/{rate}@common", float(w.double().mean()), context.interval(proportion_interval, w))
        for rate, w in wrong.items()
    ]
