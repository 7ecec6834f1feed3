"""What an annotation lets an argument be: read once, asked of every value, and said in words."""

from __future__ import annotations

import inspect
import itertools
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

_MOST = 1000  # members of a list that are looked at: names of classes may be many
_VALUES = (type(None), bool, int, float, complex, str, bytes, list, tuple, set, frozenset)
_OF_PLAIN_VALUES = ("builtins", "typing", "collections.abc")  # modules of classes that they may be of
_WORDS = {
    bool: ("True or False", "flags"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
}


@dataclass(frozen=True)
class Allowed:
    """What one annotation allows: one of these kinds, one of these words, or None."""

    kinds: tuple[_Kind, ...]
    words: tuple[Any, ...]
    none: bool

    def passes(self, value: Any) -> bool:
        """Whether a value is one of them."""
        if (value is None and self.none) or any(_equals(value, word) for word in self.words):
            return True
        return any(kind.passes(value) for kind in self.kinds)

    def text(self, *, several: bool = False) -> str:
        """What is allowed, in words that follow "must be"; ``several`` of them in words that follow "a list of"."""
        texts = [", ".join(map(repr, self.words))] if self.words else []
        kinds = [kind for kind in self.kinds if kind != _Plain(str) or PATH not in self.kinds]  # a text is a path then
        texts += [kind.text(several) for kind in kinds] + ["None"] * self.none
        return ("one of " if self.words else "") + " or ".join(dict.fromkeys(texts))


@dataclass(frozen=True)
class _Plain:
    kind: type

    def passes(self, value: Any) -> bool:
        return is_kind(value, self.kind)

    def text(self, several: bool) -> str:
        return _WORDS[self.kind][several]


@dataclass(frozen=True)
class _Path:
    def passes(self, value: Any) -> bool:
        return isinstance(value, str | os.PathLike)

    def text(self, several: bool) -> str:
        return "paths" if several else "a path"


PATH = _Path()


@dataclass(frozen=True)
class _Anything:
    def passes(self, value: Any) -> bool:
        return True

    def text(self, several: bool) -> str:
        return "values" if several else "anything"


@dataclass(frozen=True)
class _Object:
    """Of a class of somebody's; what only behaves like it is let pass, a plain value is not."""

    kind: type

    def passes(self, value: Any) -> bool:
        is_plain = type(value) in _VALUES or isinstance(value, Mapping)  # a named tuple is somebody's object
        return not is_plain or self.kind in type(value).__mro__

    def text(self, several: bool) -> str:
        name = self.kind.__name__
        return f"objects of {name}" if several else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


@dataclass(frozen=True)
class _Function:
    def passes(self, value: Any) -> bool:
        return callable(value)

    def text(self, several: bool) -> str:
        return "functions" if several else "a function"


@dataclass(frozen=True)
class _Table:
    """A mapping."""

    keys: Allowed
    values: Allowed

    def passes(self, value: Any) -> bool:
        return isinstance(value, Mapping) and all(
            self.keys.passes(key) and self.values.passes(each) for key, each in value.items()
        )

    def text(self, several: bool) -> str:
        return f"{'mappings' if several else 'a mapping'} from {self.keys.text(several=True)} to " + self.values.text(
            several=True
        )


@dataclass(frozen=True)
class _List:
    """A sequence of so many, None for any number. What can be gone through only once is let pass."""

    each: Allowed
    length: int | None

    def passes(self, value: Any) -> bool:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            return False
        if not isinstance(value, Sequence | Set):
            return True
        looked_at = itertools.islice(value, _MOST)
        return self.length in (None, len(value)) and all(self.each.passes(each) for each in looked_at)

    def text(self, several: bool) -> str:
        length = "" if self.length is None else f"{self.length} "
        return f"{'lists' if several else 'a list'} of {length}{self.each.text(several=True)}"


_Kind = _Plain | _Path | _Anything | _Object | _Function | _Table | _List


def read_annotation(annotation: Any) -> Allowed | None:
    """What an annotation allows; None where that is not known, so that nothing is looked at."""
    if annotation in (None, inspect.Parameter.empty):
        return None
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    parts = typing.get_args(annotation) if is_union else (annotation,)
    words = [word for part in parts if typing.get_origin(part) is typing.Literal for word in typing.get_args(part)]
    rest = [part for part in parts if typing.get_origin(part) is not typing.Literal and part is not type(None)]
    kinds = [_read_kind(part) for part in rest]
    if None in kinds or not (words or rest):
        return None
    none = type(None) in parts or None in words
    known = tuple(kind for kind in kinds if kind is not None)
    return Allowed(known, tuple(word for word in words if word is not None), none)


def _read_kind(part: Any) -> _Kind | None:
    origin, inner = typing.get_origin(part), typing.get_args(part)
    if part is Any:
        return _Anything()
    if part in _WORDS:
        return _Plain(part)
    if (origin or part) in (os.PathLike, Path):
        return PATH
    if origin is Callable or part is Callable:
        return _Function()
    if isinstance(part, type) and origin is None and part.__module__ not in _OF_PLAIN_VALUES:
        return _Object(part)
    if origin not in (Mapping, dict, Sequence, list, tuple):
        return None
    read = [read_annotation(each) for each in inner if each is not Ellipsis]
    known = [each for each in read if each is not None]
    if len(known) < len(read) or not known:
        return None
    if origin in (Mapping, dict):
        return _Table(*known)
    if origin is tuple and Ellipsis not in inner:
        return _List(known[0], len(known)) if len(set(inner)) == 1 else None
    return _List(known[0], None)


def _equals(value: Any, word: Any) -> bool:
    return isinstance(value, type(word)) and isinstance(value, bool) == isinstance(word, bool) and bool(value == word)


def is_kind(value: Any, kind: type) -> bool:
    """Whether a value passes for a flag, whole number, number or text, so that ``kind(value)`` is what was meant."""
    if kind is bool:  # numpy's too, and the numbers that stand for them
        return type(value).__name__ in ("bool", "bool_") or (type(value) is int and value in (0, 1))
    if isinstance(value, bool):
        return False
    if kind is int:  # and 2e9, which configs make a float of
        return isinstance(value, SupportsIndex) or (isinstance(value, float) and value.is_integer())
    if kind is float:
        return isinstance(value, SupportsFloat) and not (isinstance(value, float) and math.isnan(value))
    return isinstance(value, (kind, os.PathLike))
