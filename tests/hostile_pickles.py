"""Pickles and archives of an attacker: each runs a command, or takes all memory, where it is loaded as it comes."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

RUN = "posix", "system"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def name(module: str, attribute: str) -> bytes:
    """A global, as protocols below 4 write it."""
    return f"c{module}\n{attribute}\n".encode()


def programs(command: str) -> dict[str, tuple[bytes, str]]:
    """By their kind: instructions that leave one value on the stack, and what is named of them."""
    word = text(command)
    one, run = word + b"\x85", name(*RUN)
    system, empty = r"(posix|os)\.system", name("collections", "OrderedDict") + b")R"
    by_number = text("posix") + text("system")
    quoted = b"S'" + command.encode() + b"'\n"
    found = {
        "REDUCE": (run + one + b"R", system),
        "REDUCE of protocol 0": (b"c__builtin__\neval\n(" + quoted + b"tR", "eval"),
        "STACK_GLOBAL": (by_number + b"\x93" + one + b"R", system),
        "INST": (b"(" + word + b"iposix\nsystem\n", system),
        "OBJ": (b"(" + run + word + b"o", system),
        "NEWOBJ": (name("subprocess", "Popen") + one + b"\x81", r"subprocess\.Popen"),
        "NEWOBJ_EX": (name("subprocess", "Popen") + one + b"}\x92", r"subprocess\.Popen"),
        "EXT1": (b"\x82\x01" + one + b"R", "EXT1"),
        "EXT2": (b"\x83\x01\x00" + one + b"R", "EXT2"),
        "EXT4": (b"\x84\x01\x00\x00\x00" + one + b"R", "EXT4"),
        "PERSID": (b"Pposix.system\n", "PERSID|outside"),
        "BINPERSID": (b"(" + text("storage") + run + text("0") + text("cpu") + b"K\x01tQ", f"outside|storage|{system}"),
        "BINPERSID of a text": (word + b"Q", "outside|storage"),
        "NEXT_BUFFER": (b"\x97", "NEXT_BUFFER"),
        "READONLY_BUFFER": (b"\x96" + struct.pack("<Q", 4) + b"abcd\x98", "READONLY_BUFFER"),
        "BUILD": (empty + b"}" + text("__setstate__") + run + b"sb" + word + b"b", f"{system}|OrderedDict"),
        "BUILD of slots": (empty + b"N}" + text("__class__") + run + b"s\x86b", f"{system}|OrderedDict"),
        "BUILD of a name": (
            name("collections", "OrderedDict") + b"}" + text("x") + run + b"sb",
            f"{system}|state|OrderedDict",
        ),
        "memo taken twice": (empty + b"q\x000" + run + b"q\x000h\x00" + one + b"R", f"{system}|OrderedDict"),
        "memo of protocol 4": (b"\x95" + bytes(8) + by_number + b"\x93\x940h\x00" + one + b"R", system),
        "DUP": (run + b"2" + one + b"R0" + one + b"R", system),
        "POP": (run + one + b"R0N", system),
        "POP_MARK": (b"(" + run + one + b"R1N", system),
        "getattr": (name("builtins", "getattr") + run + text("__call__") + b"\x86R" + one + b"R", "getattr"),
        "a path of attributes": (text("torch.serialization") + text("os.system") + b"\x93" + one + b"R", r"os\.system"),
        "through what is allowed": (
            text("collections") + text("OrderedDict.__init__.__globals__") + b"\x93" + text("x") + b"\x85R",
            "OrderedDict.__init__",
        ),
        "a name with a line in it": (text("posix\n\x1b[31m") + text("system") + b"\x93" + one + b"R", "posix"),
        "an inner call": (
            name("torch._tensor", "_rebuild_from_type_v2") + b"(" + run + run + one + b"NtR",
            f"not on the list|{system}|_rebuild_from_type_v2",
        ),
        "a pickle in a pickle": (
            name("torch.storage", "_load_from_bytes") + b"B" + struct.pack("<I", 4) + b"cos\n" + b"\x85R",
            "_load_from_bytes",
        ),
        "an array of objects": (
            name("numpy.core.multiarray", "_reconstruct") + run + b"K\x00\x85C\x01b\x87R",
            f"_reconstruct|{system}",
        ),
        "numbers that are objects": (
            name("numpy", "dtype") + text("O8") + b"\x89\x88\x87R",
            r"numpy\.dtype|type 'O8'|dtype 'O8'|numpy.dtype",
        ),
    }
    for module, attribute in CALLABLES:
        found[f"{module}.{attribute}"] = (name(module, attribute) + one + b"R", f"{module}.{attribute}")
    return found


# What an attacker calls where the obvious is not to be had: installed, and does as it is told.
CALLABLES = (
    ("builtins", "exec"),
    ("builtins", "__import__"),
    ("builtins", "open"),
    ("importlib", "import_module"),
    ("runpy", "run_path"),
    ("_pickle", "loads"),
    ("operator", "attrgetter"),
    ("numpy", "load"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("hydra.utils", "instantiate"),
    ("lightning_pfc.commands.train", "main"),
)


def torch_pickle(value: bytes) -> bytes:
    """What describes a checkpoint of ``torch.save``, with ``value`` in it."""
    return b"\x80\x02}(" + text("state_dict") + b"}" + text("loops") + value + b"u."


def write_torch(path: Path, pickled: bytes, records: dict[str, bytes] | None = None, packed: bool = False) -> None:
    """An archive as ``torch.save`` writes it, or one that is packed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/byteorder", b"little")
        for key, content in (records or {}).items():
            archive.writestr(f"x/{key}", content)
        archive.writestr("x/version", b"3\n")


