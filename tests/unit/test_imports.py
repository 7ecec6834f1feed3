"""What commands import when they start is no garbage, and is not searched for any."""

from __future__ import annotations

import gc
import sys

import pytest

from lightning_pfc.commands.imports import large_imports


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """At each time that all objects were taken from the collector: whether it was on."""
    seen: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: seen.append(gc.isenabled()))
    return seen


def test_the_collector_waits_for_the_first_large_import(frozen: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lightning.pytorch", raising=False)
    with large_imports():
        assert not gc.isenabled()
        with large_imports():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    assert frozen == [False]
    with pytest.raises(ImportError), large_imports():
        raise ImportError("no such module")
    assert gc.isenabled()


def test_a_process_that_has_imported_lightning_is_left_alone(
    frozen: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightning.pytorch", sys)
    with large_imports():
        assert gc.isenabled()
    assert frozen == []


def test_who_has_turned_the_collector_off_keeps_it_off(frozen: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lightning.pytorch", raising=False)
    gc.disable()
    try:
        with large_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert frozen == []
