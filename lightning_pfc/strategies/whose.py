"""Whether the classes of a checkpoint are those of the data, before a center is taken for somebody else's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader

from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.identities import Identities, difference
from lightning_pfc.heads.partial_fc import PartialFC

MATCHES = (None, "names", "position")


def check_match(match: str | None) -> str | None:
    """See that a word for how classes are matched exists.

    Raises:
        ValueError: if it does not.
    """
    if match not in MATCHES:
        words = ", ".join(repr(each) for each in MATCHES[1:])
        raise ValueError(f"head.match={match!r} does not exist; there are {words}, or null, which compares the names.")
    return match


def names_of_data(trainer: Any, heads: Iterable[PartialFC], loop: str = "fit_loop") -> Any:
    """The names of the classes that a Trainer's data have, in a sequence; None if they do not tell, or no head fits.

    They are ``class_names`` of the data module, of its ``data``, of the module, or of the data sets in the loaders of
    ``loop``; see :func:`names_in_loaders`. Loaders that a hook makes are known once they are made.

    Args:
        trainer: whose data.
        heads: whose classes.
        loop: of the Trainer, whose loaders count: ``fit_loop``, ``validate_loop`` or ``test_loop``.
    """
    data = getattr(trainer, "datamodule", None)
    heads = list(heads)
    counts = [head.num_classes for head in heads]
    for owner in (data, getattr(data, "data", None), getattr(trainer, "lightning_module", None)):
        names = getattr(owner, "class_names", None)
        if names is not None and not callable(names):
            return names if len(names) in (*counts, sum(counts)) else None
    found = getattr(trainer, loop, None)
    given = getattr(getattr(found, "_data_source", None), "instance", None)
    return names_in_loaders((given, getattr(found, "_combined_loader", None)), heads)


def names_in_loaders(loaders: Any, heads: Iterable[PartialFC]) -> Any:
    """Names of classes of the first data set in loaders, or within it (``Subset``), that has as many as a head.

    Args:
        loaders: one, or a collection of them; anything else in it is passed over.
        heads: whose classes.

    Returns:
        Its ``class_names`` or, as torchvision calls them, ``classes``; None if there are none.
    """
    counts = [head.num_classes for head in heads]
    for owner in _data_sets(loaders):
        for names in (getattr(owner, "class_names", None), getattr(owner, "classes", None)):
            if isinstance(names, list | tuple) and len(names) in counts and all(isinstance(n, str) for n in names):
                return names
    return None


def _data_sets(loaders: Any) -> Iterator[Any]:
    for each in tree_flatten(loaders)[0]:
        if isinstance(each, CombinedLoader):
            yield from _data_sets(each.iterables)
        elif isinstance(each, DataLoader):
            owner: Any = each
            while (owner := getattr(owner, "dataset", None)) is not None:
                yield owner


def check_identities(where: str, there: Identities | None, here: Identities | None) -> None:
    """See that the classes of a checkpoint are those of the data, in their order.

    Raises:
        CheckpointError: naming the first that is not, and the ways out.
    """
    if there is None or here is None:
        return
    found = difference(there, here)
    if found is not None:
        raise CheckpointError(
            f"{where} was trained on other classes than the data have, or in another order: {found}. Give the data of "
            "the checkpoint; or head.match=names, which moves each row to where its name is now; or "
            "head.match=position, if you know that row i is class i all the same."
        )
