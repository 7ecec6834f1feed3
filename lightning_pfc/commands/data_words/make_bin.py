"""``pfc-data make-bin``: makes a verification file from a list of pairs."""

from __future__ import annotations

from typing import Any

from lightning_pfc.commands.data_words.common import add_allow, add_command


def add_words(commands: Any) -> None:
    """Add the command to the parser of all."""
    parser = add_command(
        commands,
        "make-bin",
        "make a verification file from a list of pairs",
        """Makes the .bin file that InsightFace and its relatives verify on, from a list of pairs and aligned images.

The list has a line `image1 image2 1` (same identity) or `image1 image2 0` for each pair, with paths relative to ROOT
and tabs, commas or spaces between them; or it is LFW's pairs.txt (a first line with two numbers, then `name i j` or
`name1 i name2 j`, where image i of a person is NAME/NAME_000i.jpg). Keep same and different pairs balanced within each
tenth of the list: the protocol's ten folds are cut in its order.""",
    )
    parser.add_argument("pairs", help="the list")
    parser.add_argument("root", help="the folder of the images")
    parser.add_argument("target", help="the .bin to write")
    add_allow(parser)
