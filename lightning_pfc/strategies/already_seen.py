"""Whether a run is judged on people whom the weights that it has or begins with were trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_pfc.data.verification import VerificationSet


def warn_of_seen(where: str, trained_on: Iterable[str] | None, trainer: Any) -> None:
    """Say so where identities that a Trainer's data hold out are among those of a checkpoint.

    A share of the identities is another one when people come or go, and a second data set may have some of the first.

    Args:
        where: names the checkpoint.
        trained_on: the names of its identities; read once, in a stream. None: it has none.
        trainer: with a data module whose ``data`` are :class:`~lightning_pfc.data.IdentityData`; others have no names.
    """
    sets = _held_out(getattr(getattr(trainer, "datamodule", None), "data", None))
    if trained_on is not None and sets and (known := already_seen(trained_on, sets)):
        rank_zero_warn(
            f"{where} was trained on {'; '.join(known)}: by their names it has seen them, so figures on them say too "
            "much. Judge it on people that it does not know (data.source.test=FOLDER); or leave this aside if the "
            "names are other people's."
        )


def already_seen(trained_on: Iterable[str], sets: Mapping[str, Sequence[str]]) -> list[str]:
    """What is to be said of each set that has names of ``trained_on``."""
    left = {name: set(names) for name, names in sets.items()}
    sizes = {name: len(names) for name, names in left.items()}
    first: dict[str, str] = {}
    for person in trained_on:
        for name, unseen in left.items():
            if person in unseen:
                unseen.remove(person)
                first.setdefault(name, person)
    return [
        f"{sizes[name] - len(left[name])} of the {sizes[name]} identities of {name!r} (such as {person!r})"
        for name, person in first.items()
    ]


def _held_out(data: Any) -> dict[str, Sequence[str]]:
    sets: dict[str, Any] = {}
    for stage in ("validation", "test"):
        found = getattr(data, stage, None)
        sets |= found if isinstance(found, Mapping) else {}
    return {name: part.names for name, part in sets.items() if isinstance(part, VerificationSet) and len(part.names)}
