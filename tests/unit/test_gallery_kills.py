"""Some kills of the service and of ``pfc-gallery add``; the recipe does as many as wanted."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("faiss", reason="needs the extra serve")


def test_kills_lose_nothing(export_folder: Path, pictures: Path) -> None:
    path = Path(__file__).parents[2] / "recipes" / "benchmarks" / "service" / "kills.py"
    spec = importlib.util.spec_from_file_location("service_kills", path)
    assert spec is not None
    assert spec.loader is not None
    kills = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kills)
    assert kills.main([str(export_folder), str(pictures), "--kills", "4"]) == 0
