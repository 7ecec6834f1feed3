"""Words that several commands of ``pfc-data`` share."""

from __future__ import annotations

import argparse
from typing import Any

from lightning_pfc.data.format_names import READABLE

_DATA = """a data set: a folder of folders, a .rec file (or the folder of train.rec), a list (.lst .tsv .csv .txt), a
parquet or Arrow file or a folder of these, WebDataset shards ('train-{000..123}.tar'), or what datasets.save_to_disk
wrote"""


def add_command(commands: Any, name: str, summary: str, text: str) -> argparse.ArgumentParser:
    """A command with a line in the list of all and a text of its own, printed as it stands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser


def add_source(parser: argparse.ArgumentParser) -> None:
    """One data set."""
    parser.add_argument("source", help=_DATA)
    parser.add_argument("--from", dest="format", choices=READABLE, help="its format, if the name does not tell")
    parser.add_argument("--root", help="of a list: the folder its paths start from (default: where the list lies)")
    parser.add_argument("--split", help="of a Hugging Face data set: the split")
    add_allow(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_allow(parser: argparse.ArgumentParser) -> None:
    """Where links in data may lead."""
    parser.add_argument(
        "--allow",
        metavar="FOLDER",
        action="append",
        default=[],
        help="a folder besides the data's own that links and paths in it may lead into; may be repeated",
    )


def add_two(parser: argparse.ArgumentParser) -> None:
    """Two data sets."""
    parser.add_argument("a", metavar="A", help=_DATA)
    parser.add_argument("b", metavar="B", help="another")
    parser.add_argument("--from", dest="format", choices=READABLE, help="format of A, if the name does not tell")
    parser.add_argument("--from-b", dest="format_b", choices=READABLE, help="format of B, likewise")
    add_allow(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
