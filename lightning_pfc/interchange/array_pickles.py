"""Pickles of arrays by name, which is what ``paddle.save`` makes of a state dict; written without Paddle or pickle.

NumPy's functions are named as every version knows them: ``pickle`` of NumPy 2 would write names that NumPy 1 has not.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

_START, _STOP = b"\x80\x04}", b"."  # protocol 4, an empty dict
_EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
_STATE_OF_DTYPE = b"(K\x03%sNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def write_arrays(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, as arrays that own their values; bfloat16 as float32."""
    with path.open("wb") as file:
        file.write(_START)
        for name, tensor in tensors.items():
            file.write(_text(name))
            _write(file, tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach())
            file.write(b"s")
        file.write(_STOP)


def _write(file: BinaryIO, tensor: Tensor) -> None:
    array = tensor.cpu().contiguous().numpy()
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    file.write(_EMPTY_ARRAY)
    sizes = b"".join(b"\x8a\x08" + struct.pack("<q", size) for size in little.shape)
    file.write(b"(K\x01(" + sizes + b"tcnumpy\ndtype\n" + _text(little.dtype.str[1:]) + b"\x89\x88\x87R")
    file.write(_STATE_OF_DTYPE % _text("<" if little.dtype.itemsize > 1 else "|") + b"\x89")
    file.write(b"\x8e" + struct.pack("<Q", little.nbytes))
    file.write(little.data)
    file.write(b"tb")


def _text(value: str) -> bytes:
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content
