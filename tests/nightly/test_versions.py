"""The oldest and the newest versions of everything that the project depends on, each in an environment of its own."""

from __future__ import annotations

import pytest

from tests.nightly import versions


@pytest.mark.timeout(0)
@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_supported_versions(which: str) -> None:
    assert versions.main([which]) == 0
