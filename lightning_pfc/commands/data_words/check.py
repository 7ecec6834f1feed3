"""``pfc-data check``: counts, and finds broken, duplicate and leaked images."""

from __future__ import annotations

from typing import Any

from lightning_pfc.commands.data_words.common import add_command, add_source
from lightning_pfc.commands.kept_lists import add_force
from lightning_pfc.commands.pixels import add_max_pixels


def add_words(commands: Any) -> None:
    """Add the command to the parser of all."""
    parser = add_command(
        commands,
        "check",
        "count, and find broken, duplicate and leaked images",
        """Reads and decodes every image once and reports

  images, classes, the range of labels, images per class (a histogram as text, with --png also as a picture)
  broken images, each with file and offset; pictures that their EXIF tag turns; pictures of one value everywhere
  duplicates: pictures that are equal to the pixel, and which of them have different labels
  with --against: pictures and identity names that also occur in a test set

Exit status 0 if nothing is wrong, 1 if something is. --list writes what is wrong as a table that `convert --exclude`
takes: every broken image, every repetition of a picture (all of them if their labels differ), and every picture of the
test set.""",
    )
    add_source(parser)
    parser.add_argument("--against", metavar="DATA", help="a test set in any format, also a verification file (.bin)")
    parser.add_argument("--png", metavar="FILE", help="draw the histogram")
    parser.add_argument("--json", metavar="FILE", help="write all numbers")
    parser.add_argument("--list", metavar="FILE", help="write what is wrong as a .tsv")
    add_force(parser)
    parser.add_argument("--workers", type=int, default=1, help="threads that decode (%(default)s)")
    add_max_pixels(parser)
