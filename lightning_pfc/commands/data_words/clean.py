"""``pfc-data clean``: finds label noise with embeddings."""

from __future__ import annotations

from typing import Any

from lightning_pfc.commands.data_words.common import add_command
from lightning_pfc.commands.kept_lists import add_force


def add_words(commands: Any) -> None:
    """Add the command to the parser of all."""
    parser = add_command(
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
    add_force(parser)
    parser.add_argument("--labels", help=".npy with the class of each embedding")
    parser.add_argument("--outlier-below", type=float, default=0.2, metavar="COS", help="(%(default)s)")
    parser.add_argument("--merge-above", type=float, default=0.7, metavar="COS", help="(%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
