"""Reading plain data that came from a file: every value is checked before it is used."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lightning_pfc.runs.errors import ExportError

MAX_JSON = 64 << 20  # bytes
T = TypeVar("T")


def read_json(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """A JSON object from a file.

    Raises:
        ExportError: it is not there, is too large, or is no JSON object.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_JSON + 1)
    except OSError as error:
        raise ExportError(f"cannot be read: {error.strerror or error}", path) from error
    if len(content) > MAX_JSON:
        raise ExportError(f"has more than {MAX_JSON} bytes", path)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"is no JSON: {error}", path) from error
    if not isinstance(found, dict):
        raise ExportError(f"holds {type(found).__name__} where an object is expected", path)
    return found


class Reader:
    """One object of a JSON file; every value that is taken is checked.

    Args:
        content: the object.
        path: of the file, for messages.
        where: name of the object within it.
    """

    def __init__(self, content: Any, path: str | os.PathLike[str], where: str = "") -> None:
        if not isinstance(content, Mapping):
            raise ExportError(f"{where or 'the content'} is {type(content).__name__}, not an object", path)
        self.content, self.path, self.where = content, path, where

    def __contains__(self, key: str) -> bool:
        return self.content.get(key) is not None

    def at(self, key: str) -> Reader:
        """The object under a key."""
        return Reader(self.content.get(key), self.path, self._name(key))

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        return str(self._value(key, lambda v: isinstance(v, str) and len(v) < 1 << 16, "a text", default))

    def choice(self, key: str, choices: Sequence[str], default: str | None = None) -> str:
        """One of several words."""
        kind = f"one of {', '.join(choices)}"
        return str(self._value(key, lambda v: isinstance(v, str) and v in choices, kind, default))

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        return bool(self._value(key, lambda v: isinstance(v, bool), "true or false", default))

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number in [low, high]."""
        value: int = self._value(
            key,
            lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
            f"a whole number from {low} to {high}",
            default,
        )
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in [low, high]."""
        value: float = self._value(
            key, lambda v: is_number(v) and low <= v <= high, f"a number from {low:g} to {high:g}", default
        )
        return float(value)

    def numbers(self, key: str, count: int | None = None) -> tuple[float, ...]:
        """A list of finite numbers."""
        value: list[float] = self._value(
            key,
            lambda v: (
                isinstance(v, list)
                and (count is None or len(v) == count)
                and len(v) < 1 << 16
                and all(map(is_number, v))
            ),
            "a list of numbers" if count is None else f"a list of {count} numbers",
            None,
        )
        return tuple(float(number) for number in value)

    def file(self, key: str) -> str:
        """The name of a file in the same folder: no path, so that nothing elsewhere is opened."""
        return str(self._value(key, lambda v: isinstance(v, str) and is_file_name(v), "the name of a file", None))

    def error(self, message: str) -> ExportError:
        """An error about this object."""
        return ExportError(f"{self.where}: {message}" if self.where else message, self.path)

    def _value(self, key: str, right: Callable[[Any], bool], kind: str, default: T | None) -> Any:
        value = self.content.get(key)
        if value is None and default is not None:
            return default
        if not right(value):
            raise ExportError(f"{self._name(key)}={value!r} is not {kind}", self.path)
        return value

    def _name(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_file_name(name: str) -> bool:
    """Whether a text names a file of a folder itself, without any way out of it."""
    return 0 < len(name) < 256 and name not in (".", "..") and not set(name) & set("/\\\0:") and name.isprintable()
