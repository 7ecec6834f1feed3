"""Frozen objects that a config knows by name: losses, auxiliary losses, samplers."""

from __future__ import annotations

import difflib
import itertools
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

_COUNT = itertools.count(1)


@dataclass(frozen=True, kw_only=True)  # itself one: LightningCLI takes what derives from anything else for a class path
class Configurable:
    """What frozen, keyword-only dataclasses share that are made from a name and plain arguments.

    A subclass checks its arguments in ``__post_init__``; each message names the argument, its value and the range.
    """

    _defined_as: ClassVar[int] = 0  # the how manieth of all subclasses: of two with one name, which is the later

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._defined_as = next(_COUNT)

    def _check_number(
        self,
        name: str,
        low: float | None = None,
        high: float | None = None,
        *,
        open_low: bool = False,
        open_high: bool = False,
    ) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{type(self).__name__}({name}={value!r}): {name} must be a number.")
        too_low = low is not None and (value < low or (open_low and value == low))
        too_high = high is not None and (value > high or (open_high and value == high))
        if not math.isfinite(value) or too_low or too_high:
            left = f"{'(' if open_low or low is None else '['}{'-inf' if low is None else f'{low:g}'}"
            right = f"{'inf' if high is None else f'{high:g}'}{')' if open_high or high is None else ']'}"
            raise ValueError(f"{type(self).__name__}({name}={value!r}): {name} must lie in {left}, {right}.")

    def _check_count(self, name: str, least: int = 1) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{type(self).__name__}({name}={value!r}): {name} must be an integer of at least {least}.")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise ValueError(f"{type(self).__name__}({name}={value!r}): {name} must be one of {', '.join(choices)}.")

    def _check_flag(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, bool):
            raise TypeError(f"{type(self).__name__}({name}={value!r}): {name} must be True or False.")

    def to_config(self) -> dict[str, Any]:
        """``name`` and the arguments that differ from the defaults: plain values for hyper-parameters and YAML."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        changed = {f.name: values[f.name] for f in fields(self) if f.init and values[f.name] != f.default}
        plain = {
            name: value.to_config() if isinstance(value, Configurable) else value for name, value in changed.items()
        }
        return {"name": type(self).__name__} | plain


Kind = TypeVar("Kind", bound=Configurable)


def registered_subclasses(base: type[Kind]) -> dict[str, type[Kind]]:
    """Every subclass that has been imported, by its name in lower case and without underscores.

    Where several have a name, the first that was defined; :func:`from_config` refuses such a name.
    """
    return {word: classes[0] for word, classes in _subclasses_by_word(base).items()}


def _subclasses_by_word(base: type[Kind]) -> dict[str, list[type[Kind]]]:
    """The classes that a word may mean; of one that was defined again, by a reload or a notebook's cell, the last."""
    found: dict[str, dict[tuple[str, str], type[Kind]]] = {}
    pending, classes = list(base.__subclasses__()), set()
    while pending:
        cls = pending.pop()
        classes.add(cls)
        pending += cls.__subclasses__()
    for cls in sorted(classes, key=lambda cls: cls._defined_as):
        found.setdefault(_word(cls.__name__), {})[_place(cls)] = cls
    return {word: list(places.values()) for word, places in found.items()}


def _place(cls: type) -> tuple[str, str]:
    """Where a class is defined: its file, since a script that is also imported has two module names, or its module."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return os.path.realpath(file) if file else cls.__module__, cls.__qualname__


def from_config(base: type[Kind], config: str | Mapping[str, Any] | Kind) -> Kind:
    """An object of a subclass of ``base`` from its name, or from a mapping with ``name`` and arguments.

    Args:
        base: says what is looked for, also in messages.
        config: such an object (returned as it is), a name in any case, with or without underscores, the path of a
            class that is imported, what :meth:`Configurable.to_config` gives, or ``class_path`` and ``init_args``.

    Raises:
        ValueError: for an unknown name, saying what exists; for one that classes from several places have, naming them;
            for a mapping without a name.
        TypeError: for an argument that the subclass does not have, and for what is none of these.
    """
    if isinstance(config, base):
        return config
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", base.__name__).lower()
    if not isinstance(config, str | Mapping):
        raise TypeError(f"{kind}={config!r} must be a name, a mapping of name and arguments, or a {base.__name__}.")
    name, arguments = _name_and_arguments(kind, config)
    known, word = _subclasses_by_word(base), _word(name)
    if "." in name:
        return _by_path(name, kind, known)(**arguments)
    if word not in known:
        close = difflib.get_close_matches(word, known, n=1)
        hint = f" Did you mean {known[close[0]][0].__name__}?" if close else ""
        names = ", ".join(sorted(classes[0].__name__ for classes in known.values()))
        raise ValueError(f"{kind} {name!r} does not exist.{hint} There are: {names}.")
    if len(known[word]) > 1:
        places = " and ".join(f"{cls.__module__}.{cls.__qualname__}" for cls in known[word])
        raise ValueError(
            f"{kind} {name!r} may be {places}; nothing says which is meant. Give one of them another name; an object "
            "in place of the word is taken as it is, but a checkpoint keeps the word alone."
        )
    return known[word][0](**arguments)


def _name_and_arguments(kind: str, config: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if not isinstance(config, str) and "class_path" in config and set(config) <= {"class_path", "init_args"}:
        config = {**(config.get("init_args") or {}), "name": config["class_path"]}  # as LightningCLI writes classes
    name, arguments = name_and_arguments(config)
    if not name:
        raise ValueError(
            f"{kind} {config!r} has no name: give one, or a mapping with `name` and arguments (for LightningCLI "
            "--model.loss.name=ArcFace beside --model.loss.margin=0.4)."
        )
    return str(name), arguments


def _by_path(path: str, kind: str, known: Mapping[str, list[type[Kind]]]) -> type[Kind]:
    """The class of a dotted path, among those that are imported: a config imports nothing."""
    module, _, name = path.rpartition(".")
    there = getattr(sys.modules.get(module), name, None)
    for cls in known.get(_word(name), []):
        if cls is there or (cls.__module__, cls.__qualname__) == (module, name):
            return cls
    names = ", ".join(sorted(f"{classes[0].__module__}.{classes[0].__name__}" for classes in known.values()))
    raise ValueError(f"{kind} {path!r} does not exist, or was not imported. There are: {names}.")


def name_and_arguments(config: str | Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Name and arguments of a choice in a config: a name alone, or a mapping with ``name`` (None if it lacks one)."""
    if isinstance(config, str):
        return config, {}
    return config.get("name"), {key: value for key, value in config.items() if key != "name"}


def _word(name: str) -> str:
    return name.lower().replace("_", "")
