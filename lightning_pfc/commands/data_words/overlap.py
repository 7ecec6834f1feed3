"""``pfc-data overlap``: finds identities and pictures that two data sets have in common."""

from __future__ import annotations

from typing import Any

from lightning_pfc.commands.data_words.common import add_command, add_two
from lightning_pfc.commands.kept_lists import add_force
from lightning_pfc.commands.onnx_words import add_onnx_words
from lightning_pfc.commands.overlap_defaults import DEFAULTS


def add_words(commands: Any) -> None:
    """Add the command to the parser of all."""
    parser = add_command(
        commands,
        "overlap",
        "find identities and pictures that two data sets have in common",
        """Lists the identities that are in both A and B, and the pictures of B that are in A.

By pixels: equal files, equal pictures, and near duplicates, whose perceptual hashes differ in at most --near of 256
bits (compressed again, another size; not cropped). Two identities are taken for one where half of the pictures of one
are pictures of the other.

By embedding, with --model: two identities are taken for one where the mean cosine of all pairs of their pictures is
above --threshold; pictures where their cosine is above --same-picture. A threshold by name is one of pairs of pictures,
calibrated by `pfc-eval run=X calibrate.far=1e-6` and exported. What the threshold does is measured on your data and
said: how many pairs are above it by chance, and how many identities are found again.

LIST (.tsv or .csv) has a line for each pair: kind (identity, name, picture, broken), identities and pictures of A and
B, score, and how it was found. `name` are two of one name that were not taken for one. Look at the contact sheet, take
lines out or change `kind` to identity or different; then `pfc-data merge --pairs LIST`, or
`pfc-data convert A clean.rec --exclude LIST`, which leaves those pictures of A out, and with --exclude-identities LIST
those identities. A or B may be a verification file (.bin) or a folder without identities: each picture then is one of
its own.

Memory: 64 bytes a picture of both sets, blocks of 100 MB, and what is found (at most 4,194,304 pairs of a kind).
Embeddings and the means of the identities lie in LIST.partial until all is done; the same command goes on there.
Every picture is compared with every other: 5.8 million with 13,000 are 4 x 10^13 products for --model (512 numbers),
half as many for --near.

Exit status 0 if nothing is in both, 1 if something is.""",
    )
    add_two(parser)
    parser.add_argument("target", metavar="LIST", help="the .tsv or .csv to write")
    add_force(parser)
    parser.add_argument("--png", metavar="FILE", help="the contact sheet (default: LIST with .png)")
    parser.add_argument(
        "--near", type=int, metavar="BITS", help=f"that may differ in near duplicates ({DEFAULTS['near']})"
    )
    parser.add_argument("--no-pixels", dest="pixels", action="store_false", help="compare embeddings only")
    embeddings = parser.add_argument_group("by embedding")
    embeddings.add_argument("--model", help="as pfc-embed takes: an export, a run, an ONNX file, timm:NAME")
    embeddings.add_argument(
        "--threshold", metavar="NAME|COS", help="of identities (default: the first of the export for pairs)"
    )
    embeddings.add_argument("--same-picture", metavar="COS", help=f"of pictures, or none ({DEFAULTS['same_picture']})")
    embeddings.add_argument("--flip", action="store_true", help="add the embedding of the mirror image")
    embeddings.add_argument("--fit", choices=("exact", "stretch", "crop", "pad"), help="of pictures of another size")
    embeddings.add_argument("--batch-size", type=int, help=f"({DEFAULTS['batch_size']})")
    add_onnx_words(parser)
    parser.add_argument("--workers", type=int, default=1, help="threads that decode (%(default)s)")
