"""Pickles of tensors that are not torch's: names and arrays taken out of them, without unpickling.

``pickletools`` of the standard library takes the file apart; the few instructions that dicts, numbers, text and NumPy
arrays need are followed here. Nothing is imported or called: a name stands for what this module makes of it.
"""

from __future__ import annotations

import mmap
import pickletools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_pfc.storage.regular import open_regular

_DTYPES = {kind: np.dtype(f"<{kind}") for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1")}
_KNOWN = {
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "_codecs.encode": "encode",
    "builtins.tuple": "tuple",
    "__builtin__.tuple": "tuple",
    "collections.OrderedDict": "dict",
    **{f"numpy.{core}.multiarray._reconstruct": "array" for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": "scalar" for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": "buffer" for core in ("core", "_core")},
}


@dataclass(frozen=True)
class _Name:
    role: str


class _Left:
    """An object of the peer's own code, of which nothing is made."""


@dataclass(eq=False)
class _Array:
    tensor: Tensor | None = None


_MARK = object()


def read_arrays(path: Path, own: Sequence[str] = ()) -> Any:
    """What is in a pickle of dicts, lists, plain values and NumPy arrays; arrays as tensors.

    Args:
        path: the file.
        own: packages whose objects may stand in it; None takes their place.

    Raises:
        OSError: if it is no ordinary file.
        ValueError: naming what else it holds, or that it is damaged.
    """
    with open(open_regular(path), "rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content[:1] != b"\x80":  # of every protocol since 2
                    raise EOFError
                return _plain(_Machine(own).run(content), {}, 0)
        except _Refused as error:
            raise ValueError(
                f"{path}: it holds more than arrays and plain values, and loading it could run code ({error})."
            ) from error
        except Exception as error:  # of pickletools, struct, numpy and an empty stack: all of a file that is no pickle
            raise ValueError(f"{path}: it is no pickle of arrays, or damaged ({type(error).__name__}).") from error


class _Refused(Exception):
    pass


class _Machine:
    def __init__(self, own: Sequence[str]) -> None:
        self.own = tuple(f"{package}." for package in own)
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: Any) -> Any:
        argument: Any
        for code, argument, _ in pickletools.genops(content):
            name = code.name
            if name == "STOP":
                return self.stack.pop()
            if name in _VALUES:
                self.stack.append(argument)
            elif name in ("PROTO", "FRAME"):
                continue
            elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
                self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                self.stack.append(self.memo[argument])
            elif name == "GLOBAL":
                self.stack.append(self.named(argument.replace(" ", ".", 1)))
            elif name in _STEPS:
                _STEPS[name](self)
            else:
                raise _Refused(f"instruction {name}")
        raise EOFError

    def named(self, name: str) -> _Name:
        if name in _KNOWN:
            return _Name(_KNOWN[name])
        if name.startswith(self.own) and self.own:
            return _Name("left")
        raise _Refused(name[:80])

    def pop_mark(self) -> list[Any]:
        place = max(i for i, value in enumerate(self.stack) if value is _MARK)
        found = self.stack[place + 1 :]
        del self.stack[place:]
        return found

    def push_many(self, count: int) -> None:
        found = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(found)

    def stack_global(self) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self.named(f"{module}.{attribute}"))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            _filled(target, zip(items[::2], items[1::2], strict=True))
        elif not isinstance(target, _Left):
            raise TypeError

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif not isinstance(self.stack[-1], _Left):
            raise TypeError

    def reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, _Name):
            raise _Refused("a call of something that is no name")
        made: dict[str, Callable[[], Any]] = {
            "array": _Array,
            "left": _Left,
            "dict": lambda: _filled({}, *(arguments or [()])),
            "tuple": lambda: tuple(*arguments),
            "encode": lambda: arguments[0].encode("latin-1"),
            "dtype": lambda: _dtype(arguments[0]),
            "buffer": lambda: _Array(_tensor(*arguments)),
            "scalar": lambda: np.frombuffer(arguments[1], _known(arguments[0]))[0].item(),
        }
        self.stack.append(made[name.role]())

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Array):
            _, shape, dtype, by_column, data = state
            target.tensor = _tensor(data, dtype, shape, "F" if by_column else "C")
        elif isinstance(target, np.dtype):
            if state[1] not in ("<", "|"):
                raise _Refused(f"numbers of byte order {_short(state[1])}")
        elif not isinstance(target, _Left):
            raise _Refused(f"a state for a {type(target).__name__}")


def _tensor(data: Any, dtype: Any, shape: Any, order: Any) -> Tensor:
    return torch.from_numpy(np.array(np.frombuffer(data, _known(dtype)).reshape(shape, order=order), order="C"))


def _dtype(kind: Any) -> np.dtype[Any]:
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise _Refused(f"numbers of type {_short(kind)}")
    return _DTYPES[kind]


def _short(value: Any) -> str:
    """For a message; only text is written out, since tuples in tuples could be without end."""
    return repr(value[:20]) if isinstance(value, str) else f"a {type(value).__name__}"


def _known(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, np.dtype):
        raise _Refused("an array of no type")
    return dtype


def _plain(value: Any, made: dict[int, Any], depth: int) -> Any:
    """Tensors in the place of arrays; None in that of what was left out. What stands in two places is made once."""
    if depth > 100:
        raise _Refused("lists within lists without end")
    if isinstance(value, _Array):
        return value.tensor
    if isinstance(value, dict | list | tuple):
        if id(value) not in made:
            if isinstance(value, dict):
                found: Any = {key: _plain(each, made, depth + 1) for key, each in value.items()}
            else:
                found = type(value)(_plain(each, made, depth + 1) for each in value)
            made[id(value)] = found
        return made[id(value)]
    return None if isinstance(value, _Left | _Name) else value


def _filled(target: dict[Any, Any], pairs: Iterable[Any]) -> dict[Any, Any]:
    """``target`` with more in it. A key of tuples in tuples could take for ever to be looked up."""
    for key, value in pairs:
        if not isinstance(key, str | bytes | int | float | None):
            raise _Refused(f"a {type(key).__name__} as a key")
        target[key] = value
    return target


def _constant(value: Any) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(value)


_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG", "BINFLOAT", "FLOAT"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_STEPS: dict[str, Callable[[_Machine], None]] = {
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "MARK": _constant(_MARK),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_LIST": lambda m: m.stack.append([]),
    "EMPTY_DICT": lambda m: m.stack.append({}),
    "TUPLE": lambda m: m.stack.append(tuple(m.pop_mark())),
    "TUPLE1": lambda m: m.push_many(1),
    "TUPLE2": lambda m: m.push_many(2),
    "TUPLE3": lambda m: m.push_many(3),
    "SETITEMS": lambda m: m.set_items(m.pop_mark()),
    "SETITEM": lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    "APPENDS": lambda m: m.extend(m.pop_mark()),
    "APPEND": lambda m: m.extend([m.stack.pop()]),
    "STACK_GLOBAL": lambda m: m.stack_global(),
    "REDUCE": lambda m: m.reduce(),
    "NEWOBJ": lambda m: m.reduce(),
    "BUILD": lambda m: m.build(),
}
