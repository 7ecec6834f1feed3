"""Work that is put off until a module is imported: a process that never imports it pays nothing."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def after_import(module: str, work: Callable[[], None]) -> None:
    """Call ``work`` once ``module`` has been imported: at once if it has, else when it is.

    Args:
        module: its full name.
        work: must not need more of the package than ``module`` itself, since the rest may still be importing.
    """
    found = sys.modules.get(module)
    if found is not None and not getattr(found.__spec__, "_initializing", False):
        work()
    else:
        sys.meta_path.insert(0, _Watch(module, work))


class _Watch(importlib.abc.MetaPathFinder):
    """Notices the import of one module, and leaves it to those who know how."""

    def __init__(self, module: str, work: Callable[[], None]) -> None:
        self._module, self._work = module, work

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Its spec, with a loader that does the work afterwards; None for every other module."""
        if fullname != self._module or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._work)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, work: Callable[[], None]) -> None:
        self._loader, self._work = loader, work

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps the loader it would have had: pickles, resources and inspect ask it.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._work()
