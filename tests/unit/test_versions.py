"""What the nightly tier takes for the oldest versions is what pyproject.toml says."""

from __future__ import annotations

import pytest

from tests import tiers
from tests.nightly.versions import TESTS, TOOLS, name_of, oldest, read_project, requirements


def test_every_dependency_has_a_lower_bound_and_every_tool_is_known() -> None:
    found = oldest(requirements(read_project()))
    assert {"torch==2.8", "lightning==2.6.4", "pytest==8"} <= set(found)
    assert {name_of(each) for each in found} >= set(TOOLS)


def test_a_dependency_without_a_lower_bound_is_named() -> None:
    with pytest.raises(ValueError, match="'torch<3' in pyproject"):
        oldest(["torch<3"])


def test_markers_and_extras_are_left_out() -> None:
    assert oldest(['a[x,y]>=1.2,<2; sys_platform == "linux"', "b >= 3"]) == ["a==1.2", "b==3"]


def test_the_files_exist() -> None:
    assert [name for name in TESTS if not (tiers.TESTS / name).is_file()] == []
