"""One case, all contestants: first the losses must agree, then they take turns, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from cases import Case
from contestants import CONTESTANTS
from worker import Remote

_PARTS = ("forward", "backward", "optimizer", "total")


def runnable(names: list[str], case: Case, peer: str | None) -> list[str]:
    """Those of ``names`` that can take part in a case."""
    chosen = []
    for name in names:
        maker: Any = CONTESTANTS[name]
        if (
            (case.rate < 1 and not maker.samples)
            or (case.ranks > 1 and not maker.shards)
            or (name == "peer" and not peer)
        ):
            continue
        chosen.append(name)
    return chosen


def compare(
    case: Case,
    names: list[str],
    peer: str | None,
    repeats: int,
    warmup: int,
    say: Callable[[str], None],
    profile: int = 0,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Measure a case.

    Args:
        case: what to measure.
        names: of the contestants.
        peer: file of a head, see :mod:`peer_head`.
        repeats: timed rounds.
        warmup: rounds before them.
        say: told what is going on.
        profile: how many operators of a profile to add; 0 for no profile.
        seconds: no further round is begun when they are over (two always are); None has no limit.

    Returns:
        ``case`` and ``results``, by contestant: median seconds of each part (of the slowest rank), the quartiles of the
        total, bytes of memory (of the rank that uses most), and how the losses agreed.

    Raises:
        RuntimeError: if a contestant fails, or its loss is not ours.
    """
    remotes: dict[str, Remote] = {}
    results: dict[str, dict[str, Any]] = {}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    try:
        for name in names:
            say(f"{name}: building")
            remotes[name] = Remote(name, case, peer)
            remotes[name].ask("build")
        results = {name: {"agreement": _agreement(name, remotes, case)} for name in names}
        for i in range(warmup):
            for name in names:
                say(f"{name}: warming up")
                remotes[name].ask("step", i + 1)
        started = time.monotonic()
        for i in range(repeats):
            if seconds is not None and i >= 2 and time.monotonic() - started > seconds:
                break
            say(f"round {i + 1} of {repeats}")
            for name in names[i % len(names) :] + names[: i % len(names)]:  # nobody always follows the same one
                ranks = remotes[name].ask("step", warmup + i + 1)
                times[name].append({part: max(r[part] for r in ranks) for part in _PARTS} | {"loss": ranks[0]["loss"]})
        for name in names:
            rounds = times[name]
            memory = max(remotes[name].ask("memory"), key=lambda m: m["peak"])
            totals = sorted(r["total"] for r in rounds)
            results[name] |= {part: median(r[part] for r in rounds) for part in _PARTS}
            results[name] |= {
                "quartiles": [totals[len(totals) // 4], totals[-1 - len(totals) // 4]],
                "last_loss": rounds[-1]["loss"],
            }
            results[name] |= memory | {"above_baseline": memory["peak"] - memory["baseline"]}
            results[name]["description"] = (CONTESTANTS[name].__doc__ or "").split("\n")[0]
            if profile:
                results[name]["profile"] = remotes[name].ask("profile", warmup + repeats + 1, profile)[0]
    finally:
        for remote in remotes.values():
            remote.close()
    return {"case": case.as_dict(), "repeats": min(len(rounds) for rounds in times.values()), "results": results}


def _agreement(name: str, remotes: dict[str, Remote], case: Case) -> dict[str, float] | None:
    """How far loss and embeddings' gradient are from our head's, relatively, from the same centers and classes."""
    loss = CONTESTANTS[name].loss  # type: ignore[attr-defined]
    referee = next((n for n in ("ours", "ours-adagrad", "ours-softmax") if n in remotes), None)
    if loss is None or referee is None or name == referee:
        return None
    mine = remotes[referee].ask("check", loss)
    theirs = remotes[name].ask("check", loss if name.startswith("ours") else None)
    difference = max(abs(a.loss - b.loss) / max(abs(a.loss), 1e-12) for a, b in zip(mine, theirs, strict=True))
    gradient = max(float((a.x_grad - b.x_grad).norm() / a.x_grad.norm()) for a, b in zip(mine, theirs, strict=True))
    tolerance = 1e-2 if name in ("ours-bf16", "ours-half", "ours-half-lean") else 1e-4
    if difference > tolerance or gradient > 10 * tolerance:
        raise RuntimeError(
            f"{name} computes something else than our head, {case}: loss {theirs[0].loss:.6f} against "
            f"{mine[0].loss:.6f}, the embeddings' gradients differ by {gradient:.2e} of their length. Times of "
            "different things do not compare."
        )
    return {"loss": difference, "gradient": gradient, "value": theirs[0].loss}
