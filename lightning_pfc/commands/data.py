"""``pfc-data``: convert, check, align and clean data sets, and make verification files."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from lightning_pfc.commands.onnx_words import add_onnx_words
from lightning_pfc.commands.output import may_be_cut_short
from lightning_pfc.commands.overlap_defaults import DEFAULTS
from lightning_pfc.commands.pixels import add_max_pixels
from lightning_pfc.data.errors import MissingLibraryError
from lightning_pfc.data.format_names import READABLE, WRITABLE

_DATA = """a data set: a folder of folders, a .rec file (or the folder of train.rec), a list (.lst .tsv .csv .txt), a
parquet or Arrow file or a folder of these, WebDataset shards ('train-{000..123}.tar'), or what datasets.save_to_disk
wrote"""

_EPILOG = """examples
  pfc-data convert faces/ faces.rec
      a folder of folders becomes RecordIO in InsightFace's layout (faces.rec, faces.idx)
  pfc-data convert faces_emore/ shards/ --to webdataset
      an InsightFace download becomes WebDataset shards
  pfc-data check faces_emore/ --against lfw.bin --png histogram.png
      counts, broken and duplicate images, and whether pictures of the test set are in it
  pfc-data align landmarks.tsv photos/ aligned/
      cuts faces out to 112 x 112 by five points each
  pfc-data make-bin pairs.txt lfw-aligned/ lfw.bin
      a verification file from a list of pairs
  pfc-data clean embeddings.npz suspects.tsv
      which images do not belong to their class, and which classes are one
  pfc-data overlap train/ lfw.bin overlap.tsv --model runs/X/export
      who and what of a test set is in a training set, by pixels and by embedding
  pfc-data merge faces/ more/ both/ --to folder --pairs overlap.tsv
      two data sets as one; who is in both becomes one identity

