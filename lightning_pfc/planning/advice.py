"""What to choose: how many classes fit, which rate, which layout, and whether sampling pays at all."""

from __future__ import annotations

from typing import NamedTuple

from lightning_pfc.planning.machine import Machine
from lightning_pfc.planning.memory import head_memory
from lightning_pfc.planning.setup import Setup
from lightning_pfc.planning.timing import backbone_seconds, head_seconds

RATES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
WORTH_IT = 0.05  # share of the step that sampling must save; it costs about 0.1 point of accuracy
AFFORDABLE = 0.25  # share of the step that the head may take before a lower rate is advised
_LARGEST = 1 << 34


class Advice(NamedTuple):
    """What to choose for a setup.

    Attributes:
        fits: whether it fits as it is.
        largest: most classes that fit with its other values.
        rate: the rate to choose; None if nothing fits.
        group_size: the layout to choose at that rate: how many ranks share one set of classes.
        pays_from: classes below which a rate of 0.1 saves less than ``WORTH_IT`` of the step.
        reasons: one sentence each.
    """

    fits: bool
    largest: int
    rate: float | None
    group_size: int
    pays_from: int
    reasons: list[str]


def fits(setup: Setup, machine: Machine, other: float = 0.0) -> bool:
    """Whether a rank's part and ``other`` bytes (backbone, activations, process) fit its device."""
    return head_memory(setup).peak + other <= machine.memory


def largest_classes(setup: Setup, machine: Machine, other: float = 0.0) -> int:
    """The largest number of classes that fits with everything else as it is; 0 if none does."""
    low, high = 0, _LARGEST
    while low < high:
        middle = (low + high + 1) // 2
        if middle >= setup.group and not fits(setup.but(classes=middle), machine, other):
            high = middle - 1
        else:
            low = middle
    return low if low >= setup.group else 0


def step_seconds(setup: Setup, machine: Machine, gflops: float) -> float:
    """Seconds of head and backbone."""
    return sum(head_seconds(setup, machine).values()) + backbone_seconds(setup, machine, gflops)


def advise(setup: Setup, machine: Machine, gflops: float, other: float = 0.0) -> Advice:
    """Choose a rate and a layout.

    The largest rate is taken at which everything fits and the head takes at most a quarter of the step; where none
    does, the largest that fits and is within a tenth of the fastest. The layout is the fastest that fits.

    Args:
        setup: what is asked for; its rate and its layout are looked at, not obeyed.
        machine: what a rank runs on.
        gflops: multiply-adds of the backbone per image, forward, in 10^9.
        other: bytes of a rank that are not the head's.
    """
    reasons = []
    candidates = [setup.but(rate=rate, group_size=None) for rate in RATES if rate == 1 or rate * setup.classes >= 1]
    fitting = [c for c in candidates if fits(c, machine, other)]
    backbone = backbone_seconds(setup, machine, gflops)
    chosen = None
    if not fitting:
        reasons.append(
            "Nothing fits: take more ranks, bfloat16 centers, adagrad, or keep the rows in files (head.row_folder)."
        )
    else:
        head = {c.rate: sum(head_seconds(c, machine).values()) for c in fitting}
        cheap = [c for c in fitting if head[c.rate] <= AFFORDABLE * (head[c.rate] + backbone)]
        fastest = min(head.values()) + backbone
        chosen = cheap[0] if cheap else next(c for c in fitting if head[c.rate] + backbone <= 1.1 * fastest)
        share = head[chosen.rate] / (head[chosen.rate] + backbone)
        if len(fitting) < len(candidates):
            reasons.append(f"The largest rate that fits is {fitting[0].rate:g}.")
        reasons.append(f"At rate {chosen.rate:g} the head takes {share:.0%} of the step.")
    pays = pays_from(setup, machine, gflops)
    if setup.classes < pays and (chosen is None or chosen.rate == 1):
        reasons.append(
            f"Below about {round_up(pays):,} classes a rate under 1 saves less than {WORTH_IT:.0%} of the step here "
            "and does not pay; use 1."
        )
    group = setup.ranks
    if chosen is not None and setup.ranks > 1:
        layouts = [
            chosen.but(group_size=g) for g in range(1, setup.ranks + 1) if setup.ranks % g == 0 and g <= chosen.classes
        ]
        possible = [layout for layout in layouts if fits(layout, machine, other)]
        best = min(possible, key=lambda layout: (step_seconds(layout, machine, gflops), -layout.group))
        if step_seconds(best, machine, gflops) < 0.98 * step_seconds(chosen, machine, gflops):
            group = best.group
            reasons.append(f"Sharing the classes among {group} ranks saves more traffic than its copies cost.")
    return Advice(
        fits(setup, machine, other), largest_classes(setup, machine, other), chosen.rate if chosen else None, group,
        pays, reasons,
    )  # fmt: skip


def pays_from(setup: Setup, machine: Machine, gflops: float, rate: float = 0.1) -> int:
    """The number of classes from which ``rate`` saves at least ``WORTH_IT`` of the step, compared with rate 1."""
    low, high = setup.ranks, _LARGEST
    while low < high:
        middle = (low + high) // 2
        whole = setup.but(classes=middle, rate=1.0, group_size=None)
        seconds = step_seconds(whole, machine, gflops)
        if seconds - step_seconds(whole.but(rate=rate), machine, gflops) >= WORTH_IT * seconds:
            high = middle
        else:
            low = middle + 1
    return low


def round_up(number: int) -> int:
    """To two digits."""
    unit = int(10 ** max(0, len(str(number)) - 2))
    return -(-number // unit) * unit
