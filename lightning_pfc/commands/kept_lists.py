"""Lists that people edit before they give them to the next command: nothing writes over one unasked."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_force(parser: argparse.ArgumentParser) -> None:
    """Leave to write over a list."""
    parser.add_argument("--force", action="store_true", help="write over a list that is there, edited or not")


def keep_list(path: str | os.PathLike[str], *, force: bool) -> None:
    """Refuse a list that has something in it; to be asked before the long part.

    Raises:
        FileExistsError: there is one, and nobody said ``--force``.
    """
    if not force and Path(path).is_file() and Path(path).stat().st_size:
        raise FileExistsError(f"{path} is there already, perhaps edited: give another name, or --force to replace it.")
