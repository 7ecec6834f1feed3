"""``pfc-export``: from a run folder to an export that was checked."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_pfc.commands.imports import large_imports
from lightning_pfc.commands.output import may_be_cut_short
from lightning_pfc.deploy.precisions import PRECISIONS

if TYPE_CHECKING:
    from lightning_pfc.deploy.description import ModelDescription

_EPILOG = """examples
  pfc-export runs/X
      runs/X/export: model.onnx, model.json, model.safetensors, config.json and README.md
  pfc-export runs/X --out faces-r50 --centers --license apache-2.0
      with the class centers as a gallery, by class name
  pfc-export runs/X --out fast --precision bfloat16 --engine openvino
      kept only if it loses no more than --max-loss on real pictures and is faster there; else exit status 1
  pfc-export runs/X --out pack --pack insightface --detector scrfd.onnx
      a folder that insightface.app.FaceAnalysis(name="pack") loads

What is written is compared with the trained module on real pictures first, and appears whole or not at all."""


@may_be_cut_short
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0 fine, 1 not exported, 2 wrong words."""
    options = _parser().parse_args(arguments)
    from lightning_pfc.commands.running import run_command

    return run_command("pfc-export", lambda: _export(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pfc-export",
        description="Exports the network of a run, checked, with all that is needed to use it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the run folder of pfc-train")
    parser.add_argument("--out", type=Path, help="the folder to write (default: RUN/export)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="instead of RUN/checkpoints/last.ckpt")
    parser.add_argument("--force", action="store_true", help="put it in the place of an export that is there")
    network = parser.add_argument_group("the network")
    network.add_argument("--flip", action="store_true", help="let it add the embedding of the mirror image")
    network.add_argument("--normalize", action="store_true", help="let it give embeddings of length one")
    network.add_argument(
        "--format", choices=("onnx", "pt2"), default="onnx", help="pt2 is torch.export's (%(default)s)"
    )
    network.add_argument("--precision", choices=PRECISIONS, default="float32", help="what it computes in (%(default)s)")
    network.add_argument(
        "--engine", choices=("onnxruntime", "openvino"), default="onnxruntime", help="that it is for (%(default)s)"
    )
    network.add_argument(
        "--max-loss",
        type=float,
        default=0.002,
        metavar="SHARE",
        help="how much of the true accept rate at FAR 0.1 %% a reduced precision may cost (%(default)s)",
    )
    network.add_argument(
        "--fit",
        choices=("exact", "stretch", "crop", "pad"),
        help="what is done to pictures of another size (default: as in training; crop where those had one size)",
    )
    network.add_argument(
        "--pictures",
        type=int,
        default=5000,
        metavar="N",
        help="of each verification set, at most, that figures are measured on; fewer are quicker (%(default)s)",
    )
    beside = parser.add_argument_group("beside it")
    beside.add_argument("--centers", action="store_true", help="the class centers, as a gallery by class name")
    beside.add_argument("--detector", type=Path, metavar="FILE", help="an ONNX file that finds faces: YuNet or SCRFD")
    beside.add_argument(
        "--pack", choices=("insightface",), help="make sure that InsightFace's package loads the folder"
    )
    beside.add_argument("--license", default="unknown", help="of the model, for its card (%(default)s)")
    beside.add_argument("--images", type=Path, metavar="FOLDER", help="pictures to check on, in place of the run's own")
    return parser


def _export(options: argparse.Namespace) -> int:
    with large_imports():
        from lightning_pfc.deploy.export import export_run
        from lightning_pfc.deploy.export_options import ExportOptions

    about = export_run(
        options.run,
        options.out,
        checkpoint=options.checkpoint,
        options=ExportOptions(
            flip=options.flip,
            normalize=options.normalize,
            format=options.format,
            precision=options.precision,
            engine=options.engine,
            max_loss=options.max_loss,
            pictures=options.pictures,
            centers=options.centers,
            fit=options.fit,
            images=options.images,
            detector=options.detector,
            pack=options.pack,
            license=options.license,
            replace=options.force,
        ),
    )
    _report(options.out or options.run / "export", about)
    return 0


def _report(folder: str | os.PathLike[str], about: ModelDescription) -> None:
    model, checks = about.model, about.checks
    channels, height, width = about.preprocessing.image_shape
    fidelity = checks["fidelity"]
    shape = f"{channels} x {height} x {width} to {model.width} numbers"
    print(f"{os.fspath(folder)}: {model.file}, {shape}, {model.precision}")
    what = "equal to the trained module" if model.precision == "float32" else "beside the trained module"
    print(
        f"  {what}: cosine at least 1 - {fidelity['cosine_loss']:.1e} on {fidelity['pictures']} "
        f"pictures, batches of {', '.join(str(size) for size in fidelity['batches'])}"
    )
    for name, (far, before, after) in checks["gate"].get("accept_rates", {}).items():
        print(f"  true accept rate at FAR {far} on {name}: {100 * before:.2f} -> {100 * after:.2f} %")
    for size, (before, after) in checks["gate"].get("milliseconds", {}).items():
        print(f"  {model.engine}, batch of {size}: {before:.1f} -> {after:.1f} ms")
    if about.centers is not None:
        print(f"  {about.centers.classes:,} class centers, by name")
    if about.thresholds:
        print(f"  thresholds: {', '.join(about.thresholds)}")
    else:
        print("  no threshold: choose one with pfc-eval run=RUN calibrate.far=1e-4, then export again")
    for name in checks.get("left_out", ()):
        print(f"  threshold {name} is left out: it was chosen on other weights; calibrate again", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