Nothing here changes or deletes its input. `pfc-data COMMAND --help` explains each command."""


@may_be_cut_short
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (0 fine, 1 trouble found in the data, 2 wrong input)."""
    options = _parser().parse_args(arguments)
    try:
        from lightning_pfc.commands.data_work import WORK  # and torch, which who asks for help can do without

        return WORK[options.command](options)
    except BrokenPipeError:
        raise
    except (OSError, ValueError, MissingLibraryError) as error:
        print(f"pfc-data {options.command}: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if os.environ.get("PFC_TRACEBACK"):
            raise
        print(
            f"pfc-data {options.command}: {type(error).__name__}: {error} (PFC_TRACEBACK=1 shows where)",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pfc-data",
        description="Looks after data sets of labelled images: converts, checks, aligns, cleans, compares, merges.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_convert(commands)
    _add_check(commands)
    _add_make_bin(commands)
    _add_align(commands)
    _add_clean(commands)
    _add_overlap(commands)
    _add_merge(commands)
    _add_index(commands)
    return parser


def _command(commands: Any, name: str, summary: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help=_DATA)
    parser.add_argument("--from", dest="format", choices=READABLE, help="its format, if the name does not tell")
    parser.add_argument("--root", help="of a list: the folder its paths start from (default: where the list lies)")
    parser.add_argument("--split", help="of a Hugging Face data set: the split")
    _add_allow(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_allow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow",
        metavar="FOLDER",
        action="append",
        default=[],
        help="a folder besides the data's own that links and paths in it may lead into; may be repeated",
    )


# convert


def _add_convert(commands: Any) -> None:
    parser = _command(
        commands,
        "convert",
        "write a data set in another format",
        """Writes a data set in another format. Images are copied byte for byte, identities keep their names.

Until all is written the work lies in TARGET.partial. After an interruption the same command goes on where it stopped;
TARGET appears in one step when everything is there.

formats to write
  recordio     .rec and .idx, as mxnet, InsightFace and DALI read them
  folder       TARGET/IDENTITY/IMAGE.jpg
  list         TARGET/images/IDENTITY/IMAGE.jpg and TARGET/list.tsv
  parquet      TARGET/data/train-00000-of-00010.parquet ..., which pyarrow and datasets.load_dataset(TARGET) read
  huggingface  the same
  webdataset   TARGET/shard-000000.tar ...""",
    )
    _add_source(parser)
    parser.add_argument("target", help="what to write; NAME.rec for a single RecordIO file, otherwise a folder")
    parser.add_argument("--to", choices=WRITABLE, help="format to write (a target NAME.rec says recordio)")
    parser.add_argument(
        "--layout",
        choices=("headered", "flat"),
        default="headered",
        help="of RecordIO: headered is InsightFace's, sorted by identity; flat is what im2rec writes and DALI needs",
    )
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="write in a random order (RecordIO: needs flat)")
    parser.add_argument("--shard-size", type=int, default=8192, help="images per tar or parquet file (%(default)s)")
    parser.add_argument(
        "--exclude", metavar="LIST", help="a .tsv with a column `image`, as check and clean write it: leave these out"
    )
    parser.add_argument(
        "--exclude-identities",
        metavar="LIST",
        help="a list of `pfc-data overlap`: leave out who is in its column identity_a, in lines of kind identity",
    )


# check


def _add_check(commands: Any) -> None:
    parser = _command(
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
    _add_source(parser)
    parser.add_argument("--against", metavar="DATA", help="a test set in any format, also a verification file (.bin)")
    parser.add_argument("--png", metavar="FILE", help="draw the histogram")
    parser.add_argument("--json", metavar="FILE", help="write all numbers")
    parser.add_argument("--list", metavar="FILE", help="write what is wrong as a .tsv")
    parser.add_argument("--workers", type=int, default=1, help="threads that decode (%(default)s)")
    add_max_pixels(parser)


# make-bin


def _add_make_bin(commands: Any) -> None:
    parser = _command(
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
    _add_allow(parser)


# align


def _add_align(commands: Any) -> None:
    parser = _command(
        commands,
        "align",
        "cut faces out by five points",
        """Turns, scales and shifts each face so that its eyes, nose and mouth lie where every published face model
        expects
them (the ArcFace template, 112 x 112).

  pfc-data align LANDMARKS ROOT TARGET            the points are known
  pfc-data align --detector FILE ROOT TARGET      they are found by a detector of yours

LANDMARKS is a table with a line per image: its path relative to ROOT, then x and y of the left eye, right eye, nose
tip, left and right corner of the mouth (left as seen in the picture), in pixels; tabs, commas or spaces between them.
Any face detector with five points gives these, of the picture the way up that its EXIF tag says, as OpenCV reads it.
The result has the same path below TARGET, as PNG or JPEG as its name says.

A detector is an ONNX file: YuNet as OpenCV ships it, or SCRFD as InsightFace does. TARGET.photos.tsv then says of each
photo how many faces it shows and why it was rejected, TARGET.rejected.png shows what was. The same command goes on
where it was interrupted.

Images that are missing, broken, without a face or have impossible points are reported and left out; the exit status is
then 1.""",
    )
    parser.add_argument("landmarks", nargs="?", help="the table of points; not with --detector")
    parser.add_argument("root", help="the folder of the images")
    parser.add_argument("target", help="the folder to write to; what is there already is not made again")
    parser.add_argument("--size", type=int, default=112, help="edge of the result in pixels (%(default)s)")
    parser.add_argument("--quality", type=int, default=95, help="of JPEG, 1 to 100 (%(default)s)")
    finding = parser.add_argument_group("finding faces")
    finding.add_argument("--detector", metavar="FILE", help="an ONNX file of YuNet or SCRFD")
    finding.add_argument(
        "--faces",
        choices=("largest", "central", "all"),
        default="largest",
        help="of several: the largest, the one nearest to the middle, or all (%(default)s)",
    )
    finding.add_argument(
        "--least-score", type=float, metavar="S", help="surer faces only, 0 to 1 (default: 0.7 YuNet, 0.5 SCRFD)"
    )
    add_max_pixels(parser)
    _add_allow(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


# clean


def _add_clean(commands: Any) -> None:
    parser = _command(
        commands,
        "clean",
        "find label noise with embeddings",
        """Compares embeddings of a data set with the centers of their classes and writes a list of suspects:

  outlier  an image whose cosine to its own class's center is below --outlier-below; with the class it is nearest to
  merge    two classes whose centers have a cosine above --merge-above: perhaps one identity under two names

Nothing is changed or deleted: look at the list, then give it to `pfc-data convert --exclude`, which leaves the outliers
out. The thresholds depend on the embedder; start with those of a model you trust and look at what comes.

EMBEDDINGS is a .npz with arrays `embeddings` (or `emb`), shape (images, dimensions), and `labels` (or `label`), whole
numbers, and perhaps `names`, one per class; or a .npy with the embeddings, with --labels.""",
    )
    parser.add_argument("embeddings", help=".npz or .npy")
    parser.add_argument("target", help="the .tsv to write")
    parser.add_argument("--labels", help=".npy with the class of each embedding")
    parser.add_argument("--outlier-below", type=float, default=0.2, metavar="COS", help="(%(default)s)")
    parser.add_argument("--merge-above", type=float, default=0.7, metavar="COS", help="(%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


# overlap


def _add_overlap(commands: Any) -> None:
    parser = _command(
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
    _add_two(parser)
    parser.add_argument("target", metavar="LIST", help="the .tsv or .csv to write")
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


def _add_two(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help=_DATA)
    parser.add_argument("b", metavar="B", help="another")
    parser.add_argument("--from", dest="format", choices=READABLE, help="format of A, if the name does not tell")
    parser.add_argument("--from-b", dest="format_b", choices=READABLE, help="format of B, likewise")
    _add_allow(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


# merge


def _add_merge(commands: Any) -> None:
    parser = _command(
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
    _add_two(parser)
    parser.add_argument("target", metavar="OUT", help="what to write; NAME.rec for RecordIO, otherwise a folder")
    parser.add_argument("--pairs", metavar="LIST", help="who is in both (default: nobody)")
    parser.add_argument("--same-names", action="store_true", help="one name is one identity in both sets")
    parser.add_argument("--prefixes", nargs=2, metavar=("A", "B"), help="(default: the names of the sets)")
    parser.add_argument("--chains", action="store_true", help="LIST may make several identities of a set one")
    parser.add_argument("--to", choices=WRITABLE, help="format to write (an OUT NAME.rec says recordio)")
    parser.add_argument("--shard-size", type=int, default=8192, help="images per tar or parquet file (%(default)s)")


# index


def _add_index(commands: Any) -> None:
    parser = _command(
        commands,
        "index",
        "write the missing .idx of a .rec",
        """Walks over a .rec file and writes the .idx beside it, with keys in the order of the file (which is how mxnet
numbers them). An index that is there already is not touched.""",
    )
    parser.add_argument("record", help="the .rec file")


if __name__ == "__main__":
    raise SystemExit(main())
