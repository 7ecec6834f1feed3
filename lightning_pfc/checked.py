"""Arguments of a wrong kind: said where they are given, since a word in place of a flag would count as true."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lightning_pfc.argument_kinds import PATH, Allowed, read_annotation

T = TypeVar("T")


class WrongKindError(TypeError, ValueError):
    """An argument of another kind than its constructor takes: of both kinds of error, whichever a caller expects."""


def checked(cls: type[T]) -> type[T]:
    """Class decorator: the constructor looks at the kinds of its arguments before it does anything.

    Looked at are flags, numbers, texts, paths, ``Literal``, functions, and mappings and sequences of these; of objects
    whether a plain value stands in their place. Of a dataclass it stands above ``@dataclass``. A subclass with a
    constructor of its own is left alone.

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
        if name in given and (problem := _problem(name, given[name], allowed)) is not None:
            raise WrongKindError(f"{cls.__name__}({name}={given[name]!r}): {problem}")


def check_call(function: Callable[..., Any], given: Mapping[Any, Any], where: str = "") -> None:
    """The same of a function's arguments that a config gives.

    Args:
        function: that will be called.
        given: arguments by name; others are passed over.
        where: the config key that they stand below, for the message; none by default.

    Raises:
        WrongKindError: a value of another kind.
    """
    for name, allowed in _allowed(function, function).items():
        if (
            name in given
            and not _is_still_to_be_made(given[name])
            and (problem := _problem(name, given[name], allowed)) is not None
        ):
            key = f"{where}.{name}" if where else name
            raise WrongKindError(f"{key}={given[name]!r}: {problem}")


@functools.cache
def _allowed(cls: Any, constructor: Callable[..., Any]) -> dict[str, Allowed]:
    own = {**vars(sys.modules[cls.__module__]), **getattr(constructor, "__globals__", {})}
    found = {
        name: read_annotation(_evaluated(p.annotation, own))
        for name, p in inspect.signature(constructor).parameters.items()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    return {name: allowed for name, allowed in found.items() if allowed is not None}


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, names)  # the source of a class, not anybody's input
    except NameError:  # imported for the type checker alone
        return None


def _is_still_to_be_made(value: Any) -> bool:
    """Whether a value is, or holds, an object that Hydra will make of what stands there now."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_is_still_to_be_made, value.values()))
    return isinstance(value, list | tuple) and any(map(_is_still_to_be_made, value))


def _problem(name: str, value: Any, allowed: Allowed) -> str | None:
    if allowed.passes(value):
        return None
    way_out = f", as in {name}=[{value!r}]" if allowed.passes([value]) else ""
    if PATH in allowed.kinds and value is not None and not isinstance(value, Mapping):
        way_out = f"; one that looks like a number or a list needs quotes: '{name}=\"{value}\"'"
    return f"{name} must be {allowed.text()}{way_out}."


def check_path(name: str, value: Any) -> None:
    """See that a value of a config is a path: ``path=2024`` is a number there, and ``path=[a]`` a list.

    Raises:
        WrongKindError: it is not; names it and the way out.
    """
    if (problem := _problem(name, value, Allowed((PATH,), (), none=False))) is not None:
        raise WrongKindError(f"{name}={value!r}: {problem}")
