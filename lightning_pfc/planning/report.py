"""A plan as tables and as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_pfc.planning.advice import Advice, round_up
from lightning_pfc.planning.machine import Machine
from lightning_pfc.planning.memory import head_memory, host_memory
from lightning_pfc.planning.published import Row
from lightning_pfc.planning.setup import Setup
from lightning_pfc.planning.timing import backbone_seconds, head_seconds
from lightning_pfc.planning.traffic import backbone_traffic, data_parallel_traffic, head_traffic, total


def as_dict(
    setup: Setup, machine: Machine, advice: Advice, gflops: float, other: float, parameters: int
) -> dict[str, Any]:
    """Everything, in bytes and seconds."""
    memory, messages, host = head_memory(setup), head_traffic(setup), host_memory(setup)
    seconds = head_seconds(setup, machine)
    return {
        "setup": asdict(setup),
        "machine": asdict(machine),
        "rows_per_rank": setup.rows,
        "sampled_rows_per_rank": setup.sampled_rows,
        "memory": {
            "head_peak": memory.peak,
            "phase_of_peak": memory.phase,
            "other": other,
            "host": {"peak": host.peak, "terms": {t.name: t.bytes for t in host.terms}},
            "terms": [
                {"name": t.name, "bytes": t.bytes, "phases": list(t.phases), "formula": t.formula} for t in memory.terms
            ],
        },
        "wire": {
            "head": total(messages),
            "messages": {m.name: m.bytes for m in messages},
            "backbone": backbone_traffic(setup, parameters),
            "centers_if_data_parallel": data_parallel_traffic(setup),
        },
        "seconds": {
            "head": sum(seconds.values()),
            "terms": seconds,
            "backbone": backbone_seconds(setup, machine, gflops),
        },
        "advice": advice._asdict(),
    }


def print_plan(
    console: Console, setup: Setup, machine: Machine, advice: Advice, gflops: float, other: float, parameters: int
) -> None:
    """Three tables and the advice."""
    console.print(
        f"{setup.classes:,} classes x {setup.dim}, rate {setup.rate:g}, {setup.ranks} rank(s) of {machine.name}, batch "
        f"{setup.batch} each, {setup.optimizer}\n{setup.rows:,} classes live on a rank, {setup.sampled_rows:,} of them "
        "take part in a step\n"
    )
    memory = head_memory(setup)
    table = _table("Memory of a rank", "", "MB", "")
    for term in memory.terms:
        here = memory.phase in term.phases
        table.add_row(term.name, _mega(term.bytes), term.formula, style="" if here else "dim")
    table.add_section()
    table.add_row("head, at its peak", _mega(memory.peak), f"in the phase '{memory.phase}'; dim terms are gone by then")
    host = host_memory(setup)
    for term in host.terms:
        table.add_row(term.name, _mega(term.bytes), f"in the host's memory: {term.formula}", style="dim")
    if host.terms:
        table.add_row("host, at its peak", _mega(host.peak), f"in the phase '{host.phase}'; a rank of the node each")
    table.add_row("all else", _mega(other), "backbone, activations, context")
    table.add_row("device", _mega(machine.memory), "fits" if advice.fits else "DOES NOT FIT", style="bold")
    console.print(table)

    messages = head_traffic(setup)
    if messages:
        table = _table("Sent by a rank in a step", "", "MB", "")
        for message in messages:
            where = "CPU" if message.on_cpu else "node" if message.spans <= machine.ranks_per_node else "network"
            table.add_row(message.name, _mega(message.bytes), f"{message.spans} ranks, {where}")
        table.add_section()
        table.add_row("head", _mega(total(messages)), "")
        table.add_row("centers, if data parallel", _mega(data_parallel_traffic(setup)), "for comparison")
        table.add_row("backbone's gradients", _mega(backbone_traffic(setup, parameters)), "")
        console.print(table)

    table = _table("Time of a step", "", "ms", "")
    seconds = head_seconds(setup, machine)
    for name, value in seconds.items():
        table.add_row(name, f"{1e3 * value:,.2f}", "")
    table.add_section()
    table.add_row("head", f"{1e3 * sum(seconds.values()):,.2f}", "rough; nothing is taken to overlap")
    table.add_row("backbone", f"{1e3 * backbone_seconds(setup, machine, gflops):,.2f}", f"{gflops:g} GFLOPs an image")
    console.print(table)

    console.print(f"[bold]Most classes that fit[/bold] like this: {advice.largest:,}")
    if advice.rate is not None:
        all_share = advice.group_size == setup.ranks
        layout = "all ranks share the classes" if all_share else f"head_group_size={advice.group_size}"
        layout = f", {layout}" if setup.ranks > 1 else ""
        console.print(f"[bold]Choose[/bold] head.sample_rate={advice.rate:g}{layout}")
    console.print(f"[bold]Sampling pays[/bold] from about {round_up(advice.pays_from):,} classes here")
    for reason in advice.reasons:
        console.print(f"- {reason}")


def print_published(console: Console, rows: list[Row]) -> None:
    """InsightFace's table beside ours."""
    table = _table(
        "MB per GPU, eight V100, ResNet-50, D = 512 (InsightFace, arcface_torch/docs/speed_benchmark.md)",
        "classes", "rate", "published", "fitted", "differs", "this head", "saved",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            f"{row.classes:,}",
            f"{row.rate:g}",
            f"{row.published:,}",
            f"{row.fitted:,.0f}",
            f"{row.fitted / row.published - 1:+.1%}",
            f"{row.ours:,.0f}",
            f"{1 - row.ours / row.published:.0%}",
        )
    console.print(table)
    console.print(
        "fitted: 4,620 MB, 4 KiB for every class of a GPU and 35.5 kB for every class of a step.\n"
        "This head: the same 4,620 MB, 4 KiB for every class (center and momentum), 2 KiB for every class of a step\n"
        "(its gradient), and buffers that do not grow with the classes. The rest of the 35.5 kB are rows held several\n"
        "times over (gathered, normalised, their gradients) and copies of the logits."
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        last_text = column == "" and i > 0
        table.add_column(column, justify="left" if i == 0 or last_text else "right")
    return table


def _mega(number: float) -> str:
    return f"{number / 1e6:,.1f}" if number < 1e8 else f"{number / 1e6:,.0f}"
