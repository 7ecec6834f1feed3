"""Every optimizer of torch and timm on two ranks, of which the full tier tries torch's and two of timm's."""

from __future__ import annotations

import pytest

from tests.ranks import RankPool
from tests.ranks.test_foreign_optimizers import NAMES, classes_on, stated, train_all


@pytest.mark.timeout(0)
def test_every_optimizer_on_two_ranks_is_as_the_page_says(ranks: RankPool) -> None:
    one = ranks.run(1, train_all, NAMES, timeout=300)[0]
    found = classes_on(ranks, 2, NAMES, one)
    assert found == {name: stated().get(name, kind) for name, kind in found.items()}  # a later timm has more
