"""What README.md and the pages of docs/ tell a reader to type: blocks of code, commands, keys and flags."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "recipes/README.md"]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_SPAN = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: file name of its page.
        number: which of its language in the page, from 1.
        language: what stands behind the fence.
        text: what stands inside.
    """

    page: str
    number: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.language}{self.number}"


@dataclass(frozen=True)
class Command:
    """A command that a page tells a reader to type.

    Attributes:
        page: where it stands.
        words: as a shell splits them, without what a page leaves out with ``...``.
    """

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks() -> Iterator[Block]:
    """All fenced blocks."""
    for page in PAGES:
        seen: dict[str, int] = {}
        for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
            seen[match[1]] = seen.get(match[1], 0) + 1
            yield Block(_name(page), seen[match[1]], match[1], match[2])


def spans() -> Iterator[tuple[str, str]]:
    """All code within lines, with its page."""
    for page in PAGES:
        text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
        yield from ((_name(page), match[1]) for match in _SPAN.finditer(text))


def shell_commands() -> Iterator[Command]:
    """Every command of a console block."""
    for block in blocks():
        yield from commands_of(block)


def commands_of(block: Block) -> Iterator[Command]:
    """Every command of one block; none, where it is no console block."""
    for line in block.text.replace("\\\n", " ").splitlines() if block.language == "console" else ():
        if line.startswith("$ "):
            yield from _split(block.page, line[2:])


def own_commands() -> Iterator[Command]:
    """Those of this package, also behind a launcher and within lines; the first word is the command's name."""
    within = (command for page, text in spans() if text.startswith("pfc-") for command in _split(page, text))
    for command in [*shell_commands(), *within]:
        for place, word in enumerate(command.words):
            if found := re.fullmatch(r"(?:\$\(which )?(pfc-[a-z]+)\)?", word):
                yield Command(command.page, (found[1], *command.words[place + 1 :]))
                break


def _split(page: str, line: str) -> Iterator[Command]:
    line = re.sub(r"\$\(which (pfc-\w+)\)", r"\1", line)
    for part in line.split(" && "):
        words = [word for word in shlex.split(part, comments=True) if word != "..."]
        if words:
            yield Command(page, tuple(words))


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()
