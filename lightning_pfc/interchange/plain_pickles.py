"""Pickles of tensors that are not torch's: names and arrays taken out of them, without unpickling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_pfc.storage.pickles import Name, PickleError, PickleReader, Span, shown
from lightning_pfc.storage.positioned import PositionedFile

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


class _Left:
    """An object of the peer's own code, of which nothing is made."""


@dataclass(eq=False)
class _Array:
    tensor: Tensor | None = None


def read_arrays(path: Path, own: Sequence[str] = ()) -> Any:
    """What is in a pickle of dicts, lists, plain values and NumPy arrays; arrays as tensors.

    Args:
        path: the file.
        own: packages whose objects may stand in it; None takes their place.

    Raises:
        OSError: if it is no ordinary file, or shrinks while it is read.
        ValueError: naming what else it holds, or that it is damaged.
    """
    reader = _ArrayReader(PositionedFile(path), own)
    try:
        if reader.at_span(0, min(1, reader.size)) != b"\x80":  # of every protocol since 2
            reader.fail("it does not begin as one")
        return reader.plain(reader.run(), {}, 0)
    except OSError:
        raise
    except Exception as error:  # also of NumPy, for shapes that do not fit
        if isinstance(error, PickleError) and error.refused:
            raise ValueError(
                f"{path}: it holds more than arrays and plain values, and loading it could run code ({error})."
            ) from error
        said = str(error) if isinstance(error, PickleError) else type(error).__name__
        raise ValueError(f"{path}: it is no pickle of arrays, or damaged ({said}).") from error


class _ArrayReader(PickleReader):
    def __init__(self, data: PositionedFile, own: Sequence[str]) -> None:
        super().__init__(data)
        self.own = tuple(f"{package}." for package in own)

    def name(self, module: str, attribute: str) -> Name:
        name = f"{module}.{attribute}"
        if name in _KNOWN:
            return Name(_KNOWN[name])
        if self.own and name.startswith(self.own):
            return Name("left")
        return self.refuse(name[:80])

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if not isinstance(function, Name):
            self.refuse("a call of something that is no name")
        made: dict[str, Callable[[], Any]] = {
            "array": _Array,
            "left": _Left,
            "dict": lambda: self.fill({}, self.counted(*arguments)),
            "tuple": lambda: tuple(self.counted(*arguments)),
            "encode": lambda: self.encoded(arguments),
            "dtype": lambda: self.dtype(arguments[0]),
            "buffer": lambda: _Array(self.tensor(*arguments)),
            "scalar": lambda: np.frombuffer(self.bytes_of(arguments[1]), self.known(arguments[0]))[0].item(),
        }
        if function.role not in made:
            self.refuse(f"a call of {function.role}")
        return made[function.role]()

    def set_state(self, target: Any, state: Any) -> None:
        if isinstance(target, _Array):
            _, shape, dtype, by_column, data = state
            target.tensor = self.tensor(data, dtype, shape, "F" if by_column else "C")
        elif isinstance(target, np.dtype):
            if state[1] not in ("<", "|"):
                self.refuse(f"numbers of byte order {shown(state[1])}")
        elif not isinstance(target, _Left):
            super().set_state(target, state)

    # Of the peer's objects nothing is kept, neither what they are made with nor what is put into them.

    def set_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], _Left):
            super().set_items(items)

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], _Left):
            super().extend(items)

    def counted(self, content: Any = ()) -> Any:
        if not isinstance(content, list | tuple):
            self.fail("values that are no list")
        self.charge(len(content))
        return content

    def tensor(self, data: Any, dtype: Any, shape: Any, order: Any) -> Tensor:
        kind = self.known(dtype)
        if not isinstance(shape, tuple) or len(shape) > 32 or not all(isinstance(n, int) and n >= 0 for n in shape):
            self.fail("an array of an impossible shape")
        if not isinstance(data, Span | bytes) or math.prod(shape) * kind.itemsize != len(data):
            self.fail("an array whose bytes do not make its shape")
        values = np.frombuffer(self.bytes_of(data), kind).reshape(shape, order=order)
        return torch.from_numpy(np.array(values, order="C"))

    def dtype(self, kind: Any) -> np.dtype[Any]:
        if not isinstance(kind, str) or kind not in _DTYPES:
            self.refuse(f"numbers of type {shown(kind)}")
        return _DTYPES[kind]

    def known(self, dtype: Any) -> np.dtype[Any]:
        if not isinstance(dtype, np.dtype):
            self.refuse("an array of no type")
        return dtype

    def plain(self, value: Any, made: dict[int, Any], depth: int) -> Any:
        """Tensors in the place of arrays; None in that of what was left out. What stands in two places is made once."""
        if depth > 100:
            self.refuse("lists within lists without end")
        if isinstance(value, _Array):
            return value.tensor
        if isinstance(value, Span):
            return self.bytes_of(value)
        if isinstance(value, dict | list | tuple):
            if id(value) not in made:
                if isinstance(value, dict):
                    found: Any = {key: self.plain(each, made, depth + 1) for key, each in value.items()}
                else:
                    found = type(value)(self.plain(each, made, depth + 1) for each in value)
                made[id(value)] = found
            return made[id(value)]
        return None if isinstance(value, _Left | Name) else value
