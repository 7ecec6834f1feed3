"""Tests with the oldest, or with the newest, versions of everything that ``pyproject.toml`` allows.

Run by ``python -m tests.nightly.versions oldest|newest [--folder DIR] [TESTS...]``: makes an environment with ``venv``
and pip, in which the lower bounds of the dependencies are the versions, and runs a stated set of tests there. With
``--folder`` the environment stays, and is used again. The status is that of pytest.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "ranks/test_head_ranks.py",
    "ranks/test_metrics_ranks.py",
    "ranks/test_pool.py",
    "ranks/test_precision_ranks.py",
    "trainer/test_checkpoints.py",
    "trainer/test_experiments.py",
    "trainer/test_guard.py",
    "trainer/test_module.py",
    "trainer/test_precision_plugins.py",
    "trainer/test_strategy.py",
    "trainer/test_train.py",
    "unit/test_after_import.py",
    "unit/test_config.py",
    "unit/test_data_batches.py",
    "unit/test_data_module.py",
    "unit/test_graphs.py",
    "unit/test_head.py",
    "unit/test_losses_extra.py",
    "unit/test_metrics_functional.py",
    "unit/test_optim_head.py",
    "unit/test_optim_schedules.py",
    "unit/test_optim_steps.py",
    "unit/test_plots.py",
    "unit/test_sampling.py",
    "unit/test_softmax.py",
)
"""What versions decide: the head and its collectives, Lightning, timm's networks, the configs, pictures."""

TOOLS = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist", "scikit-learn")
"""Of the extra ``test``: what these tests need."""


def requirements(project: dict[str, Any]) -> list[str]:
    """Of the project, and of the tests that are run."""
    tools = [each for each in project["optional-dependencies"]["test"] if name_of(each) in TOOLS]
    return [*project["dependencies"], *tools]


def name_of(requirement: str) -> str:
    """``torch`` of ``torch>=2.8``."""
    return re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]


def oldest(requirements: Iterable[str]) -> list[str]:
    """``torch==2.8`` of ``torch>=2.8``.

    Raises:
        ValueError: one has no lower bound.
    """
    found = []
    for each in requirements:
        bound = re.search(r">=\s*([\w.]+)", each)
        if bound is None:
            raise ValueError(f"{each!r} in pyproject.toml has no lower bound")
        found.append(f"{name_of(each)}=={bound[1]}")
    return found


def read_project() -> dict[str, Any]:
    """The table ``project`` of pyproject.toml."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        from pip._vendor import tomli as tomllib
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def make_environment(folder: Path, which: str) -> Path:
    """An environment with the project in it, as it lies here; its Python."""
    wanted = requirements(read_project())
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    bounds = folder / "bounds.txt"
    bounds.write_text("\n".join(oldest(wanted) if which == "oldest" else wanted) + "\n")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--progress-bar=off"]
    upgrade = [] if which == "oldest" else ["--upgrade", "--upgrade-strategy=eager"]
    subprocess.run([*pip, *upgrade, "-e", str(ROOT), *map(name_of, wanted), "-c", str(bounds)], check=True)
    listed = subprocess.run([str(python), "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
    names = {name_of(each).lower() for each in wanted}
    print(" ".join(line for line in listed.splitlines() if name_of(line).lower() in names), flush=True)
    return python


def run_tests(python: Path, tests: Sequence[str]) -> int:
    """The status of pytest in an environment."""
    # Of the caller's only what says where things are: with its packages in sight, nothing would have been tried.
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{python.parent}{os.pathsep}{environment.get('PATH', '')}"}
    files = [f"tests/{name}" for name in tests]
    words = ["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files]
    return subprocess.run([str(python), *words], cwd=ROOT, env=environment, check=False).returncode


def main(words: Sequence[str] | None = None) -> int:
    """What the module does when it is run."""
    parser = argparse.ArgumentParser(prog="python -m tests.nightly.versions", description=__doc__)
    parser.add_argument("which", choices=("oldest", "newest"))
    parser.add_argument("tests", nargs="*", default=TESTS, help="files below tests/ in place of the stated ones")
    parser.add_argument("--folder", type=Path, help="of the environment, which stays")
    given = parser.parse_intermixed_args(words)
    with tempfile.TemporaryDirectory(prefix="versions-") as temporary:
        folder = given.folder or Path(temporary)
        return run_tests(make_environment(folder.absolute(), given.which), given.tests)


if __name__ == "__main__":
    sys.exit(main())
