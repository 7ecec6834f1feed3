"""Reads plain data out of a pickle without running it.

A pickle is a program, and ``pickle.load`` runs it. This is a reader of its own for the few instructions that lists,
tuples, numbers, strings, bytes and NumPy arrays of bytes need, in the dialects of Python 2 and 3 (protocols 0 to 5).
Nothing is imported, called or built but the classes of this file; a name outside a short list stops it. Memory stays
proportional to the file: lengths are checked against it before anything is made, and large strings are not copied but
noted as spans of the file.
"""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from lightning_pfc.data.errors import FormatError
from lightning_pfc.storage.positioned import PositionedFile


@dataclass(frozen=True)
class Span:
    """Bytes ``start`` to ``stop`` of the file."""

    start: int
    stop: int


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
class _Name:
    """A global that may stand in the file; it stands for what this reader does with it."""

    role: str


@dataclass(frozen=True)
class _DType:
    kind: str


_MARK = object()
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
_LONGEST_LINE = 1 << 20
_AHEAD = 1 << 14  # bytes that are read of a file at once
_MOST_DIGITS = 18  # of a number in a text protocol


def read_pickled(data: Any, path: str | None = None) -> Any:
    """Read a pickle of plain data.

    Args:
        data: The whole file, ``bytes`` or a :class:`~lightning_pfc.storage.positioned.PositionedFile`.
        path: Where it came from, for errors.

    Returns:
        The object: lists, tuples, ``int``, ``bool``, ``None``, ``str``, ``bytes``, :class:`Span` (bytes that were left
        in the file) and :class:`ByteArray`.

    Raises:
        FormatError: When the file ends early, is damaged, or holds anything but plain data; names the byte.
    """
    return _Reader(data, path).run()


