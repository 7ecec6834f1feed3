"""Reading what ``torch.save`` has written, and somebody else may have altered: bounded, checked, and never code."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lightning_pfc.checkpoint.torch_pickles import check_pickle
from lightning_pfc.storage.pickles import PickleError

_MOST_NODES, _MOST_DEPTH = 20_000_000, 200
_FEW_NODES = 1_000_000  # that every tree may have, however small its file
_TEXT = 100  # characters that count as one node
_HOLDS_MORE = "it holds something other than tensors and plain values, and loading it could run code ({})"
_FOUND = ("WeightsUnpickler error:", "Unsupported", "Trying to ")  # what torch found, on its page of advice
_PIECE = 8 << 20
_BEFORE_1_6 = bytes.fromhex("8a0a6cfc9c46f9206aa85019")  # pickled, the number with which torch marked that form


def check_archive(file: BinaryIO, size: int) -> list[zipfile.ZipInfo]:
    """See that a file is a zip file as ``torch.save`` writes it: nothing packed, nothing larger than the file.

    Args:
        file: open for reading.
        size: its bytes.

    Returns:
        The records.

    Raises:
        ValueError: if it is not.
    """
    file.seek(0)
    start = file.read(32)
    if _BEFORE_1_6 in start:
        raise ValueError(
            "torch.save wrote it before torch 1.6, in a form that is not read here; write it anew: "
            "torch.save(torch.load(FILE, weights_only=True), NEW)"
        )
    if start[:4] != b"PK\x03\x04":
        raise ValueError("it is not a file of torch.save (since torch 1.6)")
    try:
        records = zipfile.ZipFile(file).infolist()
    except Exception as error:  # BadZipFile, struct.error, UnicodeDecodeError, NotImplementedError, ...
        raise ValueError(f"it is damaged ({_line(error)})") from error
    total, names = 0, set()
    for record in records:
        if record.filename in names:
            raise ValueError(f"{record.filename!r} is in it twice")
        names.add(record.filename)
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
            raise ValueError(f"{record.filename!r} in it is packed, which torch.save never does")
        if record.file_size != record.compress_size or record.header_offset + record.file_size > size:
            raise ValueError(f"{record.filename!r} in it claims {record.file_size} bytes")
        if record.filename.endswith("constants.pkl"):
            raise ValueError("it is a TorchScript program, not a checkpoint")
        total += record.file_size
    if total > size:
        raise ValueError(f"its records claim {total} bytes, and it has {size}")
    return records


def has_comment(file: BinaryIO) -> bool:
    """Whether a zip file has a comment, which ``torch.save`` never gives it."""
    file.seek(0)
    return bool(zipfile.ZipFile(file).comment)


def check_records(file: BinaryIO, records: list[zipfile.ZipInfo], share: tuple[int, int] = (0, 1)) -> None:
    """Compare the records of a zip file with the checksums that it keeps of them.

    Args:
        file: open for reading.
        records: of :func:`check_archive`.
        share: (i, n) checks every n-th record, from record i on.

    Raises:
        ValueError: naming the record.
    """
    file.seek(0)
    archive = zipfile.ZipFile(file)
    for record in records[share[0] :: share[1]]:
        _check_record(archive, record)


def _check_record(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    try:
        with archive.open(record) as content:
            while content.read(_PIECE):
                pass
    except Exception as error:
        raise ValueError(f"{record.filename!r} in it does not match its checksum ({_line(error)})") from error


def load_archive(source: Any, *, weights_only: bool = True, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """``torch.load``, with one kind of error.

    Args:
        source: a path, or an open file.
        weights_only: False runs whatever code the file names; only ever by the user's own word.
        map_location: as in ``torch.load``.
        mmap: leave the tensors in the file, to be read when they are touched.

    Raises:
        ValueError: if it cannot be read, or holds something other than tensors and plain values.
    """
    most = _MOST_NODES
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of a protocol that does not exist
            if weights_only:
                described = _read_pickle(source)
                _check_lengths(source, check_pickle(described))
                most = min(most, _FEW_NODES + len(described))
            content = torch.load(source, map_location=map_location, weights_only=weights_only, mmap=mmap or None)
    except pickle.UnpicklingError as error:
        raise ValueError(_HOLDS_MORE.format(_reason(error))) from error
    except PickleError as error:
        raise ValueError(_HOLDS_MORE.format(error) if error.refused else f"it is damaged ({error})") from error
    except Exception as error:
        raise ValueError(f"it is damaged ({type(error).__name__}: {_line(error)})") from error
    check_tree(content, most)
    return content


def _read_pickle(source: Any) -> bytes:
    """What describes the tensors, found by torch's own reader: another one might find another record."""
    content = torch._C.PyTorchFileReader(source if hasattr(source, "read") else str(source)).get_record("data.pkl")
    if hasattr(source, "seek"):
        source.seek(0)
    return bytes(content)


