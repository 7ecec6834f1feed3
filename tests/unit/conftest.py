"""Fixtures of the tests of what is done with a trained model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deployed import train_run, write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of identities; nobody changes it."""
    return write_pictures(tmp_path_factory.mktemp("pictures") / "people")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A finished run on :func:`pictures`; nobody changes it."""
    return train_run(tmp_path_factory.mktemp("run") / "run", pictures)


@pytest.fixture(scope="session")
def export_folder(tmp_path_factory: pytest.TempPathFactory, run_folder: Path) -> Path:
    """An export of that run with its centers; nobody changes it."""
    from lightning_pfc.deploy.export import export_run
    from lightning_pfc.deploy.export_options import ExportOptions

    folder = tmp_path_factory.mktemp("export") / "people"
    export_run(run_folder, folder, options=ExportOptions(centers=True))
    return folder
