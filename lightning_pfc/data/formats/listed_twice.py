"""Images that a table names more than once."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_log = logging.getLogger(__name__)


def warn_of_two_labels(
    source: str, paths: Sequence[str], labels: npt.NDArray[np.int64], identities: npt.NDArray[np.generic]
) -> None:
    """Say that files are listed under two labels: each is pulled to both, and judged wrong by one.

    Args:
        source: of the list, for the message.
        paths: of the files, (n,).
        labels: their classes, (n,).
        identities: what each class is called, (classes,).
    """
    keys = np.fromiter((hash(os.path.normpath(path)) for path in paths), np.int64, len(paths))
    order = np.argsort(keys, kind="stable")
    again = np.flatnonzero((keys[order][1:] == keys[order][:-1]) & (labels[order][1:] != labels[order][:-1]))
    pairs = [(int(order[i]), int(order[i + 1])) for i in again]
    pairs = [(a, b) for a, b in pairs if os.path.normpath(paths[a]) == os.path.normpath(paths[b])]
    if pairs:
        first, second = min(pairs)
        _log.warning(
            "%s: %s is listed as %s and as %s%s. Leave one of the lines out, or the picture is trained as both.",
            source, paths[first], identities[labels[first]], identities[labels[second]],
            f"; {len(pairs)} files are listed under two labels" if len(pairs) > 1 else "",
        )  # fmt: skip
