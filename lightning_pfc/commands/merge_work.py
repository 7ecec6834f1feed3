"""What ``pfc-data merge`` does: two data sets become one, by a list of the identities that are in both."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from lightning_pfc.data.formats import EncodedImages, open_images
from lightning_pfc.data.overlap.listing import Row, read_list
from lightning_pfc.data.overlap.merging import MergedImages, refuse_inside, refuse_same


def merge(options: argparse.Namespace) -> int:
    """Join two data sets by a list of the identities that are in both."""
    from lightning_pfc.data.curation import convert as converting

    a = open_images(options.a, options.format, allow=options.allow)
    b = open_images(options.b, options.format_b, allow=options.allow)
    refuse_same(a, b)
    refuse_inside(options.target, options.a, options.b)
    format = options.to or converting.guess_target(options.target)
    pairs = [] if options.pairs is None else read_list(options.pairs)
    if options.same_names:
        pairs += _same_names(a, b)
    images = MergedImages(a, b, pairs, prefixes=_prefixes(options), allow_chains=options.chains)
    target = converting.convert(
        images, options.target, format, shard_size=options.shard_size, progress=not options.quiet
    )
    counts = images.counts
    print(f"{target}: {counts.images:,} pictures of {counts.identities:,} identities as {format}")
    print(
        f"  {a.num_classes:,} and {b.num_classes:,} identities, of which {counts.joined:,} in both; "
        f"{counts.prefixed:,} carry a prefix; {counts.left_out:,} pictures of {b.source} left out, which {a.source} has"
    )
    if counts.contradicting:
        print(f"  {counts.contradicting:,} pictures are in both under two identities: kept twice, look at the list")
    return 0


def _same_names(a: EncodedImages, b: EncodedImages) -> list[Row]:
    if a.identities.dtype.kind in "iu" or b.identities.dtype.kind in "iu":
        raise ValueError("--same-names: the identities of a set are numbers here, which are no names.")
    both = sorted(set(a.identities.tolist()) & set(b.identities.tolist()))
    return [Row(0, "identity", str(name), str(name)) for name in both]


def _prefixes(options: argparse.Namespace) -> tuple[str, str]:
    one, two = options.prefixes or (_plain(options.a), _plain(options.b))
    if options.prefixes is None and one == two:
        return "a", "b"
    if one == two or not one or not two:
        raise ValueError(f"--prefixes {one} {two}: give two that differ.")
    return one, two


def _plain(path: str) -> str:
    return re.sub(r"[^\w-]", "", Path(os.path.abspath(path)).stem) or "set"