def _check_lengths(source: Any, needed: Mapping[str, int]) -> None:
    """See that each record is as long as the pickle says: one left in its file is read on into the next, if not.

    Raises:
        PickleError: naming one that is shorter, or not there.
    """
    with zipfile.ZipFile(source) as archive:
        records = archive.infolist()
    folder = records[0].filename.partition("/")[0]  # as torch finds it
    found = {record.filename: record.file_size for record in records}
    for name, length in needed.items():
        there = found.get(f"{folder}/{name}")
        if there is None or length > there:
            has = "is not there" if there is None else f"has {there}"
            raise PickleError(f"{name[:80]!r} in it claims {length} bytes, and {has}", 0, refused=False)
    if hasattr(source, "seek"):
        source.seek(0)


def check_checkpoint(content: Any) -> None:
    """See that something is what Lightning makes: a dict with a ``state_dict``, both with names as keys.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"it holds a {type(content).__name__}, where a checkpoint is a dict")
    state = content.get("state_dict")
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ValueError("it is not a Lightning checkpoint: it has no state_dict")


def check_tree(tree: Any, most: int = _MOST_NODES) -> None:
    """See that a tree of dicts, lists and tuples can be walked, and that no tensor is larger than what is stored.

    A few bytes can describe a tree that refers to itself, or a tensor of any size over one number.

    Args:
        tree: what was loaded.
        most: steps that a walk may take.

    Raises:
        ValueError: if not.
    """
    _count_nodes(tree, 0, {}, most)


def _count_nodes(value: Any, depth: int, known: dict[int, int], most: int) -> int:
    """How many steps it takes to walk a tree; what is in several places of it is looked at once, and counted for each.

    Args:
        value: the tree.
        depth: how far down it hangs.
        known: the result for lists and dicts by their id; 0 while they are being looked at.
        most: steps that it may take.
    """
    if isinstance(value, Tensor):
        _check_tensor(value)
    if not isinstance(value, Mapping) and type(value) not in (list, tuple):
        return 1 + len(value) // _TEXT if isinstance(value, str | bytes | bytearray) else 1
    count = known.get(id(value))
    if count is None and depth < _MOST_DEPTH:
        known[id(value)] = 0
        items = value.values() if isinstance(value, Mapping) else value
        count = known[id(value)] = 1 + sum(_count_nodes(item, depth + 1, known, most) for item in items)
    if not count or count > most:
        raise ValueError("it holds lists within lists without end")
    return count


def _check_tensor(tensor: Tensor) -> None:
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        return
    stored = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > stored:
        raise ValueError(f"a tensor in it claims the shape {tuple(tensor.shape)}, and {stored} bytes are stored")


def _line(error: BaseException) -> str:
    """The first line of a message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _reason(error: BaseException) -> str:
    """Of torch's page of advice, the line that says what was found."""
    lines = [line.strip() for line in str(error).splitlines()]
    found = next((line for line in lines if line.startswith(_FOUND)), None)
    text = found or _line(error)
    return text.removeprefix("WeightsUnpickler error:").strip().split(". Please use")[0].rstrip(".")
