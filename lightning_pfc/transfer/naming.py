"""Which tensor of a file is which of a module: names are the same behind some prefix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from lightning_pfc.checkpoint.errors import CheckpointError

BACKBONE, NECK = "backbone.", "neck."
_COMPILED = "_orig_mod."


def plain_names(names: Collection[str]) -> dict[str, str]:
    """Every name without the marks of torch.compile, and the name that it has in the file.

    Raises:
        CheckpointError: two are one without them.
    """
    found: dict[str, str] = {}
    for name in names:
        if (other := found.setdefault(plain(name), name)) != name:
            raise CheckpointError(f"{other} and {name} are one tensor. Give a file with the one that is meant.")
    return found


def plain(name: str) -> str:
    """A name without the marks of torch.compile."""
    return name.replace(_COMPILED, "")


def find_prefix(names: Collection[str], wanted: Collection[str]) -> str | None:
    """What most names have before those that are wanted; None if none of them is there.

    Such as ``module.``, ``model.``, ``net.``, ``backbone.``, or several of them.

    Raises:
        CheckpointError: two prefixes lead to as many, so that the file has two such networks.
    """
    found: Counter[str] = Counter()
    for name in names:
        start = 0
        while start >= 0:
            if name[start:] in wanted:
                found[name[:start]] += 1
            start = name.find(".", start) + 1 or -1
    best = found.most_common(2)
    if len(best) == 2 and best[0][1] == best[1][1] > 1:
        raise CheckpointError(
            f"there are two networks of this kind, under {best[0][0]!r} and {best[1][0]!r}. Give a file with one."
        )
    return best[0][0] if best else None


def outer(prefix: str | None) -> str:
    """What comes before the names of a module, where ``prefix`` comes before those of its backbone."""
    return (prefix or "").removesuffix(BACKBONE)


def below(plain: Mapping[str, str], prefix: str) -> dict[str, str]:
    """The names behind a prefix, and those that they have in the file."""
    return {name.removeprefix(prefix): there for name, there in plain.items() if name.startswith(prefix)}
