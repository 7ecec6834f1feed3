"""A figure of a GPU says in its paragraph where it comes from: predicted, counted, published by others, or measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("recipes/**/*.md"))]
GPU = re.compile(r"\b(GPUs?|CUDA|H[12]00|A100|B[12]00|V100|L40S|RTX \d+)\b")
UNITS = r"ms|seconds?|s|minutes?|images/s|[TG]FLOP/s|[GMT]B/s|times (?:as fast|faster|slower)|[MG]i?B"
FIGURE = re.compile(rf"\d[\d.,]*\s*({UNITS})(?![\w/])")
ORIGIN = re.compile(
    r"predict|measured \([^)]*\d{4}-\d\d-\d\d[^)]*\)|never (run|timed|measured)|not (measure|timed)|no GPU|nobody"
    r"|counted|\bplan(s|ned)?\b|pfc-plan|publish|prints|data sheet"
)


def bare_figures(text: str) -> list[str]:
    """Paragraphs that have a GPU and a figure of time, speed or memory, but not where it comes from."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    paragraphs = re.split(r"\n\s*\n", prose)
    return [p for p in paragraphs if GPU.search(p) and FIGURE.search(p) and not ORIGIN.search(p)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_figure_of_a_gpu_is_bare(page: Path) -> None:
    assert not bare_figures(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("On an H200 a step takes 8.4 ms.", True),
        ("A GPU gives 5,004 images/s.", True),
        ("It was measured: 3 GB on an A100.", True),
        ("On an H200 a step takes 8.4 ms (predicted).", False),
        ("On an H200: 8.4 ms, measured (H200, 2027-01-02, accept.json).", False),
        ("A step takes 350 ms on two cores.", False),
        ("Predicted is nothing here.\n\nOn CUDA a step takes 3 ms.", True),
    ],
)
def test_a_bare_figure_is_found(text: str, bare: bool) -> None:
    assert bool(bare_figures(text)) is bare
