"""Tests that run on several real processes, and the pool of processes they run on.

>>> from tests.ranks import RankPool, Outcome  # doctest: +SKIP
"""

from __future__ import annotations

from tests.ranks.pool import Outcome, RankPool, join_group

__all__ = ["Outcome", "RankPool", "join_group"]
