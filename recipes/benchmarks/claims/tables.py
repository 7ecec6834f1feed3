"""Tables of what the claims found: means with intervals over the seeds, and differences seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student

Record = dict[str, Any]  # of one run: "setting", "seed", and numbers by name


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, where a record has it, and how it is written."""

    title: str
    key: str
    factor: float = 100.0
    digits: int = 2
    compared: bool = True  # by seed, too


def of(records: Sequence[Record], setting: str, key: str) -> list[float]:
    """The values of a setting over its seeds."""
    return [r[key] for r in records if r["setting"] == setting and key in r]


def done(records: Sequence[Record], names: Sequence[str]) -> list[str]:
    """Those of the settings that have a run."""
    return [name for name in names if of(records, name, "seed")]


def last_epoch(records: Sequence[Record]) -> list[Record]:
    """The records with what was watched after the last epoch among their numbers."""
    return [{**record, **record["epochs"][-1]} for record in records if record.get("epochs")]


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean, and half the width of its confidence interval over the seeds (Student's t)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    quantile = float(student.ppf((1 + level) / 2, len(values) - 1))
    return mean, quantile * statistics.stdev(values) / len(values) ** 0.5


def paired(records: Sequence[Record], one: str, other: str, key: str, level: float = 0.95) -> tuple[float, float]:
    """Mean of ``one - other`` over the seeds that both have, and half the width of its interval.

    Several differences, all of whose intervals shall hold at once, take ``level = 1 - 0.05 / how many`` (Bonferroni).
    """
    values = [{r["seed"]: r[key] for r in records if r["setting"] == name} for name in (one, other)]
    return interval([values[0][seed] - values[1][seed] for seed in sorted(values[0].keys() & values[1].keys())], level)


def verdict(mean: float, half: float, margin: float) -> str:
    """What an interval says of a difference: ``level`` only if all of it lies within the margin of equivalence."""
    if not math.isfinite(half):
        return "one seed"
    low, high = mean - half, mean + half
    if -margin < low and high < margin:
        return "level"
    if low > 0 or high < 0:
        sign = "better" if low > 0 else "worse"
        return sign if max(low, -high) >= margin else f"{sign}, perhaps by less than that"
    return "undecided"


def cell(values: Sequence[float], digits: int, factor: float = 1.0) -> str:
    """``mean ± half width`` for a table."""
    if not values:
        return ""
    return _written(interval([factor * value for value in values]), digits)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def compare(
    records: Sequence[Record], names: Sequence[str], columns: Sequence[Column], pairs: Sequence[tuple[str, str]]
) -> None:
    """Print a table of the settings, and the differences of ``pairs``."""
    rows = [
        [name, *(cell(of(records, name, c.key), c.digits, c.factor) for c in columns)] for name in done(records, names)
    ]
    print(table(["", *(c.title for c in columns)], rows), end="\n\n")
    differences(records, columns, pairs)


def differences(records: Sequence[Record], columns: Sequence[Column], pairs: Sequence[tuple[str, str]]) -> None:
    """Print for each of ``pairs`` the first minus the second, seed by seed."""
    for one, other in pairs:
        if done(records, [one, other]) == [one, other]:
            parts = []
            for c in columns:
                if c.compared:
                    mean, half = paired(records, one, other, c.key)
                    parts.append(f"{c.title} {_written((c.factor * mean, c.factor * half), 2, '+')}")
            print(f"* {one} minus {other}, by seed: {', '.join(parts)}")
    print()


def _written(found: tuple[float, float], digits: int, sign: str = "") -> str:
    mean, half = found
    return f"{mean:{sign}.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) else "")
