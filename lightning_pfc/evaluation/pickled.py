"""Reads plain data out of a pickle without running it: lists, tuples, numbers, strings, and NumPy arrays of bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_pfc.data.errors import FormatError
from lightning_pfc.storage.pickles import Name, PickleError, PickleReader, Span, shown
from lightning_pfc.storage.positioned import PositionedFile


@dataclass(eq=False)
class ByteArray:
    """A NumPy array of bytes or booleans, its bytes in C order; empty until its state arrives.

    Attributes:
        shape: Its shape.
        data: Its bytes; as many as the shape says.
        kind: ``"u1"`` or ``"b1"``.
    """

    shape: tuple[int, ...] = (0,)
    data: Span | bytes = b""
    kind: str = "u1"


@dataclass(frozen=True)
class _DType:
    kind: str


_ROLES = {
    ("_codecs", "encode"): "encode",
    ("__builtin__", "bytes"): "bytes",
    ("builtins", "bytes"): "bytes",
    ("__builtin__", "bytearray"): "bytes",
    ("builtins", "bytearray"): "bytes",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
}
for _module in ("numpy.core", "numpy._core"):
    _ROLES[f"{_module}.multiarray", "_reconstruct"] = "reconstruct"
    _ROLES[f"{_module}.multiarray", "scalar"] = "scalar"
    _ROLES[f"{_module}.numeric", "_frombuffer"] = "frombuffer"
_KINDS = {"u1": "u1", "|u1": "u1", "uint8": "u1", "B": "u1", "b1": "b1", "|b1": "b1", "bool": "b1", "?": "b1"}


def read_pickled(data: bytes | PositionedFile, path: str | None = None) -> Any:
    """Read a pickle of plain data.

    Args:
        data: The whole file.
        path: Where it came from, for errors.

    Returns:
        The object: lists, tuples, ``int``, ``float``, ``bool``, ``None``, ``str``, ``bytes``,
        :class:`~lightning_pfc.storage.pickles.Span` (bytes that were left in the file) and :class:`ByteArray`.

    Raises:
        FormatError: When the file ends early, is damaged, or holds anything but plain data; names the byte.
    """
    try:
        return _Reader(data).run()
    except PickleError as error:
        raise FormatError(f"not a pickle of plain data: {error}", path=path, offset=error.offset) from error


class _Reader(PickleReader):
    def name(self, module: str, attribute: str) -> Name:
        role = _ROLES.get((module, attribute))
        if role is None:
            self.refuse(f"it names {module[:64]}.{attribute[:64]}, which is no part of a verification file")
        return Name(role)

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if not isinstance(function, Name):
            self.refuse("a call of something that is not on the list")
        maker = _MAKERS.get(function.role)
        if maker is None:
            self.refuse(f"{function.role} is not called like this")
        return maker(self, arguments)

    def make_bytes(self, arguments: tuple[Any, ...]) -> Any:
        if not arguments:
            return b""
        if len(arguments) != 1 or not isinstance(arguments[0], (bytes, Span)):
            self.fail("bytes are written in an unknown way")
        return arguments[0]

    def make_dtype(self, arguments: tuple[Any, ...]) -> _DType:
        kind = arguments[0] if arguments else None
        if isinstance(kind, (bytes, Span)):  # Python 2 has no text
            kind = self.bytes_of(kind)[:16].decode("latin-1")
        if not isinstance(kind, str) or kind not in _KINDS:
            self.fail(f"an array of dtype {shown(kind)}; only uint8 and bool belong here")
        return _DType(_KINDS[kind])

    def make_blank_array(self, arguments: tuple[Any, ...]) -> ByteArray:
        if not arguments or not isinstance(arguments[0], Name) or arguments[0].role != "ndarray":
            self.fail("an array of an unknown class")
        return ByteArray()  # the shape given here is a placeholder

    def make_scalar(self, arguments: tuple[Any, ...]) -> int | bool:
        if len(arguments) != 2 or not isinstance(arguments[0], _DType):
            self.fail("a NumPy scalar without dtype and value")
        raw = self.bytes_of(arguments[1])
        if len(raw) != 1:
            self.fail(f"a NumPy scalar of {len(raw)} bytes; only uint8 and bool belong here")
        return bool(raw[0]) if arguments[0].kind == "b1" else raw[0]

    def make_array(self, arguments: tuple[Any, ...]) -> ByteArray:
        if len(arguments) != 4:
            self.fail("an array without buffer, dtype, shape and order")
        return self.array(arguments[0], arguments[1], arguments[2])

    def array(self, data: Any, dtype: Any, shape: Any) -> ByteArray:
        if not isinstance(data, (Span, bytes)) or not isinstance(dtype, _DType):
            self.fail("an array without bytes or dtype")
        if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape) or len(shape) > 4:
            self.fail("an array of an impossible shape")
        count, length = 1, len(data)
        for n in shape:
            count *= n
        if count != length:
            self.fail(f"an array of shape {shape} with {length} bytes")
        return ByteArray(shape, data, dtype.kind)

    def set_state(self, target: Any, state: Any) -> None:
        if isinstance(target, _DType):
            return  # byte order and alignment mean nothing for single bytes
        if not isinstance(target, ByteArray) or not isinstance(state, tuple) or len(state) != 5:
            self.fail("a state for something that has none")
        _, shape, dtype, _, data = state
        array = self.array(data, dtype, shape)
        # In place: the memo may know the array since before it had its state.
        target.shape, target.data, target.kind = array.shape, array.data, array.kind


_MAKERS: dict[str, Callable[[_Reader, tuple[Any, ...]], Any]] = {
    "encode": _Reader.encoded,
    "bytes": _Reader.make_bytes,
    "dtype": _Reader.make_dtype,
    "reconstruct": _Reader.make_blank_array,
    "scalar": _Reader.make_scalar,
    "frombuffer": _Reader.make_array,
}
