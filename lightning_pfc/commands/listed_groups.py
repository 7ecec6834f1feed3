"""``--help`` lists all groups of configs, for each of which Hydra copies all that it knows; here it copies it once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl

_METHOD = "_parse_overrides_and_create_caching_repo"


@contextmanager
def one_copy_for_all_groups() -> Iterator[None]:
    """Two thirds of the time of ``--help`` were 160 equal copies, each made to list one group and thrown away.

    What is listed without a config and without words is the same each time, and is only read. A Hydra that does it in
    another way is left alone.
    """
    original = getattr(ConfigLoaderImpl, _METHOD, None)
    if original is None:
        yield
        return
    copies: dict[int, Any] = {}

    def once(self: ConfigLoaderImpl, config_name: str | None, overrides: Sequence[str]) -> Any:
        if config_name is not None or overrides:
            return original(self, config_name, overrides)
        if id(self) not in copies:
            copies[id(self)] = original(self, config_name, overrides)
        return copies[id(self)]

    setattr(ConfigLoaderImpl, _METHOD, once)
    try:
        yield
    finally:
        setattr(ConfigLoaderImpl, _METHOD, original)
