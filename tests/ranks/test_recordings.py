"""The head's losses in every kind of run are those that were written down; see :mod:`tests.recordings.heads`."""

from __future__ import annotations

import json

import pytest

from tests.ranks import RankPool
from tests.recordings import heads


@pytest.mark.parametrize("world", heads.WORLDS, ids=lambda world: heads.key(*world))
def test_losses_are_those_of_the_recording(ranks: RankPool, world: tuple[int, int | None]) -> None:
    kept = json.loads(heads.FILE.read_text(encoding="utf-8"))[heads.key(*world)]
    found = heads.record(ranks, *world)
    assert found.keys() == kept.keys()
    off = {name for name in found if not heads.agree(found[name]["losses"], kept[name]["losses"], name)}
    assert not off
