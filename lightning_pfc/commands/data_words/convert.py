"""``pfc-data convert``: writes a data set in another format."""

from __future__ import annotations

from typing import Any

from lightning_pfc.commands.data_words.common import add_command, add_source
from lightning_pfc.data.format_names import WRITABLE


def add_words(commands: Any) -> None:
    """Add the command to the parser of all."""
    parser = add_command(
        commands,
        "convert",
        "write a data set in another format",
        """Writes a data set in another format. Images are copied byte for byte, identities keep their names;
signs that a line or a folder cannot hold are written %XX.

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
    add_source(parser)
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
