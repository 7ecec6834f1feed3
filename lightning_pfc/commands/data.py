"""``pfc-data``: convert, check, align and clean data sets, and make verification files."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_pfc.data.arrays import NpyFile, read_npy, read_npz
from lightning_pfc.data.errors import reading
from lightning_pfc.data.formats import EncodedImages, MissingLibraryError, Subset, open_images
from lightning_pfc.data.formats.opening import READERS
from lightning_pfc.data.pictures.decoding import MAX_PIXELS, MOST_PIXELS
from lightning_pfc.storage.regular import read_regular
from lightning_pfc.storage.whole_files import write_whole

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

Nothing here changes or deletes its input. `pfc-data COMMAND --help` explains each command."""


_MAX_TABLE = 1 << 30  # bytes

_Handler = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (0 fine, 1 trouble found in the data, 2 wrong input)."""
    options = _parser().parse_args(arguments)
    handler: _Handler = options.handler
    try:
        return handler(options)
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
        description="Looks after data sets of labelled images: converts between all formats, checks, aligns, cleans.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_convert(commands)
    _add_check(commands)
    _add_make_bin(commands)
    _add_align(commands)
    _add_clean(commands)
    _add_index(commands)
    return parser


def _command(commands: Any, name: str, handler: _Handler, summary: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(handler=handler)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help=_DATA)
    parser.add_argument("--from", dest="format", choices=sorted(READERS), help="its format, if the name does not tell")
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


def _add_max_pixels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help="bound of what is decoded; a larger JPEG is decoded at a fraction of its size (%(default)s)",
    )


def _open(options: argparse.Namespace) -> EncodedImages:
    extra = {name: getattr(options, name) for name in ("root", "split") if getattr(options, name) is not None}
    return open_images(options.source, options.format, allow=options.allow, **extra)


# convert


def _add_convert(commands: Any) -> None:
    from lightning_pfc.data.curation.convert import FORMATS

    parser = _command(
        commands,
        "convert",
        _convert,
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
    parser.add_argument("--to", choices=FORMATS, help="format to write (a target NAME.rec says recordio)")
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


def _convert(options: argparse.Namespace) -> int:
    from lightning_pfc.data.curation.convert import convert, guess_target

    images = _open(options)
    if options.exclude:
        excluded = _read_positions(Path(options.exclude), len(images))
        images = Subset(images, np.setdiff1d(np.arange(len(images)), excluded))
    format = options.to or guess_target(options.target)
    target = convert(
        images,
        options.target,
        format,
        layout=options.layout,
        shard_size=options.shard_size,
        shuffle=options.shuffle,
        progress=not options.quiet,
    )
    print(f"{target}: {len(images)} images of {images.num_classes} classes as {format}")
    return 0


def _read_positions(path: Path, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    with reading(path, "a table of images"):
        lines = read_regular(path, _MAX_TABLE).decode("utf-8").splitlines()
    columns = lines[0].split("\t") if lines else []
    if "image" not in columns:
        raise ValueError(f"{path}: the first line must name a column `image`, found {columns[:5]}.")
    place = columns.index("image")
    positions = []
    for number, line in enumerate(lines[1:], start=2):
        cell = line.split("\t")[place] if line.count("\t") >= place else ""
        if cell and not (cell.isascii() and cell.isdigit() and int(cell) < count):
            raise ValueError(f"{path}, line {number}: image {cell!r} is not one of the {count} positions.")
        if cell:  # lines about classes have none
            positions.append(int(cell))
    return np.array(positions, dtype=np.int64)


# check


def _add_check(commands: Any) -> None:
    parser = _command(
        commands,
        "check",
        _check,
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
    _add_max_pixels(parser)


def _check(options: argparse.Namespace) -> int:
    from lightning_pfc.data.curation.check import check, describe, plot_histogram, summary, suspects

    if options.workers < 1:
        raise ValueError(f"--workers is {options.workers}; it is at least 1.")
    against = None if options.against is None else _open_other(options.against, options.allow)
    images = _open(options)
    report = check(
        images,
        against=against,
        workers=options.workers,
        progress=not options.quiet,
        max_pixels=_checked_pixels(options.max_pixels),
    )
    print(describe(report))
    if options.png:
        plot_histogram(report, options.png)
    if options.json:
        with write_whole(options.json, "w", encoding="utf-8") as file:
            json.dump(summary(report), file, indent=1)
    if options.list:
        with write_whole(options.list, "w", encoding="utf-8", newline="\n") as file:
            file.write("image\treason\tplace\n")
            for place, reason in suspects(report):
                file.write(f"{place}\t{reason}\t{images.locate(place)}\n")
    return 0 if report.is_clean else 1


def _checked_pixels(value: int) -> int:
    if not 1 <= value <= MOST_PIXELS:
        raise ValueError(f"--max-pixels is {value}; it is 1 to {MOST_PIXELS}.")
    return value


def _open_other(path: str, allow: Sequence[str]) -> Any:
    if path.lower().endswith(".bin"):
        from lightning_pfc.protocols.bins import BinImages

        return BinImages(path)
    return open_images(path, allow=allow)


# make-bin


def _add_make_bin(commands: Any) -> None:
    parser = _command(
        commands,
        "make-bin",
        _make_bin,
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


def _make_bin(options: argparse.Namespace) -> int:
    from lightning_pfc.protocols.bins import write_bin
    from lightning_pfc.protocols.pairs import PairedImages

    images = PairedImages(options.pairs, options.root, allow=options.allow)
    pairs = images.pairs()
    both = np.stack([pairs.first.numpy(), pairs.second.numpy()], axis=1).reshape(-1)
    data = {place: images.read(place) for place in np.unique(both).tolist()}
    write_bin(options.target, [data[place] for place in both.tolist()], pairs.same.tolist())
    same = int(pairs.same.sum())
    print(f"{options.target}: {len(pairs.same)} pairs, {same} same and {len(pairs.same) - same} different")
    return 0


# align


def _add_align(commands: Any) -> None:
    parser = _command(
        commands,
        "align",
        _align,
        "cut faces out by five points",
        """Turns, scales and shifts each face so that its eyes, nose and mouth lie where every published face model
        expects