class _Reader:
    def __init__(self, data: Any, path: str | None) -> None:
        self.data = data if isinstance(data, PositionedFile) else None
        self.held = b"" if isinstance(data, PositionedFile) else data  # some bytes, and where they begin
        self.held_at = 0
        self.path = path
        self.size = len(data)
        self.at = 0
        self.start = 0  # of the current instruction
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            self.start = self.at
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                return self.pop()
            step: Callable[[_Reader], object] | None = _STEPS.get(code)
            if step is None:
                self.fail(f"instruction 0x{code:02x} is not one that plain data needs")
            step(self)

    def fail(self, reason: str) -> NoReturn:
        raise FormatError(f"not a pickle of plain data: {reason}", path=self.path, offset=self.start)

    # --- reading -----------------------------------------------------------------------------------------------------

    def skip(self, count: int) -> Span:
        if count < 0 or count > self.size - self.at:
            self.fail(f"{count} bytes are announced, {self.size - self.at} are left")
        span = Span(self.at, self.at + count)
        self.at += count
        return span

    def take(self, count: int) -> bytes:
        span = self.skip(count)
        return self.at_span(span.start, span.stop)

    def at_span(self, start: int, stop: int) -> bytes:
        """Some bytes; of a file a little more than is asked for is read at once."""
        begin, end = start - self.held_at, stop - self.held_at
        if begin < 0 or end > len(self.held):
            if self.data is None or stop - start > _AHEAD:
                return b"" if self.data is None else self.data.read(start, stop)
            self.held = self.data.read(start, min(start + _AHEAD, self.size))
            self.held_at, begin, end = start, 0, stop - start
        return bytes(self.held[begin:end])

    def number(self, layout: str) -> int:
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def line(self) -> bytes:
        length = -1
        for ahead in (1 << 6, 1 << 10, 1 << 14, _LONGEST_LINE):
            length = self.at_span(self.at, min(self.size, self.at + ahead)).find(b"\n")
            if length >= 0:
                break
        if length < 0:
            self.fail("a line of text does not end")
        text = self.take(length)
        self.at += 1
        return text

    def text(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            self.fail("a string is not UTF-8")

    def digits(self, raw: bytes) -> int:
        raw = raw.rstrip(b"L")
        if not 0 < len(raw) <= _MOST_DIGITS or not raw.lstrip(b"-").isdigit() or raw.count(b"-") > raw.startswith(b"-"):
            self.fail(f"{raw[:32]!r} is not a number")
        return int(raw)

    def bytes_of(self, value: Any) -> bytes:
        if isinstance(value, Span):
            return self.at_span(value.start, value.stop)
        if not isinstance(value, bytes):
            self.fail(f"bytes are expected, found {type(value).__name__}")
        return value

    # --- the stack ---------------------------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            self.fail("the stack is empty")
        return self.stack.pop()

    def pop_many(self, count: int) -> tuple[Any, ...]:
        return tuple(self.pop() for _ in range(count))[::-1]

    def pop_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while place >= 0 and self.stack[place] is not _MARK:
            place -= 1
        if place < 0:
            self.fail("there is no mark on the stack")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def top_list(self) -> list[Any]:
        if not self.stack or not isinstance(self.stack[-1], list):
            self.fail("something is appended to what is not a list")
        top: list[Any] = self.stack[-1]
        return top

    def remember(self, key: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            self.fail("there is nothing to remember")
        self.memo[key] = self.stack[-1]

    def recall(self, key: int) -> None:
        if key not in self.memo:
            self.fail(f"memo {key} was never set")
        self.push(self.memo[key])

    # --- objects -----------------------------------------------------------------------------------------------------

    def name(self, module: Any, attribute: Any) -> _Name:
        role = _ROLES.get((module, attribute)) if isinstance(module, str) and isinstance(attribute, str) else None
        if role is None:
            self.fail(f"it names {str(module)[:64]}.{str(attribute)[:64]}, which is no part of a verification file")
        return _Name(role)

    def reduce(self) -> None:
        name, arguments = self.pop_many(2)
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            self.fail("a call of something that is not on the list")
        maker = _MAKERS.get(name.role)
        if maker is None:
            self.fail(f"{name.role} is not called like this")
        self.push(maker(self, arguments))

    def make_encoded(self, arguments: tuple[Any, ...]) -> bytes:
        # Protocols below 3 write bytes as text in latin-1.
        if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] not in ("latin1", "latin-1"):
            self.fail("bytes are written in an unknown way")
        try:
            return bytes(arguments[0].encode("latin-1"))
        except UnicodeEncodeError:
            self.fail("a byte string holds a character above 255")

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
            self.fail(f"an array of dtype {str(kind)[:32]!r}; only uint8 and bool belong here")
        return _DType(_KINDS[kind])

    def make_blank_array(self, arguments: tuple[Any, ...]) -> ByteArray:
        if not arguments or not isinstance(arguments[0], _Name) or arguments[0].role != "ndarray":
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
        count, length = 1, data.stop - data.start if isinstance(data, Span) else len(data)
        for n in shape:
            count *= n
        if count != length:
            self.fail(f"an array of shape {shape} with {length} bytes")
        return ByteArray(shape, data, dtype.kind)

    def build(self) -> None:
        target, state = self.pop_many(2)
        if isinstance(target, _DType):
            self.push(target)  # byte order and alignment mean nothing for single bytes
            return
        if not isinstance(target, ByteArray) or not isinstance(state, tuple) or len(state) != 5:
            self.fail("a state for something that has none")
        _, shape, dtype, _, data = state
        array = self.array(data, dtype, shape)
        # In place: the memo may know the array since before it had its state.
        target.shape, target.data, target.kind = array.shape, array.data, array.kind
        self.push(target)


def _constant(value: Any) -> Callable[[_Reader], None]:
    return lambda r: r.push(value)


def _span(layout: str) -> Callable[[_Reader], None]:
    return lambda r: r.push(r.skip(r.number(layout)))


def _unicode(layout: str) -> Callable[[_Reader], None]:
    return lambda r: r.push(r.text(r.take(r.number(layout))))


def _quoted(r: _Reader) -> None:
    raw = r.line()
    if len(raw) < 2 or raw[:1] not in (b"'", b'"') or raw[-1:] != raw[:1]:
        r.fail("a quoted string is damaged")
    inner = raw[1:-1]
    try:
        if not raw.isascii() or re.search(rb"(?<!\\)(?:\\\\)*" + raw[:1], inner):
            raise ValueError
        value, _ = codecs.escape_decode(inner)  # what pickle itself uses
    except ValueError:
        r.fail("a quoted string is damaged")
    r.push(value)


def _escaped(r: _Reader) -> None:
    try:
        r.push(r.line().decode("raw-unicode-escape"))
    except UnicodeDecodeError:
        r.fail("a string is damaged")


def _integer_line(r: _Reader) -> None:
    raw = r.line()
    r.push({b"00": False, b"01": True}[raw] if raw in (b"00", b"01") else r.digits(raw))


def _long(r: _Reader) -> None:
    count = r.number("<B")
    if count > 8:
        r.fail(f"a number of {count} bytes")
    r.push(int.from_bytes(r.take(count), "little", signed=True))


def _appends(r: _Reader) -> None:
    items = r.pop_mark()
    r.top_list().extend(items)


def _append(r: _Reader) -> None:
    item = r.pop()
    r.top_list().append(item)


def _pop(r: _Reader) -> None:
    if not r.stack:
        r.fail("the stack is empty")
    r.stack.pop()


def _proto(r: _Reader) -> None:
    version = r.number("<B")
    if version > 5:
        r.fail(f"protocol {version} is newer than 5")


def _global(r: _Reader) -> None:
    module, attribute = r.line(), r.line()
    r.push(r.name(r.text(module), r.text(attribute)))


def _stack_global(r: _Reader) -> None:
    module, attribute = r.pop_many(2)
    r.push(r.name(module, attribute))


def _dup(r: _Reader) -> None:
    value = r.pop()
    r.stack += [value, value]


_STEPS: dict[int, Callable[[_Reader], object]] = {
    0x80: _proto,
    0x95: lambda r: r.number("<Q"),  # FRAME: how much to read ahead, no concern of ours
    ord("("): lambda r: r.push(_MARK),
    ord("0"): _pop,
    ord("1"): lambda r: r.pop_mark(),
    ord("2"): _dup,
    ord("N"): _constant(None),
    0x88: _constant(True),
    0x89: _constant(False),
    ord("I"): _integer_line,
    ord("L"): lambda r: r.push(r.digits(r.line())),
    ord("J"): lambda r: r.push(r.number("<i")),
    ord("K"): lambda r: r.push(r.number("<B")),
    ord("M"): lambda r: r.push(r.number("<H")),
    0x8A: _long,
    ord("S"): _quoted,
    ord("T"): _span("<i"),
    ord("U"): _span("<B"),
    ord("B"): _span("<I"),
    ord("C"): _span("<B"),
    0x8E: _span("<Q"),
    0x96: _span("<Q"),
    ord("V"): _escaped,
    ord("X"): _unicode("<I"),
    0x8C: _unicode("<B"),
    0x8D: _unicode("<Q"),
    ord("]"): lambda r: r.push([]),
    ord("l"): lambda r: r.push(r.pop_mark()),
    ord("a"): _append,
    ord("e"): _appends,
    ord(")"): lambda r: r.push(()),
    ord("t"): lambda r: r.push(tuple(r.pop_mark())),
    0x85: lambda r: r.push(r.pop_many(1)),
    0x86: lambda r: r.push(r.pop_many(2)),
    0x87: lambda r: r.push(r.pop_many(3)),
    ord("p"): lambda r: r.remember(r.digits(r.line())),
    ord("q"): lambda r: r.remember(r.number("<B")),
    ord("r"): lambda r: r.remember(r.number("<I")),
    0x94: lambda r: r.remember(len(r.memo)),
    ord("g"): lambda r: r.recall(r.digits(r.line())),
    ord("h"): lambda r: r.recall(r.number("<B")),
    ord("j"): lambda r: r.recall(r.number("<I")),
    ord("c"): _global,
    0x93: _stack_global,
    ord("R"): lambda r: r.reduce(),
    ord("b"): lambda r: r.build(),
}
_MAKERS: dict[str, Callable[[_Reader, tuple[Any, ...]], Any]] = {
    "encode": _Reader.make_encoded,
    "bytes": _Reader.make_bytes,
    "dtype": _Reader.make_dtype,
    "reconstruct": _Reader.make_blank_array,
    "scalar": _Reader.make_scalar,
    "frombuffer": _Reader.make_array,
}
