"""Takes pickles apart without running them.

A pickle is a program, and ``pickle.load`` runs it. :class:`PickleReader` follows its instructions, in the dialects of
Python 2 and 3 (protocols 0 to 5), but imports, calls and builds nothing: a name, a call and a state are what the reader
of one kind of file makes of them. Time and memory stay proportional to the file: lengths are checked against it before
anything is made, long strings are left in it as a :class:`Span`, and what a few bytes could blow up is counted (a call
that is repeated, a key of tuples in tuples, which takes for ever to be looked up).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pickletools import opcodes
from typing import Any, NoReturn

from lightning_pfc.storage.pickle_steps import MARK, STEPS
from lightning_pfc.storage.positioned import PositionedFile

_CODES = {each.code: each.name for each in opcodes}
_LONGEST_LINE = 1 << 20
_LONGEST_KEY = 1 << 12
_AHEAD = 1 << 14  # bytes that are read of a file at once
_MOST_DIGITS = 18  # of a number in a text protocol
_LARGEST_KEY = 1 << 64  # beyond it numbers can be chosen that a dict cannot tell apart quickly
_MOST_PARTS = 64  # of a tuple that is a key
_MOST_TUPLES = 10_000  # that are keys: theirs can be chosen so, too


def shown(value: Any) -> str:
    """For a message; only text is written out, since tuples in tuples could be without end."""
    return repr(value[:20]) if isinstance(value, str) else f"a {type(value).__name__}"


def _printable(text: str) -> str:
    """Names of a file may hold line ends, and what a terminal obeys."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class PickleError(ValueError):
    """A pickle is damaged, or holds what it must not.

    Attributes:
        refused: whether it asks for what is not done, rather than being damaged.
        offset: byte of the instruction.
    """

    def __init__(self, reason: str, offset: int, *, refused: bool) -> None:
        super().__init__(_printable(reason))
        self.offset = offset
        self.refused = refused


