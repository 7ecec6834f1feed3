"""The lines of a text file, each with its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning_pfc.data.errors import FormatError
from lightning_pfc.storage.regular import open_file

MAX_LINE = 1 << 16  # bytes
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # what such a file begins with


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """``(byte offset, text)`` of each line, without its end.

    Raises:
        FormatError: a line is too long, is not UTF-8, or holds a zero byte.
    """
    offset = 0
    with open_file(path) as file:
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise FormatError(
                    f"a line is longer than {MAX_LINE} bytes; this is no list of images", path=path, offset=offset
                )
            if offset == 0 and line.startswith(_UTF_16):
                raise FormatError("the file is UTF-16, as PowerShell writes it; save it as UTF-8", path=path, offset=0)
            if b"\0" in line:
                raise FormatError("a line holds a zero byte; this is no list of images", path=path, offset=offset)
            try:
                text = line.decode("utf-8-sig" if offset == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise FormatError(f"not UTF-8: {error.reason}", path=path, offset=offset + error.start) from error
            yield offset, text.rstrip("\r\n")
            offset += len(line)
