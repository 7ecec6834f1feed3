"""Labels that are numbers, and stand for something else than one identity."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.errors import FormatError

_log = logging.getLogger(__name__)
_WHOLE = re.compile(r"-?[0-9]+(?:\.0*)?")


def refuse_no_identity(labels: Sequence[str] | npt.NDArray[Any], path: str | os.PathLike[str]) -> None:
    """See that no number is below zero: -1 is what tables have where nobody is known, and these are not one person.

    Args:
        labels: of the images, (n,), whole numbers or texts.
        path: of the data, for the message.

    Raises:
        FormatError: all are whole numbers, and some are below zero.
    """
    if isinstance(labels, np.ndarray):
        if labels.dtype.kind != "i" or not len(labels) or int(labels.min()) >= 0:
            return
        lowest, count = str(labels.min()), int((labels < 0).sum())
    else:
        known = set(labels)
        below = {text for text in known if text.startswith("-")}
        if not below or not all(map(_WHOLE.fullmatch, known)):
            return
        lowest, count = min(below, key=float), sum(text in below for text in labels)
    raise FormatError(
        f"the label is {lowest}, in {count} of {len(labels)} images: below zero stands for no identity. Leave these "
        "images out, or number identities from 0",
        path=path,
    )


def warn_of_numbers(known: set[str], source: str) -> None:
    """Say that texts that are numbers become names: two ways to write one number are two classes, as are all fractions.

    Args:
        known: the distinct labels, of which not all are plain whole numbers.
        source: of the data.
    """
    try:
        values = {text: float(text) for text in known}
    except ValueError:
        return  # some are no numbers: names
    seen: dict[float, str] = {}
    for text in sorted(known):
        if (other := seen.setdefault(values[text], text)) != text:
            _log.warning("%s: the labels %s and %s are one number, and two classes here.", source, other, text)
            return
    if fraction := next((text for text in sorted(known) if not values[text].is_integer()), None):
        _log.warning(
            "%s: labels are numbers with a fraction, such as %s; each of %d is a class of its own.",
            source, fraction, len(known),
        )  # fmt: skip
