"""``pfc-data index``: writes the missing .idx of a .rec."""

from __future__ import annotations

from typing import Any

from lightning_pfc.commands.data_words.common import add_command


def add_words(commands: Any) -> None:
    """Add the command to the parser of all."""
    parser = add_command(
        commands,
        "index",
        "write the missing .idx of a .rec",
        """Walks over a .rec file and writes the .idx beside it, with keys in the order of the file (which is how mxnet
numbers them). An index that is there already is not touched.""",
    )
    parser.add_argument("record", help="the .rec file")
