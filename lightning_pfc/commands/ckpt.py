"""``pfc-ckpt``: look into checkpoints, check them, turn them into one file, change their classes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_pfc.commands.imports import large_imports
from lightning_pfc.commands.output import may_be_cut_short
from lightning_pfc.commands.running import run_command

_PROJECTS = ("insightface", "adaface", "cvlface", "facenet-pytorch", "linear", "lvface", "mxnet", "plsc", "pml")

_EPILOG = """examples
  pfc-ckpt inspect checkpoints/last.ckpt
      what is inside: step, ranks, shapes, sizes
  pfc-ckpt verify checkpoints/last.ckpt
      reads every byte and compares the checksums
  pfc-ckpt merge checkpoints/last.ckpt whole.ckpt
      one ordinary Lightning file, which load_from_checkpoint of any module opens
  pfc-ckpt merge checkpoints/last.ckpt weights.safetensors
      the weights alone
  pfc-ckpt drop last.ckpt smaller.ckpt --classes 7,100-199
  pfc-ckpt drop last.ckpt smaller.ckpt --classes anna,bert --identities names.txt
      without some classes; names.txt has the name of class i in line i, and the new one is written beside the output
  pfc-ckpt fuse last.ckpt smaller.ckpt --classes 3,17 --classes 5,8,9
      one class where there were several that turned out to be the same
  pfc-ckpt append last.ckpt larger.ckpt --count 500
  pfc-ckpt append last.ckpt larger.ckpt --centers means.safetensors
      new classes at the end: from random centers, or from the mean embedding of each new class's images

  pfc-ckpt import --from insightface run/ head.safetensors
      the head (and backbone) that arcface_torch has written on any number of ranks, as one file with our names
  pfc-ckpt export --to insightface --ranks 8 last.ckpt run/
      and back

Weights and the rows of optimizers change together; everything streams, so that a head may be larger than
memory. Nothing here changes or deletes its input. A checkpoint is a folder that several ranks have written, or
the file of one process."""


@may_be_cut_short
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0 fine, 1 a damaged checkpoint, 2 wrong input."""
    options = _parser().parse_args(arguments)
    with large_imports():
        from lightning_pfc.commands.ckpt_work import WORK  # and torch, which who asks for help can do without

    def work() -> int:
        WORK[options.command](options)
        return 0

    return run_command(f"pfc-ckpt {options.command}", work, wrong_input=2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pfc-ckpt",
        description="Looks into checkpoints, checks them, merges them into one file, and changes their classes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str, output: bool) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("checkpoint", type=Path, help="the checkpoint: a folder, or a file of one process")
        if output:
            command.add_argument("output", type=Path, help="what to write")
        return command

    inspect = add("inspect", "Shows what is inside, without reading the data.", output=False)
    inspect.add_argument("--json", action="store_true", help="print it for programs")
    add("verify", "Reads every byte and compares all checksums.", output=False)
    merge = add("merge", "Writes one file: Lightning's own, or the weights as safetensors.", output=True)
    merge.add_argument("--format", choices=["lightning", "safetensors"], help="default: by the name of the output")
    drop = add("drop", "Writes a checkpoint without some classes.", output=True)
    _add_classes(drop, "the classes to leave out: numbers, ranges, or names: 7,100-199")
    fuse = add("fuse", "Writes a checkpoint in which several classes are one, with the mean center.", output=True)
    _add_classes(fuse, "classes that become one, in the place of the first; may be given several times")
    append = add("append", "Writes a checkpoint with more classes at the end.", output=True)
    append.add_argument("--count", type=int, help="how many, with random centers")
    append.add_argument("--seed", type=int, default=0, help="of the random centers: that of the head (default 0)")
    append.add_argument(
        "--std", type=float, default=0.01, help="standard deviation of the random centers (default 0.01)"
    )
    append.add_argument("--centers", type=Path, help="(N, D) mean embeddings: .safetensors or .npy with one array")
    append.add_argument("--identities", type=Path, help="a text file with the name of class i in line i")
    append.add_argument("--names", help="names of the new classes, separated by commas; needed with --identities")
    _add_others(commands)
    return parser


def _add_others(commands: Any) -> None:
    text = f"Reads another project's files: {', '.join(_PROJECTS)}."
    take = commands.add_parser("import", help=text, description=text)
    take.add_argument("--from", dest="project", choices=_PROJECTS, required=True, help="who wrote it")
    take.add_argument("source", type=Path, help="the file or folder")
    take.add_argument("output", type=Path, help="the safetensors file to write")
    take.add_argument(
        "--classes",
        type=int,
        help="how many there must be: tells of the last ranks' files missing, and of rows without a class",
    )
    text = "Writes a head, and a network where theirs has one, as another project keeps it."
    give = commands.add_parser("export", help=text, description=text)
    give.add_argument("--to", dest="project", choices=_PROJECTS, required=True, help="who is to read it")
    give.add_argument("checkpoint", type=Path, help="a checkpoint, or what pfc-ckpt import wrote")
    give.add_argument(
        "output", type=Path, help="what to write: a folder of insightface, cvlface, mxnet and plsc, else a file"
    )
    give.add_argument("--ranks", type=int, default=1, help="of a folder: how many ranks will read it (default 1)")


def _add_classes(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--classes", action="append", required=True, help=text)
    command.add_argument("--identities", type=Path, help="a text file with the name of class i in line i")


if __name__ == "__main__":
    raise SystemExit(main())
