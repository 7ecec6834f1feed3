"""Arguments of a wrong kind: said where they are given, since a word in place of a flag would count as true."""

from __future__ import annotations

import functools
import inspect
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, SupportsFloat, SupportsIndex, TypeVar

T = TypeVar("T")


class WrongKindError(TypeError, ValueError):
    """An argument of another kind than its constructor takes: of both kinds of error, whichever a caller expects."""


_PLAIN = (bool, int, float, str)
_WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


def checked(cls: type[T]) -> type[T]:
    """Class decorator: the constructor looks at the kinds of its plain arguments before it does anything.

    Looked at is what is annotated with flags, numbers, texts and ``Literal`` alone, and None; of a dataclass it stands
    above ``@dataclass``. A subclass with a constructor of its own is left alone.

    Raises:
        WrongKindError: from the constructor, for a value of another kind, such as ``drop_last="no"``, for a word that
            is not among those of a ``Literal``, and for NaN.
    """
    plain: Any = cls.__init__
    signature = inspect.signature(plain)
    before = cls.__new__

    # not around __init__, whose warnings name the line of whoever calls it
    @functools.wraps(plain)
    def new(kind: Any, *args: Any, **kwargs: Any) -> Any:
        if kind.__init__ is plain:
            check_arguments(cls, _bound(signature, kind, args, kwargs))
        return before(kind) if before is object.__new__ else before(kind, *args, **kwargs)

    cls.__new__ = new  # type: ignore[method-assign,assignment]
    return cls


def _bound(signature: inspect.Signature, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        return signature.bind_partial(kind, *args, **kwargs).arguments
    except TypeError:
        return {}  # what is wrong with them is said best by the constructor itself


def check_arguments(cls: type, given: Mapping[str, Any]) -> None:
    """As the decorator, from within a constructor: ``check_arguments(Data, locals())``.

    Args:
        cls: whose constructor it is.
        given: arguments by name; others are passed over.
    """
    for name, allowed in _allowed(cls, cls.__init__).items():  # type: ignore[misc]
        if name in given and (problem := _problem(given[name], allowed)) is not None:
            raise WrongKindError(f"{cls.__name__}({name}={given[name]!r}): {name} must be {problem}.")


def check_call(function: Callable[..., Any], given: Mapping[str, Any], where: str) -> None:
    """The same of a function's arguments that a config gives.

    Args:
        function: that will be called.
        given: arguments by name.
        where: the config key that they stand below, for the message.

    Raises:
        WrongKindError: a value of another kind.
    """
    for name, allowed in _allowed(function, function).items():
        if name in given and (problem := _problem(given[name], allowed)) is not None:
            raise WrongKindError(f"{where}.{name}={given[name]!r}: {name} must be {problem}.")


class _Allowed(NamedTuple):
    kinds: tuple[type, ...]
    words: tuple[Any, ...]
    none: bool


@functools.cache
def _allowed(cls: Any, constructor: Callable[..., Any]) -> dict[str, _Allowed]:
    own = {**vars(sys.modules[cls.__module__]), **getattr(constructor, "__globals__", {})}
    found = {name: _read(p.annotation, own) for name, p in inspect.signature(constructor).parameters.items()}
    return {name: allowed for name, allowed in found.items() if allowed is not None}


def _read(annotation: Any, names: dict[str, Any]) -> _Allowed | None:
    """None for what is not looked at."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, names)  # the source of a class, not anybody's input
        except NameError:  # imported for the type checker alone
            return None
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    parts = typing.get_args(annotation) if is_union else (annotation,)
    words = [word for part in parts if typing.get_origin(part) is typing.Literal for word in typing.get_args(part)]
    rest = [part for part in parts if typing.get_origin(part) is not typing.Literal and part is not type(None)]
    if not all(part in _PLAIN for part in rest) or not (words or rest):
        return None
    none = type(None) in parts or None in words
    return _Allowed(tuple(rest), tuple(word for word in words if word is not None), none)


def _problem(value: Any, allowed: _Allowed) -> str | None:
    if (value is None and allowed.none) or any(_equals(value, word) for word in allowed.words):
        return None
    if any(is_kind(value, kind) for kind in allowed.kinds):
        return None
    texts = [", ".join(map(repr, allowed.words))] if allowed.words else []
    texts += [_WORDS[kind] for kind in allowed.kinds] + ["None"] * allowed.none
    return ("one of " if allowed.words else "") + " or ".join(texts)


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


def check_path(name: str, value: Any) -> None:
    """See that a value of a config is a path: ``path=2024`` is a number there, and ``path=[a]`` a list.

    Raises:
        ValueError: it is not; names it and the way out.
    """
    if not isinstance(value, str | os.PathLike):
        raise ValueError(
            f"{name}={value!r} is a {type(value).__name__}, not a path; a path that looks like a number or a "
            f"list needs quotes: '{name}=\"{value}\"'."
        )
