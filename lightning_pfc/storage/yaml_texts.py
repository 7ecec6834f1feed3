"""YAML that somebody else has written: read in proportion to its length.

Thirty lines can name each other twice over; whoever walks or copies what they say (OmegaConf does) never comes back.
"""

from __future__ import annotations

import os
from typing import Any

from lightning_pfc.storage.regular import read_regular

MAX_YAML = 1 << 20  # bytes
_MOST_DEPTH = 50
_FEW_NODES = 10_000  # that every text may have, however short


def read_yaml(path: str | os.PathLike[str]) -> str:
    """The text of a YAML file that may be parsed.

    Raises:
        OSError: it is no ordinary file, or larger than a megabyte.
        ValueError: as :func:`check_yaml`.
    """
    text = read_regular(path, MAX_YAML).decode("utf-8")
    check_yaml(text)
    return text


def parse_yaml(text: str) -> Any:
    """What a YAML text says, in plain values.

    Raises:
        ValueError: as :func:`check_yaml`.
    """
    check_yaml(text)
    import yaml  # of OmegaConf

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise ValueError(f"it is no YAML: {_line(error)}") from error


def check_yaml(text: str) -> None:
    """See that a text is YAML, and that what it says has no more in it than it is long.

    Raises:
        ValueError: saying what is wrong.
    """
    import yaml

    sizes: dict[str, int] = {}
    counts, anchors = [0], [""]
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            anchor = getattr(event, "anchor", None) or ""
            if isinstance(event, yaml.CollectionStartEvent):
                counts.append(1)
                anchors.append(anchor)
            elif isinstance(event, yaml.CollectionEndEvent):
                size, anchor = counts.pop(), anchors.pop()
                sizes[anchor] = size
                counts[-1] += size
            elif isinstance(event, yaml.AliasEvent):
                counts[-1] += sizes.get(anchor, 1)
            elif isinstance(event, yaml.ScalarEvent):
                sizes[anchor] = size = 1 + len(event.value) // 100
                counts[-1] += size
            if len(counts) > _MOST_DEPTH or counts[-1] > _FEW_NODES + len(text):
                raise ValueError("it holds lists within lists without end")
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"it is no YAML: {_line(error)}") from error


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