them (the ArcFace template, 112 x 112).

LANDMARKS is a table with a line per image: its path relative to ROOT, then x and y of the left eye, right eye, nose
tip, left and right corner of the mouth (left as seen in the picture), in pixels; tabs, commas or spaces between them.
Any face detector with five points gives these, of the picture the way up that its EXIF tag says, as OpenCV reads it.
The result has the same path below TARGET, as PNG or JPEG as its name says.

Images that are missing, broken or have impossible points are reported and left out; the exit status is then 1.""",
    )
    parser.add_argument("landmarks", help="the table of points")
    parser.add_argument("root", help="the folder of the images")
    parser.add_argument("target", help="the folder to write to; what is there already is not made again")
    parser.add_argument("--size", type=int, default=112, help="edge of the result in pixels (%(default)s)")
    parser.add_argument("--quality", type=int, default=95, help="of JPEG, 1 to 100 (%(default)s)")
    _add_max_pixels(parser)
    _add_allow(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _align(options: argparse.Namespace) -> int:
    from lightning_pfc.data.curation.alignment import align_files

    done, failures = align_files(
        options.landmarks,
        options.root,
        options.target,
        size=options.size,
        quality=options.quality,
        max_pixels=_checked_pixels(options.max_pixels),
        allow=options.allow,
        progress=not options.quiet,
    )
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"{options.target}: {done} images aligned, {len(failures)} left out")
    return 1 if failures else 0


# clean


def _add_clean(commands: Any) -> None:
    parser = _command(
        commands,
        "clean",
        _clean,
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


def _clean(options: argparse.Namespace) -> int:
    from lightning_pfc.data.curation.clean import find
    from lightning_pfc.data.formats.base import contiguous_labels

    embeddings, keys, names = _load_embeddings(options.embeddings, options.labels)
    labels, identities = contiguous_labels(keys)
    if names is not None:
        if names.ndim != 1 or identities.dtype.kind not in "iu" or not 0 <= identities[-1] < len(names):
            raise ValueError(
                f"{options.embeddings}: `names` has the shape {names.shape}; it must hold a name per class."
            )
        identities = names[identities]
    found = find(
        embeddings,
        labels,
        outlier_below=options.outlier_below,
        merge_above=options.merge_above,
        progress=not options.quiet,
    )
    with write_whole(options.target, "w", encoding="utf-8", newline="\n") as file:
        file.write("kind\timage\tclass\tcosine\tother_class\tother_cosine\n")
        for k, place in enumerate(found.outliers.tolist()):
            other = identities[found.nearest_class[k]]
            own = identities[labels[place]]
            file.write(
                f"outlier\t{place}\t{own}\t{found.outlier_cosine[k]:.4f}\t{other}\t{found.nearest_cosine[k]:.4f}\n"
            )
        for (one, two), cosine in zip(found.merge.tolist(), found.merge_cosine.tolist(), strict=True):
            file.write(f"merge\t\t{identities[one]}\t{cosine:.4f}\t{identities[two]}\t\n")
    print(
        f"{options.target}: {len(found.outliers)} outliers among {len(labels)} images, {len(found.merge)} pairs of "
        "classes to "
        f"merge among {len(identities)}"
    )
    return 0


def _load_embeddings(path: str, labels: str | None) -> tuple[Any, Any, Any]:
    """Embeddings, labels, and names of the classes or ``None``."""
    if path.lower().endswith(".npy"):
        if labels is None:
            raise ValueError(f"{path} holds no labels; give them with --labels.")
        return NpyFile(path), read_npy(labels), None
    file, there = read_npz(path, ("embeddings", "emb", "labels", "label", "names"))
    name = next((name for name in ("embeddings", "emb") if name in file), None)
    if name is None:
        raise ValueError(f"{path} holds {list(there)}; an array `embeddings` or `emb` is needed.")
    embeddings = file[name]
    if labels is not None:
        return embeddings, read_npy(labels), None
    label = next((name for name in ("labels", "label") if name in file), None)
    if label is None:
        raise ValueError(f"{path} holds {list(there)}; an array `labels` or `label` is needed, or --labels.")
    return embeddings, file[label], file.get("names")


# index


def _add_index(commands: Any) -> None:
    parser = _command(
        commands,
        "index",
        _index,
        "write the missing .idx of a .rec",
        """Walks over a .rec file and writes the .idx beside it, with keys in the order of the file (which is how mxnet
numbers them). An index that is there already is not touched.""",
    )
    parser.add_argument("record", help="the .rec file")


def _index(options: argparse.Namespace) -> int:
    from lightning_pfc.data.formats.recordio import RecordFile

    path = Path(options.record).with_suffix(".idx")
    if path.exists():
        raise FileExistsError(f"{path} exists already.")
    count = 0
    with write_whole(path) as file:
        for count, offset in enumerate(RecordFile(options.record).scan(), start=1):
            file.write(b"%d\t%d\n" % (count - 1, offset))
    print(f"{path}: {count} records")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
