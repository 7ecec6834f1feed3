"""What a test asks for, and what its line says. A test only reports figures; whether they suffice is judged here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

NOT_RUN, MET, SHORT = "not run", "ran: met", "ran: short"


class NotRun(Exception):
    """Raised by a test that cannot run here; says why."""


@dataclass(frozen=True)
class Bound:
    """What one figure must be.

    Attributes:
        figure: its name.
        must: the bound.
        aim: a better one, to strive for; None for none.
        at_least: whether it bounds from below; else from above.
        if_there: whether the figure may be missing, as that of a peer which is not installed.
    """

    figure: str
    must: float
    aim: float | None = None
    at_least: bool = False
    if_there: bool = False

    def holds(self, value: float) -> bool:
        """Whether a figure suffices; a NaN never does."""
        return value >= self.must if self.at_least else value <= self.must

    def words(self, value: float) -> str:
        """The bound as text."""
        return f"{self.figure} {'>=' if self.at_least else '<='} {value:.4g}"


@dataclass(frozen=True)
class Check:
    """One test.

    Attributes:
        number: as in the list of tests.
        name: in a few words.
        run: does it: takes a :class:`~acceptance.bench.Bench`, tells it figures.
        bounds: of the figures.
        least: steps, timed calls and child processes without which it has not been run.
        gpu_only: why a CPU cannot do it; empty where it can.
        predicts: whether its figures are predicted where there is no device.
        seconds: its share of the time of all.
    """

    number: int
    name: str
    run: Callable[[Any], None]
    bounds: tuple[Bound, ...]
    least: int = 1
    gpu_only: str = ""
    predicts: bool = False
    seconds: float = 10.0


@dataclass
class Line:
    """What came of a test.

    Attributes:
        check: the test.
        figures: by name.
        notes: what else is to be said, why it fell short first of all.
        seconds: it took.
        verdict: one of :data:`NOT_RUN`, :data:`MET`, :data:`SHORT`.
        walked: whether, without a device, its code was gone through.
    """

    check: Check
    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    verdict: str = NOT_RUN
    walked: bool = False

    def text(self, predicted: bool = False) -> str:
        """One unwrapped line, which ends with the verdict."""
        check = self.check
        aims = [bound.words(bound.aim) for bound in check.bounds if bound.aim is not None]
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.figures.items() if math.isfinite(value))
        measured = "predicted" if predicted else "measured"
        parts = [f"{check.number:2}  {check.name}", "must " + ", ".join(b.words(b.must) for b in check.bounds)]
        parts += ["aim " + ", ".join(aims)] if aims else []
        parts += [f"{measured} {shown}"] if shown else []
        parts += [f"{self.seconds:.1f} s"] if self.seconds else []
        return " | ".join([*parts, *map(plain, self.notes), self.verdict])

    @classmethod
    def of_record(cls, check: Check, record: Mapping[str, Any]) -> Line:
        """From what :meth:`record` gave."""
        figures = {name: math.nan if value is None else value for name, value in record["figures"].items()}
        return cls(check, figures, list(record["notes"]), record["seconds"], record["verdict"])

    def record(self) -> dict[str, Any]:
        """For a file."""
        check = self.check
        return {
            "test": check.number,
            "name": check.name,
            "must": {b.figure: b.must for b in check.bounds},
            "aim": {b.figure: b.aim for b in check.bounds if b.aim is not None},
            "figures": {name: value if math.isfinite(value) else None for name, value in self.figures.items()},
            "notes": [plain(note) for note in self.notes],
            "seconds": round(self.seconds, 3),
            "verdict": self.verdict,
        }


def judge(check: Check, figures: Mapping[str, float], work: int) -> list[str]:
    """Why a test fell short; empty if it was met. What reports figures without having run anything falls short."""
    reasons = []
    if work < check.least:
        reasons.append(f"reported without running: {work} of at least {check.least} steps and calls")
    for bound in check.bounds:
        if bound.figure not in figures:
            reasons += [] if bound.if_there else [f"{bound.figure} was not reported"]
        elif not bound.holds(figures[bound.figure]):
            reasons.append(f"{bound.figure} is {figures[bound.figure]:.4g}")
    return reasons


_JUDGING = {"pass": "meet", "passed": "met", "passes": "meets", "ok": "good"}


def plain(text: str) -> str:
    """One line, without the words in which other programs judge themselves: only the end of a line judges."""
    words = " ".join(text.split()).split(" ")
    return " ".join(_JUDGING.get(word.lower().strip(".,:;!()[]'\""), word) for word in words)[:400]
