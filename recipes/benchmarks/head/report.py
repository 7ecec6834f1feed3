"""What was measured, as a table."""

from __future__ import annotations

from typing import Any

from cases import Case
from rich.table import Table


def table(measured: dict[str, Any]) -> Table:
    """One case: times in milliseconds, memory in megabytes, and both relative to our head."""
    case, results = Case(**measured["case"]), measured["results"]
    out = Table(title=f"{case}; medians of {measured['repeats']}", title_justify="left")
    for name in (
        "",
        "forward",
        "backward",
        "optimizer",
        "step ms",
        "vs ours",
        "peak MB",
        "above base",
        "vs ours",
        "loss differs",
    ):
        out.add_column(name, justify="left" if not name else "right")
    ours = results.get("ours")
    for name, r in results.items():
        agreement = r["agreement"]
        is_head = not name.startswith("products")
        out.add_row(
            name,
            *[f"{1e3 * r[part]:,.0f}" for part in ("forward", "backward", "optimizer", "total")],
            f"{r['total'] / ours['total']:.2f}x" if ours else "",
            f"{r['peak'] / 1e6:,.0f}" if is_head else "",
            f"{r['above_baseline'] / 1e6:,.0f}" if is_head else "",
            f"{r['peak'] / ours['peak']:.2f}x" if ours and is_head else "",
            f"{agreement['loss']:.0e}" if agreement else "",
        )
    shares = [
        f"{results[name]['total'] / (ours['forward'] + ours['backward']):.0%} of the speed of the {what}"
        for name, what in (
            ("products", "three bare matrix products"),
            ("products-fast", "same products through oneDNN"),
        )
        if ours and name in results
    ]
    if shares:
        out.caption = f"Our forward and backward run at {' and '.join(shares)}."
        out.caption_justify = "left"
    return out
