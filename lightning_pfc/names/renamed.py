"""Names that were given up: each goes on working, with one warning that names its successor."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_told: set[str] = set()


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Say once in a process that ``old`` is called ``new`` now."""
    if old not in _told:
        _told.add(old)
        warnings.warn(f"{old} is called {new} now; the old name goes in a later version.", FutureWarning, stacklevel)


def renamed_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` for names that live elsewhere now.

    Args:
        module: its ``__name__``.
        names: old name to ``"module:name"``.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        where, _, new = names[name].partition(":")
        warn_renamed(f"{module}.{name}", f"{where}.{new}")
        return getattr(importlib.import_module(where), new)

    return get


def adopt_renamed_members(cls: type, names: Mapping[str, str]) -> None:
    """Have a subclass that defines methods or class attributes under their old names mean the new ones.

    Args:
        cls: to be called for in ``__init_subclass__``.
        names: old name to new name.
    """
    for old, new in names.items():
        if old in vars(cls) and new not in vars(cls):
            warn_renamed(f"{cls.__name__}.{old}", new, stacklevel=5)
            setattr(cls, new, vars(cls)[old])


def renamed_member(self: object, name: str, names: Mapping[str, str]) -> Any:
    """What a class's ``__getattr__`` gives for a member under its old name.

    Args:
        self: the object that was asked.
        name: which was not found.
        names: old name to new name.
    """
    if name not in names:
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
    warn_renamed(f"{type(self).__name__}.{name}", names[name], stacklevel=4)
    return getattr(self, names[name])


class MovedModules(MetaPathFinder, Loader):
    """Finds modules under their old names: each is a stand-in that hands on what its successor has.

    Args:
        moved: old module to the new one.
        names: ``"new module:old name"`` to the new name, for what was renamed on the way; with ``"module:"`` before it
            where it went elsewhere than the rest.
    """

    def __init__(self, moved: Mapping[str, str], names: Mapping[str, str]) -> None:
        self._moved, self._names = moved, names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As Python's import asks."""
        is_package = any(old.startswith(f"{fullname}.") for old in self._moved)
        return ModuleSpec(fullname, self, is_package=is_package) if fullname in self._moved else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty stand-in."""
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Have the stand-in look everything up in the module that took its place."""
        new = self._moved[module.__name__]
        warn_renamed(module.__name__, new)  # frames of the import itself are not counted

        def get(name: str) -> Any:
            if name.startswith("__") and name != "__all__":  # asked by inspect, also while the successor is imported
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            where, _, now = self._names.get(f"{new}:{name}", name).rpartition(":")
            return getattr(importlib.import_module(where or new), now)

        module.__getattr__ = get  # type: ignore[method-assign]

    def install(self) -> None:
        """Ask this after all other finders; harmless twice."""
        if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
            sys.meta_path.append(self)
