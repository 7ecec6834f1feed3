"""The option ``--max-pixels`` of commands that read pictures."""

from __future__ import annotations

import argparse

from lightning_pfc.data.format_names import MAX_PIXELS, MOST_PIXELS


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """Add the option; a number that no decoder takes is a wrong word."""
    parser.add_argument(
        "--max-pixels",
        type=_pixels,
        default=MAX_PIXELS,
        metavar="N",
        help="bound of what is decoded; a larger JPEG is read at 1/2, 1/4 or 1/8 of its size (%(default)s)",
    )


def _pixels(word: str) -> int:
    if not word.isdecimal() or not 1 <= int(word[:12]) <= MOST_PIXELS:
        raise argparse.ArgumentTypeError(f"{word[:20]!r} is no number from 1 to {MOST_PIXELS}")
    return int(word)
