"""What users import, configure and type does not change unannounced; and what the first users had goes on working."""

from __future__ import annotations

import importlib
import warnings

import pytest

from tests import surface

REMEMBERED = surface.FILE.with_name("surface_first.txt")
MOVED_KEYS = (
    "key model.sample_rate",
    "key model.seed",
    "key model.head_options",
)


def test_the_public_surface_is_as_recorded() -> None:
    for extra in ("fastapi", "openvino", "onnx"):
        pytest.importorskip(extra, reason=f"{extra} is not installed, and the surface is that with the extras of tests")
    recorded, found = set(surface.FILE.read_text().splitlines()), set(surface.surface())
    told = "record it with `python -m tests.surface`, and say in CHANGELOG.md what users notice"
    assert sorted(recorded - found) == [], f"gone; {told}"
    assert sorted(found - recorded) == [], f"new; {told}"


def test_what_the_first_users_had_is_still_there() -> None:
    """Names by importing them, under whatever package they were; keys, options and words by name."""
    found = set(surface.surface())
    lost = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for line in REMEMBERED.read_text().splitlines():
            kind, _, name = line.partition(" ")
            if kind == "import":
                module, _, last = name.rpartition(".")
                if not hasattr(importlib.import_module(module), last):
                    lost.append(line)
            elif line not in found and not line.startswith(MOVED_KEYS):
                lost.append(line)
    assert lost == []
