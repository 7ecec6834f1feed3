"""``pfc-eval calibrate...``: thresholds chosen on one set, tried on the others, written into the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_pfc.calibration.choose_identification import check_identification, choose_identification
from lightning_pfc.calibration.choose_verification import (
    LEAST_FALSE_ACCEPTS,
    check,
    choose,
    independent_accepts,
)
from lightning_pfc.calibration.gathering import KINDS, gather
from lightning_pfc.calibration.material import Material
from lightning_pfc.calibration.spread import Draws
from lightning_pfc.data.preprocessing import Flip
from lightning_pfc.evaluation.protocols import Evaluator
from lightning_pfc.metrics.functional.checks import check_rate
from lightning_pfc.runs.run_folder import THRESHOLDS, read_thresholds
from lightning_pfc.runs.thresholds import Threshold, Thresholds
from lightning_pfc.storage.whole_files import write_json

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """The group ``calibrate`` of ``pfc-eval``.

    Attributes:
        far: False accept rates of pairs, a number or several; None chooses none.
        fpir: Shares of strangers who may find a match in a gallery, likewise.
        gallery: Identities in that gallery.
        set: Name of the protocol to choose on; None is the first. All others are second sets.
        flip: How pictures are embedded: as ``Recogniser`` does by default, ``"none"``, or ``"sum"``.
        pictures: Most pictures of an identity that take part.
        out: File to write; None is the run's.
    """

    far: float | Sequence[float] | None = None
    fpir: float | Sequence[float] | None = None
    gallery: int = 1000
    set: str | None = None
    flip: Flip = "none"
    pictures: int = 10
    out: str | None = None

    def __post_init__(self) -> None:
        for name in ("far", "fpir"):
            for rate in self.rates(name):
                check_rate(rate, f"calibrate.{name}")
                if rate >= 1:
                    raise ValueError(f"calibrate.{name}={rate} must lie below 1")
        for name in ("gallery", "pictures"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"calibrate.{name}={value!r} must be an integer of at least 1")
        if self.flip not in ("none", "sum"):
            raise ValueError(f"calibrate.flip={self.flip!r} is unknown; use 'none' or 'sum'")

    def rates(self, name: str) -> list[float]:
        """The rates of ``"far"`` or ``"fpir"``."""
        value = getattr(self, name)
        if value is None:
            return []
        rates = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        try:
            return [float(rate) for rate in rates]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"calibrate.{name}={value!r} is no rate; give a number such as 1e-3, or a list of them"
            ) from error

    @property
    def wanted(self) -> bool:
        """Whether anything is to be chosen."""
        return bool(self.rates("far") or self.rates("fpir"))


def calibrate(
    evaluator: Evaluator, protocols: Mapping[str, Any], words: Calibrate, *, model: str
) -> tuple[list[Threshold], list[str]]:
    """Choose thresholds on one set and try them on the others. A collective; every rank finds the same.

    Args:
        evaluator: Model, settings and ranks.
        protocols: By name, as in the config.
        words: What is wanted.
        model: Fingerprint of the weights.

    Returns:
        The thresholds, and what to tell the user.

    Raises:
        UnresolvedRateError: a set is too small for a rate.
        ValueError: there is no set to choose on.
    """
    usable = {name: entry for name, entry in protocols.items() if _kind(entry) in KINDS}
    chosen = words.set or next(iter(usable), None)
    if chosen is None or chosen not in protocols:
        raise ValueError(
            f"calibrate.set={words.set}: there is no such protocol to choose a threshold on; there are "
            f"{', '.join(usable) or 'none'} (types {', '.join(KINDS)})"
        )
    material = _gathered(evaluator, chosen, protocols[chosen], words)
    s = evaluator.settings
    draws = Draws(level=s.level, replicates=max(s.replicates, 200), seed=s.seed)
    found = _chosen(material, words, model, draws)  # before the others are embedded: a set may be too small for a rate
    others = [_gathered(evaluator, name, protocols[name], words) for name in usable if name != chosen]
    found = [_tried(threshold, material, others, draws) for threshold in found]
    return found, [line for threshold in found for line in _lines(threshold, material)]


def _gathered(evaluator: Evaluator, name: str, protocol: Any, words: Calibrate) -> Material:
    _log.info("%s, for thresholds ...", name)
    return gather(evaluator, name, protocol, flip=words.flip, pictures=words.pictures)


def _chosen(material: Material, words: Calibrate, model: str, draws: Draws) -> list[Threshold]:
    about: dict[str, Any] = {"flip": words.flip, "model": model, "draws": draws}
    return [
        *(choose(material, far, **about) for far in words.rates("far")),
        *(choose_identification(material, fpir, words.gallery, **about) for fpir in words.rates("fpir")),
    ]


def _tried(threshold: Threshold, material: Material, others: Sequence[Material], draws: Draws) -> Threshold:
    """With what it does on the second sets; one that is too small for its gallery says nothing."""
    tried = check if threshold.kind == "verification" else check_identification
    found = {other.name: tried(material, threshold, other, draws) for other in others}
    return replace(threshold, second_sets={name: entry for name, entry in found.items() if entry is not None})


def write_thresholds(path: Path, thresholds: Sequence[Threshold]) -> None:
    """Add thresholds to a file, in place of those of the same names; whole or not at all."""
    before = read_thresholds(path)
    known = Thresholds({**before, **{threshold.name: threshold for threshold in thresholds}})
    write_json(path, {"thresholds": known.to_dict()})


def target_of(words: Calibrate, run: str | os.PathLike[str] | None, checkpoint: str | None, folder: Path) -> Path:
    """Where thresholds go: the user's file, the run of the model, or else the folder of this evaluation."""
    if words.out:
        return Path(words.out)
    if run:
        return Path(run) / THRESHOLDS
    if checkpoint:
        owner = Path(checkpoint).absolute().parent.parent
        if (owner / "config.yaml").is_file():
            return owner / THRESHOLDS
    return folder / THRESHOLDS


