"""``--photos`` and ``--detector``, and what a gallery remembers of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_pfc.gallery.records import Photos


def add_photo_words(parser: argparse.ArgumentParser, face: str, default: str = "") -> None:
    """The words; ``face`` is the one of a photo that is taken, ``default`` what holds where nothing is said."""
    parser.add_argument(
        "--photos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help=f"pictures are photos: the {face} in each is found first{default}",
    )
    parser.add_argument("--detector", type=Path, metavar="FILE", help="YuNet or SCRFD (default: that of the export)")


def photos_of(options: argparse.Namespace, known: Photos | None = None) -> Photos:
    """What was said, or else what the gallery was made of: a face that was never cut out is near to nobody's.

    Raises:
        ValueError: a detector, and no photos.
    """
    from lightning_pfc.gallery.records import Photos

    taken = (known is not None and known.taken) if options.photos is None else bool(options.photos)
    if options.detector is not None and not taken:
        raise ValueError(f"--detector {options.detector} finds faces in photos; add --photos.")
    if not taken:
        return Photos(False)
    if options.detector is not None:
        return Photos(True, str(options.detector.resolve()))
    return known if known is not None and known.taken else Photos(True)
