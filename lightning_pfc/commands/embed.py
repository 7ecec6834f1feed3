"""``pfc-embed``: a folder of pictures to a file of embeddings."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_pfc.commands.imports import large_imports
from lightning_pfc.commands.onnx_words import add_onnx_words, onnx_words
from lightning_pfc.commands.output import may_be_cut_short
from lightning_pfc.commands.pixels import add_max_pixels
from lightning_pfc.data.format_names import READABLE

_EPILOG = """examples
  pfc-embed runs/X/export faces/ faces.npz
      emb (N, D), label and path of each picture; names of the labels
  pfc-embed runs/X/export photos/ faces.npz --photos --detector yunet.onnx
      finds, cuts out and aligns the face of each photo first
  pfc-embed resnet.onnx shards/ faces.parquet --workers 4
      any ONNX file and any format of data that pfc-data reads
  pfc-embed sface.onnx faces/ faces.npz --channels rgb
      what such a file does not say, and its first nodes do not show, is warned of

The same command goes on where it was interrupted. What could not be read is in OUT.rejected.tsv. The .npz goes to
`pfc-data clean`, and to the protocols all_pairs and open_set of `pfc-eval embedder=none`."""


@may_be_cut_short
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0 fine (perhaps with rejects), 1 nothing done, 2 wrong words."""
    options = _parser().parse_args(arguments)
    from lightning_pfc.commands.running import run_command

    return run_command("pfc-embed", lambda: _embed(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pfc-embed",
        description="Turns every picture of a folder or data set into an embedding.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="an export, a run folder, an ONNX file, or timm:NAME")
    parser.add_argument("source", help="a folder of pictures, or a data set in any format that pfc-data reads")
    parser.add_argument("out", type=Path, metavar="OUT", help="OUT.npz or OUT.parquet")
    parser.add_argument("--from", dest="format", choices=READABLE, help="format of the data, if the name does not tell")
    parser.add_argument("--allow", metavar="FOLDER", action="append", default=[], help="where links may lead as well")
    network = parser.add_argument_group("the network")
    network.add_argument("--engine", choices=("onnxruntime", "openvino", "torch"), help="default: that of the export")
    network.add_argument("--flip", action="store_true", help="add the embedding of the mirror image")
    network.add_argument("--normalize", action="store_true", help="give length one")
    network.add_argument("--fit", choices=("exact", "stretch", "crop", "pad"), help="of pictures of another size")
    network.add_argument("--batch-size", type=int, default=64, help="(%(default)s)")
    network.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="that decode (%(default)s)")
    add_onnx_words(parser)
    photos = parser.add_argument_group("photos")
    photos.add_argument("--photos", action="store_true", help="find, cut out and align faces first")
    photos.add_argument("--detector", type=Path, metavar="FILE", help="YuNet or SCRFD (default: that of the export)")
    photos.add_argument("--faces", choices=("largest", "central", "all"), default="largest", help="(%(default)s)")
    add_max_pixels(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _embed(options: argparse.Namespace) -> int:
    with large_imports():
        from lightning_pfc.deploy.embedders import open_embedder
        from lightning_pfc.deploy.embedding import embed_images
        from lightning_pfc.deploy.errors import ExportError
        from lightning_pfc.deploy.picture_folders import open_pictures
        from lightning_pfc.faces import FaceCutter, open_detector

    if options.detector is not None and not options.photos:
        raise ValueError(f"--detector {options.detector} finds faces in photos; add --photos")
    embedder = open_embedder(
        options.model,
        engine=options.engine,
        flip=options.flip,
        normalize=options.normalize,
        fit=options.fit,
        max_pixels=options.max_pixels,
        onnx=onnx_words(options),
    )
    cutter, detector = None, None
    if options.photos:
        detector = options.detector or embedder.detector
        if detector is None:
            raise ExportError("has no face detector; give one: --photos --detector FILE", options.model)
        cutter = FaceCutter(
            open_detector(detector),
            size=embedder.alignment_size,
            faces=options.faces,
            max_pixels=options.max_pixels,
        )
    report = embed_images(
        embedder,
        open_pictures(options.source, options.format, allow=options.allow),
        options.out,
        cutter=cutter,
        detector_file=detector,
        batch_size=options.batch_size,
        workers=options.workers,
        progress=not options.quiet and sys.stderr.isatty(),
    )
    went_on = f", {report.resumed:,} of them before the interruption" if report.resumed else ""
    print(f"{options.out}: {report.rows:,} embeddings of {report.pictures:,} pictures{went_on}")
    if report.rejects:
        path, reason = report.rejects[0]
        print(f"{len(report.rejects):,} pictures gave none, listed in {report.table}; the first is {path}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
