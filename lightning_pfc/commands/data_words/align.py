"""``pfc-data align``: cuts faces out by five points."""

from __future__ import annotations

from typing import Any

from lightning_pfc.commands.data_words.common import add_allow, add_command
from lightning_pfc.commands.pixels import add_max_pixels


def add_words(commands: Any) -> None:
    """Add the command to the parser of all."""
    parser = add_command(
        commands,
        "align",
        "cut faces out by five points",
        """Turns, scales and shifts each face so that eyes, nose and mouth lie where published face models expect them
(the ArcFace template, 112 x 112).

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
    add_allow(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