@dataclass(frozen=True)
class Span:
    """Bytes ``start`` to ``stop`` of the file."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Name:
    """A global of the file; stands for what the reader does with it."""

    role: str


class PickleReader:
    """The instructions of a pickle. A subclass says what names, calls, states and persistent ids are.

    Args:
        data: the whole file.
    """

    longest_number = 8  # bytes

    def __init__(self, data: bytes | PositionedFile) -> None:
        self.data = data if isinstance(data, PositionedFile) else None
        self.held = b"" if isinstance(data, PositionedFile) else data  # some bytes, and where they begin
        self.held_at = 0
        self.size = len(data)
        self.left = 4 * self.size + (1 << 20)  # bytes and values that calls may still make
        self.tuple_keys = 0
        self.at = 0
        self.start = 0  # of the current instruction
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the pickle makes: ``None``, ``bool``, ``int``, ``float``, ``str``, lists, tuples, dicts, sets, spans.

        Raises:
            PickleError: saying what is wrong, and at which byte.
        """
        while True:
            self.start = self.at
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                return self.pop()
            step = STEPS.get(code)
            if step is None and chr(code) not in _CODES:
                self.fail(f"0x{code:02x} is no instruction of a pickle")
            if step is None:
                self.refuse(f"instruction {_CODES[chr(code)]} is not one that plain data needs")
            step(self)

    # --- what a kind of file adds ------------------------------------------------------------------------------------

    def name(self, module: str, attribute: str) -> Any:
        """What stands for a global."""
        self.refuse(f"it names {module[:64]}.{attribute[:64]}")

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """What stands for the result of a call."""
        self.refuse("a call of something that is not on the list")

    def set_state(self, target: Any, state: Any) -> None:
        """Gives a value its state, in place: others may know it already."""
        self.refuse("a state for something that has none")

    def persistent(self, key: Any) -> Any:
        """What stands for a value outside the pickle."""
        self.refuse("it refers to something outside")

    # --- for subclasses ----------------------------------------------------------------------------------------------

    def fail(self, reason: str) -> NoReturn:
        """Stops: the pickle is damaged."""
        raise PickleError(reason, self.start, refused=False)

    def refuse(self, reason: str) -> NoReturn:
        """Stops: the pickle asks for what is not done."""
        raise PickleError(reason, self.start, refused=True)

    def charge(self, count: int) -> None:
        """Before bytes or values are made: a call of few bytes, repeated, could make any number of them."""
        self.left -= count
        if self.left < 0:
            self.refuse("it makes far more than it holds")

    def bytes_of(self, value: Any) -> bytes:
        """The bytes that a value stands for."""
        if isinstance(value, Span):
            self.charge(len(value))
            return self.at_span(value.start, value.stop)
        if not isinstance(value, bytes):
            self.fail(f"bytes are expected, found {type(value).__name__}")
        return value

    def encoded(self, arguments: tuple[Any, ...]) -> bytes:
        """``_codecs.encode``: protocols below 3 write bytes as text in latin-1."""
        if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] not in ("latin1", "latin-1"):
            self.fail("bytes are written in an unknown way")
        self.charge(len(arguments[0]))
        try:
            return arguments[0].encode("latin-1")
        except UnicodeEncodeError:
            self.fail("a byte string holds a character above 255")

    def key(self, value: Any) -> Any:
        """A key of a dict, or member of a set: a plain value, or a short tuple of plain values."""
        if isinstance(value, Span):
            if len(value) > _LONGEST_KEY:
                self.refuse(f"a key of {len(value)} bytes")
            return self.bytes_of(value)
        if isinstance(value, tuple):
            self.tuple_keys += 1
            if len(value) > _MOST_PARTS or self.tuple_keys > _MOST_TUPLES or any(isinstance(v, tuple) for v in value):
                self.refuse("a tuple as a key, which could take for ever to be looked up")
            return tuple(self.key(part) for part in value)
        if isinstance(value, int) and abs(value) > _LARGEST_KEY:
            self.refuse("a number of more than 64 bits as a key")
        if not isinstance(value, str | int | float | bytes | None) and not self.is_plain_key(value):
            self.refuse(f"a {type(value).__name__} as a key")
        return value

    def is_plain_key(self, value: Any) -> bool:
        """Whether a value of the subclass's own is looked up by its identity."""
        return False

    def fill(self, target: Any, pairs: Iterable[Any]) -> Any:
        """``target``, a dict, with more in it."""
        for pair in pairs:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                self.fail("a dict of what is no pair")
            target[self.key(pair[0])] = pair[1]
        return target

    # --- reading -----------------------------------------------------------------------------------------------------

    def skip(self, count: int) -> Span:
        """Leaves some bytes in the file."""
        if count < 0 or count > self.size - self.at:
            self.fail(f"{count} bytes are announced, {self.size - self.at} are left")
        span = Span(self.at, self.at + count)
        self.at += count
        return span

    def take(self, count: int) -> bytes:
        """The next bytes."""
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

    def number(self, layout: str) -> Any:
        """The next number, as ``struct`` writes it."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> bytes:
        """The bytes up to the end of a line."""
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
        """Bytes as text."""
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            self.fail("a string is not UTF-8")

    def digits(self, raw: bytes) -> int:
        """The number that some digits are."""
        raw = raw.rstrip(b"L")
        if not 0 < len(raw) <= _MOST_DIGITS or not raw.lstrip(b"-").isdigit() or raw.count(b"-") > raw.startswith(b"-"):
            self.fail(f"{raw[:32]!r} is not a number")
        return int(raw)

    # --- the stack ---------------------------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Takes the last value."""
        if not self.stack or self.stack[-1] is MARK:
            self.fail("the stack is empty")
        return self.stack.pop()

    def pop_many(self, count: int) -> tuple[Any, ...]:
        """Takes the last values, in order."""
        return tuple(self.pop() for _ in range(count))[::-1]

    def pop_mark(self) -> list[Any]:
        """Takes all values down to the last mark."""
        place = len(self.stack) - 1
        while place >= 0 and self.stack[place] is not MARK:
            place -= 1
        if place < 0:
            self.fail("there is no mark on the stack")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def top(self, kind: type) -> Any:
        """The last value, which must be of a kind, left where it is."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            self.fail(f"something is put into what is not a {kind.__name__}")
        return self.stack[-1]

    def remember(self, key: int) -> None:
        """Writes the last value into the memo."""
        if not self.stack or self.stack[-1] is MARK:
            self.fail("there is nothing to remember")
        self.memo[key] = self.stack[-1]

    def recall(self, key: int) -> None:
        """Puts a value of the memo on the stack."""
        if key not in self.memo:
            self.fail(f"memo {key} was never set")
        self.push(self.memo[key])

    # --- instructions ------------------------------------------------------------------------------------------------

    def named(self, module: Any, attribute: Any) -> None:
        """Puts what stands for a global on the stack."""
        if not isinstance(module, str) or not isinstance(attribute, str):
            self.fail("a name that is no text")
        self.push(self.name(module, attribute))

    def reduce(self) -> None:
        """A call."""
        function, arguments = self.pop_many(2)
        if not isinstance(arguments, tuple):
            self.fail("a call of something that is not on the list")
        self.push(self.call(function, arguments))

    def refuse_call(self, instruction: str, function: Any) -> NoReturn:
        """Stops: a call in a way in which plain data are never made."""
        what = function.role[:80] if isinstance(function, Name) else "something that is no name"
        self.refuse(f"a call of {what} by {instruction}")

    def build(self) -> None:
        """A state for the value below it."""
        target, state = self.pop_many(2)
        self.set_state(target, state)
        self.push(target)

    def extend(self, items: list[Any]) -> None:
        """More values for a list."""
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        """More keys and values for a dict."""
        if len(items) % 2:
            self.fail("a key without a value")
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self.key(key)] = value

    def add_items(self, items: list[Any]) -> None:
        """More members for a set."""
        target = self.top(set)
        for item in items:
            target.add(self.key(item))
