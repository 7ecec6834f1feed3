"""``pfc-data``: convert, check, align and clean data sets, and make verification files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lightning_pfc.commands.data_words import COMMANDS
from lightning_pfc.commands.imports import large_imports
from lightning_pfc.commands.output import may_be_cut_short
from lightning_pfc.commands.running import run_command, unexpected_in_one_line

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
  pfc-data clean embeddings.npz outliers.tsv
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

    def work() -> int:
        with large_imports():
            from lightning_pfc.commands.data_work import WORK  # and torch, which who asks for help can do without

        with unexpected_in_one_line():
            return WORK[options.command](options)

    return run_command(f"pfc-data {options.command}", work, wrong_input=2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pfc-data",
        description="Looks after data sets of labelled images: converts, checks, aligns, cleans, compares, merges.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for words in COMMANDS:
        words.add_words(commands)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
