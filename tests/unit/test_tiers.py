"""Every test is in one tier, and the lists of files name files that exist."""

from __future__ import annotations

from tests.tiers import ALONE, LONG, ONE_AT_A_TIME, SMOKE, TESTS, TIERS, is_in, tier_of


def test_every_file_is_in_one_tier() -> None:
    files = sorted(TESTS.rglob("test_*.py"))
    assert {tier_of(path) for path in files} == set(TIERS)
    for path in files:
        own = [tier for tier in TIERS if is_in(tier, path)]
        assert own in (["smoke", "full"], ["full"], ["nightly"]), path


def test_lists_name_files_that_exist() -> None:
    assert [name for name in (*SMOKE, *ALONE, *ONE_AT_A_TIME, *LONG) if not (TESTS / name).is_file()] == []
    assert len({*ALONE, *ONE_AT_A_TIME, *LONG}) == len(ALONE) + len(ONE_AT_A_TIME) + len(LONG)
