"""Pickles that are followed to no end, at no cost to who made them: what ``torch.save`` never writes."""

from __future__ import annotations

import struct
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_pfc.checkpoint import CheckpointError
from lightning_pfc.checkpoint.publish import newest_of_any_kind
from lightning_pfc.checkpoint.single import load_file, save_file
from lightning_pfc.interchange.files import read_file


def crafted(path: Path, value: bytes) -> None:
    """A checkpoint as ``torch.save`` writes it, with a pickled value of one's own in it."""
    text = b"".join(b"X" + struct.pack("<I", len(word)) + word for word in (b"state_dict", b"loops"))
    state, loops = text[:15], text[15:]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}(" + state + b"}" + loops + value + b"u.")
        archive.writestr("x/byteorder", b"little")
        archive.writestr("x/version", b"3\n")


def called(name: str, arguments: bytes) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode() + arguments + b"R"


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def colliding(value: bytes, count: int = 10_001) -> bytes:
    """A dict of many keys."""
    return b"}(" + b"".join(value.replace(b"NUMBER", number(i)) + b"N" for i in range(count)) + b"u"


PAIRS = b")q\x00" + b"".join(bytes([0x68, i, 0x68, i, 0x86, 0x71, i + 1]) for i in range(60))  # tuples, 2^60 in all
TEXT = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\x00"
UNTIDY = {
    "a key": (PAIRS + b"}h\x3cNs", "a tuple as a key"),
    "a key in a key": (PAIRS + b"}h\x3c\x85Ns", "a tuple as a key"),
    "a member": (PAIRS + called("builtins.set", b"]h\x3ca\x85"), "a tuple as a key"),
    "a member, python 2": (PAIRS + called("__builtin__.set", b"]h\x3ca\x85"), "a tuple as a key"),
    "counted": (PAIRS + called("collections.Counter", b"]h\x3ca\x85"), "a tuple as a key"),
    "in order": (PAIRS + called("collections.OrderedDict", b"]h\x3cN\x86a\x85"), "a tuple as a key"),
    "a layout": (PAIRS + called("torch.serialization._get_layout", b"h\x3c\x85"), "more in it"),
    "a sparse layout": (PAIRS + called("torch._utils._rebuild_sparse_tensor", b"h\x3cN\x86"), "more in it"),
    "a storage": (PAIRS + b"(U\x07storagectorch\nFloatStorage\nh\x3cU\x03cpuK\x01tQ", "no storage"),
    "numbers that collide": (colliding(b"\x8a\x10" + b"NUMBER"[:0] + bytes(8) + b"\1" * 8, 2), "64 bits"),
    "complex that collide": (colliding(b"cbuiltins\ncomplex\nNUMBERK\x00\x86R", 2), "as a key"),
    "tuples that collide": (colliding(b"NUMBER\x85"), "a tuple as a key"),
    "bytes of a number": (called("builtins.bytearray", number(1 << 36) + b"\x85"), "bytes made of a int"),
    "bytes again and again": (
        b"](" + TEXT + b"e" + (called("_codecs.encode", b"h\x00X\x06\0\0\0latin1\x86") + b"a") * 500,
        "far more than it holds",
    ),
    "a tensor of a number": (called("torch.Tensor", number(1 << 36) + b"\x85"), "a call of torch.Tensor"),
    "a storage of a number": (called("torch.storage.UntypedStorage", number(1 << 36) + b"\x85"), "a call of torch"),
    "an inner call": (
        called("torch._tensor._rebuild_from_type_v2", b"(cbuiltins\nset\nNN}t"),
        "a call of something",
    ),
    "text again and again": (b"](" + TEXT + b"h\x00" * 20_000 + b"e", "without end"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", UNTIDY)
def test_a_pickle_that_torch_would_follow_to_no_end(name: str, tmp_path: Path) -> None:
    value, message = UNTIDY[name]
    crafted(tmp_path / "x.ckpt", value)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_file(tmp_path / "x.ckpt")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        read_file(tmp_path / "x.ckpt")
    assert newest_of_any_kind([tmp_path]) is None


def test_whatever_torch_saves_is_read(tmp_path: Path) -> None:
    """Every kind of value that ``weights_only=True`` reads, and is of use in a checkpoint."""
    shared = (1, "a")
    values = {
        "keys": {1: 2, 1.5: 3, None: 4, False: 5, (1, "x"): 6, torch.float32: 7, b"x": 8, 1 << 40: 9},
        "kinds": [OrderedDict(a=1), Counter("aab"), {1, "b"}, bytearray(b"xy"), 1 + 2j, torch.Size([3, 4]), b"abc"],
        "torch": [torch.float16, torch.device("cpu"), torch.strided, nn.Parameter(torch.ones(2), requires_grad=False)],
        "numbers": [1 << 100, -(1 << 70), 0.5, float("inf")],
        "shared": [shared] * 1000,
        "text": "é\ud800",
    }
    tensors = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(2, dtype=torch.bfloat16), "e": torch.empty(0)}
    tensors["sparse"] = torch.eye(3).to_sparse()
    tensors["marked"] = torch.ones(2)
    tensors["marked"].note = "kept"  # type: ignore[attr-defined]
    save_file(tmp_path / "x.ckpt", {"state_dict": nn.Linear(2, 2).state_dict() | tensors, **values})
    found = load_file(tmp_path / "x.ckpt")
    assert {key: value for key, value in found.items() if key not in ("state_dict", "torch")} == {
        key: value for key, value in values.items() if key != "torch"
    }
    assert str(found["torch"]) == str(values["torch"])
    assert all(torch.equal(found["state_dict"][k].to_dense(), tensors[k].to_dense()) for k in tensors)
