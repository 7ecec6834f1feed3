"""What each instruction of a pickle does, by its first byte."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_pfc.storage.pickles import PickleReader

MARK = object()
Step = Callable[["PickleReader"], object]


def _constant(value: Any) -> Step:
    return lambda r: r.push(value)


def _span(layout: str) -> Step:
    return lambda r: r.push(r.skip(r.number(layout)))


def _unicode(layout: str) -> Step:
    return lambda r: r.push(r.text(r.take(r.number(layout))))


def _quoted(r: PickleReader) -> None:
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


def _escaped(r: PickleReader) -> None:
    try:
        r.push(r.line().decode("raw-unicode-escape"))
    except UnicodeDecodeError:
        r.fail("a string is damaged")


def _integer_line(r: PickleReader) -> None:
    raw = r.line()
    r.push({b"00": False, b"01": True}[raw] if raw in (b"00", b"01") else r.digits(raw))


def _float_line(r: PickleReader) -> None:
    raw = r.line()
    try:
        r.push(float(raw))
    except ValueError:
        r.fail(f"{raw[:32]!r} is not a number")


def _long(r: PickleReader) -> None:
    count = r.number("<B")
    if count > r.longest_number:
        r.fail(f"a number of {count} bytes")
    r.push(int.from_bytes(r.take(count), "little", signed=True))


def _dict(r: PickleReader) -> None:
    items = r.pop_mark()
    r.push({})
    r.set_items(items)


def _pop(r: PickleReader) -> None:
    if not r.stack:
        r.fail("the stack is empty")
    r.stack.pop()


def _proto(r: PickleReader) -> None:
    version = r.number("<B")
    if version > 5:
        r.fail(f"protocol {version} is newer than 5")


def _global(r: PickleReader) -> None:
    module, attribute = r.line(), r.line()
    r.named(r.text(module), r.text(attribute))


def _instance(r: PickleReader) -> None:
    _global(r)
    r.refuse_call("INST", r.pop())


def _object(r: PickleReader) -> None:
    made = r.pop_mark()
    r.refuse_call("OBJ", made[0] if made else None)


def _dup(r: PickleReader) -> None:
    value = r.pop()
    r.stack += [value, value]


STEPS: dict[int, Step] = {
    0x80: _proto,
    0x95: lambda r: r.number("<Q"),  # FRAME: how much to read ahead, no concern of ours
    ord("("): lambda r: r.push(MARK),
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
    ord("G"): lambda r: r.push(r.number(">d")),
    ord("F"): _float_line,
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
    ord("a"): lambda r: r.extend([r.pop()]),
    ord("e"): lambda r: r.extend(r.pop_mark()),
    ord("}"): lambda r: r.push({}),
    ord("d"): _dict,
    ord("s"): lambda r: r.set_items(list(r.pop_many(2))),
    ord("u"): lambda r: r.set_items(r.pop_mark()),
    0x8F: lambda r: r.push(set()),
    0x90: lambda r: r.add_items(r.pop_mark()),
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
    0x93: lambda r: r.named(*r.pop_many(2)),
    ord("R"): lambda r: r.reduce(),
    0x81: lambda r: r.reduce(),  # NEWOBJ
    0x92: lambda r: r.refuse_call("NEWOBJ_EX", r.pop_many(3)[0]),
    ord("i"): _instance,
    ord("o"): _object,
    ord("b"): lambda r: r.build(),
    ord("Q"): lambda r: r.push(r.persistent(r.pop())),
}