def _kind(entry: Any) -> str:
    if isinstance(entry, Mapping):
        return str(entry.get("type"))
    return "bin" if str(entry).endswith(".bin") else "pairs"


def _lines(t: Threshold, chosen_on: Material) -> list[str]:
    percent = round(100 * t.level)
    who = f"{t.identities:,} identities" if t.identities is not None else "pairs without identities"
    trials, event = ("impostor pairs", "false accepts") if t.kind == "verification" else ("searches", "false alarms")
    low, high = t.value_interval or (t.value, t.value)
    lines = [
        f"threshold {t.name}: cosine above {t.value:.4f} ({low:.4f} .. {high:.4f}), chosen on {t.chosen_on}: {who}, "
        f"{t.trials:,} {trials}, {t.false_accepts:,} {event}",
        f"  a rate of {t.rate:.1e}; as many other {t.unit} will show {t.interval[0]:.1e} .. {t.interval[1]:.1e} "
        f"({percent} %){_accepts(t.accept_rate, t.accept_interval)}",
    ]
    if t.unit == "pairs":
        lines.append("  the pairs name no identities, so they were drawn as if independent: the interval is too narrow")
    elif t.kind == "verification":
        worth = independent_accepts(chosen_on, t)
        if worth < LEAST_FALSE_ACCEPTS:
            lines.append(
                f"  few identities make most of the false accepts: they are worth {worth:.0f} independent ones"
            )
    for name, entry in t.second_sets.items():
        low, high = entry["expected"]
        verdict = (
            "as promised" if entry["inside"] else "NOT as promised: other pictures or people than it was chosen on"
        )
        lines.append(
            f"  on {name}: {entry['rate']:.1e} ({entry['false_accepts']:,} {event}), expected {low:.1e} .. {high:.1e}: "
            f"{verdict}{_accepts(entry['accept_rate'], None)}"
        )
    return lines


def _accepts(rate: float | None, interval: tuple[float, float] | None) -> str:
    if rate is None:
        return ""
    between = f" ({100 * interval[0]:.1f} .. {100 * interval[1]:.1f})" if interval else ""
    return f"; it accepts {100 * rate:.1f} %{between} of genuine ones"
