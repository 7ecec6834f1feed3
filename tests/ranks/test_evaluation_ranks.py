"""Protocols on several ranks give exactly what one gives."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_pfc.evaluation.all_pairs import all_pairs_tar
from lightning_pfc.evaluation.identification import rank_among_distractors, search
from tests.ranks import RankPool
from tests.unit.test_evaluation_all_pairs import FARS, people


def evaluate(rank: int, world_size: int) -> list[Any]:
    embeddings, labels = people(53, 5, 1.2, 0)
    pairs = all_pairs_tar(embeddings, labels, FARS, block=50)
    tight = all_pairs_tar(embeddings, labels, FARS, block=50, max_kept=300)
    found = search(embeddings[:100], labels[:100], embeddings[100:], labels[100:], block=30)
    trials = rank_among_distractors(embeddings[:60], labels[:60], embeddings[100:], block=30)
    return [
        pairs.points,
        pairs.accepted_by_identity.tolist(),
        pairs.points == tight.points,
        *(values.tolist() for values in (found.mated, found.rank, found.score, *trials)),
    ]


@pytest.mark.parametrize("world_size", [2, 3])
def test_protocols_are_those_of_one_rank(ranks: RankPool, world_size: int) -> None:
    alone = evaluate(0, 1)
    assert alone[2]
    assert ranks.run(world_size, evaluate) == [alone] * world_size