def tensor(count: int, sizes: list[int], strides: list[int], offset: int = 0, record: str = "0") -> bytes:
    """A tensor over a storage that claims ``count`` floats."""
    kind = text("storage") + name("torch", "FloatStorage")
    storage = b"(" + kind + text(record) + text("cpu") + number(count) + b"tQ"
    shape, steps = (b"(" + b"".join(map(number, each)) + b"t" for each in (sizes, strides))
    arguments = b"(" + storage + number(offset) + shape + steps + b"\x89" + name("collections", "OrderedDict") + b")Rt"
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def _of_tensor(value: bytes) -> Callable[[Path], None]:
    return lambda path: write_torch(path, torch_pickle(value), {"data/0": bytes(4)})


def _bomb(path: Path) -> None:
    write_torch(path, torch_pickle(b"N"), {"data/0": bytes(1 << 24)}, packed=True)


def _bomb_of_text(path: Path) -> None:
    write_torch(path, torch_pickle(text("x" * (1 << 24))), packed=True)


def _of_links(path: Path) -> None:
    """The oldest form of ``torch.save`` was a tar; its members may be links."""
    with tarfile.open(path, "w") as archive:
        for key, target in {"sys_info": "/etc/passwd", "pickle": "../../secret", "storages": "/dev/zero"}.items():
            link = tarfile.TarInfo(key)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)


def _nested(path: Path) -> None:
    inner = path.with_name("inner.zip")
    write_torch(inner, torch_pickle(name(*RUN) + text("x") + b"\x85R"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/archive.zip", inner.read_bytes())
    inner.unlink()


def _two_descriptions(command: str) -> Callable[[Path], None]:
    """One reader of zip files takes the first of two records of one name, another the last."""

    def write(path: Path) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("x/data.pkl", torch_pickle(b"N"))
            archive.writestr("x/data.pkx", torch_pickle(name(*RUN) + text(command) + b"\x85R"))
            archive.writestr("x/byteorder", b"little")
            archive.writestr("x/version", b"3\n")
        path.write_bytes(buffer.getvalue().replace(b"data.pkx", b"data.pkl"))

    return write


def _in_front(path: Path) -> None:
    write_torch(path, torch_pickle(b"N"))
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())


def _script(path: Path) -> None:
    write_torch(path, torch_pickle(b"N"), {"code/__torch__.py": b"", "constants.pkl": b"\x80\x02)."})


def archives(command: str) -> dict[str, tuple[Callable[[Path], None], str]]:
    """By their kind: who writes an archive of ``torch.save`` that is none, and what is said of it."""
    claims = "claims|damaged|bytes are stored|no storage"
    return {
        "a storage of 2^60 numbers": (_of_tensor(tensor(1 << 60, [4], [1])), claims),
        "a tensor over one number": (_of_tensor(tensor(1, [1 << 40, 1 << 20], [0, 0])), claims),
        "sizes that overflow": (_of_tensor(tensor(1, [1 << 40, 1 << 40], [0, 0])), claims),
        "far behind its storage": (_of_tensor(tensor(1, [1], [1], offset=1 << 60)), claims),
        "before its storage": (_of_tensor(tensor(1, [1], [1], offset=-8)), claims),
        "less than nothing": (_of_tensor(tensor(1, [-4], [1])), claims),
        "strides backwards": (_of_tensor(tensor(1, [4], [-1])), claims),
        "a record elsewhere": (_of_tensor(tensor(1, [1], [1], record="../../../../etc/passwd")), "damaged"),
        "a record that is not there": (_of_tensor(tensor(1, [1], [1], record="7")), "damaged"),
        "a bomb": (_bomb, "packed"),
        "a bomb of text": (_bomb_of_text, "packed"),
        "links in a tar": (_of_links, "not a file of torch.save"),
        "an archive in an archive": (_nested, "damaged"),
        "two of one name": (_two_descriptions(command), "twice"),
        "something in front": (_in_front, "not a file of torch.save"),
        "a script": (_script, "TorchScript"),
    }
