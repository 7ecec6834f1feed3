"""``pfc-data merge``: joins two data sets."""

from __future__ import annotations

from typing import Any

from lightning_pfc.commands.data_words.common import add_command, add_two
from lightning_pfc.data.format_names import WRITABLE


def add_words(commands: Any) -> None:
    """Add the command to the parser of all."""
    parser = add_command(
        commands,
        "merge",
        "join two data sets",
        """Writes the pictures of A and B as one data set. Nothing is changed in A or B.

LIST says who is in both: a table (.tsv or .csv) as `pfc-data overlap` writes it, of which the lines of kind `identity`
count; or any with columns `identity_a` and `identity_b`. Those become one, by the name that A has. Identities that have
one name and are not in LIST stay two, with a prefix and a point before the name of each. Pictures of B that LIST finds
in A by pixels are left out if their identities are one.

Refused: names that are not there, lines of kind `different` against others, and two identities of one set that become
one (--chains says that this is meant).

Until all is written the work lies in OUT.partial; the same command goes on where it was interrupted, another one is
refused. Memory: the names of the identities, and some bytes a picture.""",
    )
    add_two(parser)
    parser.add_argument("target", metavar="OUT", help="what to write; NAME.rec for RecordIO, otherwise a folder")
    parser.add_argument("--pairs", metavar="LIST", help="who is in both (default: nobody)")
    parser.add_argument("--same-names", action="store_true", help="one name is one identity in both sets")
    parser.add_argument("--prefixes", nargs=2, metavar=("A", "B"), help="(default: the names of the sets)")
    parser.add_argument("--chains", action="store_true", help="LIST may make several identities of a set one")
    parser.add_argument("--to", choices=WRITABLE, help="format to write (an OUT NAME.rec says recordio)")
    parser.add_argument("--shard-size", type=int, default=8192, help="images per tar or parquet file (%(default)s)")
