"""A short run of recipes/formats/fuzz.py: damaged files are read or refused, never anything else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    path = Path(__file__).parents[2] / "recipes" / "formats" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz_formats", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("target", ["recordio", "list", "image", "webdataset", "parquet"])
def test_damaged_files_are_read_or_refused(recipe: ModuleType, target: str) -> None:
    if target == "parquet":
        pytest.importorskip("pyarrow")
    count = 300 if target == "parquet" else 1500
    result = recipe.fuzz(target, count, seed=1)
    assert result["read"] + result["refused"] == count
    assert min(result["read"], result["refused"]) > count / 20  # the damage is neither harmless nor total
    assert result["growth"] < 100  # MiB
