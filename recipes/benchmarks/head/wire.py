"""How many bytes does a step send? Measured on gloo processes of this machine, and compared with the plan.

Three ways to train the same classes: data parallel (every rank holds all centers and averages their gradient), model
parallel (PartialFC, rate 1), Partial FC (PartialFC, --rate). Two counts: what the collectives carry, if each is as good
as a ring, and what the kernel says the sockets of the process sent. The plan is that of pfc-plan. All are bytes of one
rank, averaged over the ranks.

For example:
  python recipes/benchmarks/head/wire.py                                      # 2 and 4 ranks, 1,000 and 20,000 classes
  python recipes/benchmarks/head/wire.py --ranks 4 --classes 1000000 --out out/wire
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from cases import Case
from rich.console import Console
from rich.table import Table
from worker import Remote

from lightning_pfc.planning import Setup, head_traffic
from lightning_pfc.planning.traffic import data_parallel_traffic, total


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--classes", type=int, nargs="+", default=[1000, 20_000], metavar="C", help="over all ranks")
    out.add_argument("--ranks", type=int, nargs="+", default=[2, 4], metavar="W", help="processes")
    out.add_argument("--batch", type=int, default=64, help="rows of a rank (default 64)")
    out.add_argument("--dim", type=int, default=512, help="width of the embeddings (default 512)")
    out.add_argument("--rate", type=float, default=0.1, help="of Partial FC (default 0.1)")
    out.add_argument("--out", type=Path, help="folder for wire.json")
    return out


def main(argv: list[str] | None = None) -> int:
    """Measure, show, write."""
    args = parser().parse_args(argv)
    rows = []
    for ranks, classes in itertools.product(args.ranks, args.classes):
        for name, rate in (("data-parallel", 1.0), ("ours", 1.0), ("ours", args.rate)):
            case = Case(classes, rate, args.batch * ranks, args.dim, ranks, 1)
            rows.append(measure(name, case))
    Console(width=None if sys.stdout.isatty() else 120).print(table(rows))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "wire.json").write_text(json.dumps(rows, indent=1))
    return 0


def measure(name: str, case: Case) -> dict[str, Any]:
    """One step, after two that made the connections."""
    remote = Remote(name, case, None)
    try:
        remote.ask("build")
        for number in (1, 2):
            remote.ask("step", number)
        counted = remote.ask("wire", 3)
    finally:
        remote.close()
    setup = Setup(
        classes=case.classes,
        dim=case.dim,
        ranks=case.ranks,
        batch=case.batch // case.ranks,
        rate=case.rate,
        device="cpu",
    )
    return {
        "way": {"data-parallel": "data parallel"}.get(
            name, "model parallel" if case.rate == 1 else f"Partial FC {case.rate:g}"
        ),
        "ranks": case.ranks,
        "classes": case.classes,
        "planned": data_parallel_traffic(setup) if name == "data-parallel" else total(head_traffic(setup)),
        "carried": sum(rank["payload"] for rank in counted) / case.ranks,
        "sockets": sum(rank["sockets"] for rank in counted) / case.ranks,
        "calls": [call._asdict() for call in counted[0]["calls"]],
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Bytes by way, ranks and classes."""
    out = Table(title="Bytes that a rank sends in a step", title_justify="left")
    for name in ("", "ranks", "classes", "planned", "carried", "on the sockets"):
        out.add_column(name, justify="left" if not name else "right")
    for row in rows:
        numbers = [f"{row[name]:,.0f}" for name in ("ranks", "classes", "planned", "carried", "sockets")]
        out.add_row(row["way"], *numbers)
    out.caption = "gloo carries out a reduce-scatter as an all-reduce: its sockets send the embeddings' gradient twice."
    out.caption_justify = "left"
    return out


if __name__ == "__main__":
    sys.exit(main())
