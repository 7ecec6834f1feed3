"""Files written and read in blocks, each with a checksum: nothing is held in memory but one block."""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.manifest import BLOCK, check_block, open_checked
from lightning_pfc.checkpoint.manifest_entries import FileEntry, dtype_name

# What torch's own HuggingFaceStorageReader looks for, so that it can read the data files too.
_SHARDING_KEY = "DCP_SHARDING_INFO"
_PAGE = 4096
_AHEAD = 4  # blocks that the system is asked to read while one is checked


class BlockWriter:
    """A file that is written from front to back; sums it up block by block, and forces it to the disk at the end.

    While a thread writes one block, the next is copied and summed up. Where the system allows it, the blocks go past
    its cache: a checkpoint is not read again soon, and the disk is busy from the first block on.
    """

    def __init__(self, path: Path) -> None:
        self._file = _open_past_the_cache(path)
        self._buffers = (mmap.mmap(-1, BLOCK), mmap.mmap(-1, BLOCK))  # on page boundaries, as such writes must be
        self._views = tuple(memoryview(buffer) for buffer in self._buffers)
        self._current = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="block-writer")
        self._writing: Future[None] | None = None
        self._sums: list[int] = []
        self._filled = 0
        self.size = 0

    def __enter__(self) -> BlockWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                if self._filled:
                    self._hand_over()
                self._wait()
                os.ftruncate(self._file, self.size)
                os.fsync(self._file)
        finally:
            self._thread.shutdown(wait=True)
            try:
                os.close(self._file)
            except OSError:
                if error is None:  # else it is not the first
                    raise
            # An error in the thread keeps hold of what it was writing; that goes with the error.
            with contextlib.suppress(BufferError):
                for view in self._views:
                    view.release()
                for buffer in self._buffers:
                    buffer.close()

    def write(self, data: Any) -> None:
        """Append bytes, or anything that shows itself as a flat buffer of bytes."""
        view = memoryview(data)
        while len(view):
            part = view[: BLOCK - self._filled]
            self._views[self._current][self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            self.size += len(part)
            if self._filled == BLOCK:
                self._hand_over()
            view = view[len(part) :]

    def _hand_over(self) -> None:
        view, length = self._views[self._current], self._filled
        self._sums.append(zlib.crc32(view[:length]))
        padded = -(-length // _PAGE) * _PAGE  # the last block; the file is cut to its size at the end
        self._wait()
        self._writing = self._thread.submit(_write_all, self._file, view[:padded])
        self._current, self._filled = 1 - self._current, 0

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def entry(self) -> FileEntry:
        """What the manifest keeps of this file; once it is closed."""
        return FileEntry(self.size, list(self._sums))


def _open_past_the_cache(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    if hasattr(os, "O_DIRECT"):
        with contextlib.suppress(OSError):
            return os.open(path, flags | os.O_DIRECT, 0o666)
    return os.open(path, flags, 0o666)


def _write_all(file: int, view: memoryview) -> None:
    while len(view):
        try:
            written = os.write(file, view)
        except OSError as error:
            if error.errno != errno.EINVAL or not _through_the_cache(file):  # this file system wants other sizes
                raise
            continue
        if written % _PAGE and len(view) > written:  # such as before a disk is full: the rest no longer fits pages
            _through_the_cache(file)
        view = view[written:]


def _through_the_cache(file: int) -> bool:
    """Let a file that was opened past the system's cache go through it from now on; False if it does already."""
    if not hasattr(os, "O_DIRECT"):
        return False
    import fcntl  # not on Windows

    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return bool(flags & os.O_DIRECT)


def write_safetensors(path: Path, items: Sequence[tuple[str, Sequence[int], Tensor]]) -> tuple[FileEntry, list[int]]:
    """Write tensors in the safetensors format without holding a second copy of them.

    Args:
        path: the file.
        items: key, offset of the tensor within the whole, tensor on any device.

    Returns:
        The file's entry for the manifest, and the byte at which each tensor starts.
    """
    offsets = {key: list(offset) for key, offset, _ in items}
    entries = [(k, dtype_name(t.dtype), list(t.shape), t.numel() * t.element_size()) for k, _, t in items]
    header, starts = safetensors_header(entries, offsets)
    with BlockWriter(path) as file:
        file.write(header)
        for _, _, tensor in items:
            for part in tensor_bytes(tensor):
                file.write(part)
    return file.entry(), starts


def safetensors_header(
    entries: Sequence[tuple[str, str, Sequence[int], int]], offsets: Mapping[str, Sequence[int]]
) -> tuple[bytes, list[int]]:
    """The beginning of a safetensors file.

    Args:
        entries: key, dtype, shape and bytes of each tensor, in the order in which they follow.
        offsets: where each lies in the whole that it is a part of; empty if they are whole.

    Returns:
        The header, and the byte of the file at which each tensor starts.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    if offsets:
        sharding = {key: {"saved_offsets": list(offset)} for key, offset in offsets.items()}
        header["__metadata__"] |= {"DCP_VERSION": "1.0", _SHARDING_KEY: json.dumps(sharding)}
    begins = []
    end = 0
    for key, dtype, shape, size in entries:
        begins.append(end)
        end += size
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begins[-1], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, [8 + len(text) + begin for begin in begins]


def tensor_bytes(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, row-major, in parts of about a block; no copy for a contiguous one in CPU memory."""
    if tensor.numel() == 0:
        return
    if tensor.dim() == 0 or (tensor.is_contiguous() and tensor.device.type == "cpu"):
        yield _flat(tensor)
        return
    row = max(1, tensor[0].numel() * tensor.element_size())
    step = max(1, BLOCK // row)
    for first in range(0, tensor.shape[0], step):
        yield _flat(tensor[first : first + step])


def _flat(tensor: Tensor) -> memoryview:
    array: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


class BlockReader:
    """Reads byte ranges of one file of a checkpoint; every byte handed out was checked.

    Args:
        folder, name, entry: the file, as the manifest has it.

    Raises:
        CheckpointError: if the file is missing, of another size, or a block does not match its checksum.
    """

    def __init__(self, folder: Path, name: str, entry: FileEntry) -> None:
        self._folder, self._name, self._entry = folder, name, entry
        self._file = open(open_checked(folder, name, entry), "rb", buffering=0)  # noqa: SIM115 - closed by __exit__
        self._buffer = bytearray(min(BLOCK, max(entry.size, 1)))
        self._block = -1

    def __enter__(self) -> BlockReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read_into(self, start: int, target: memoryview) -> None:
        """Fill ``target`` with the bytes from ``start`` on."""
        done = 0
        while done < len(target):
            index, inside = divmod(start + done, BLOCK)
            length = min(BLOCK, self._entry.size - index * BLOCK)
            want = min(length - inside, len(target) - done)
            if want == length:  # a whole block needs no detour
                part = target[done : done + want]
                self._read(index, part)
                check_block(self._folder, self._name, self._entry, index, part)
            else:
                if index != self._block:
                    part = memoryview(self._buffer)[:length]
                    self._read(index, part)
                    check_block(self._folder, self._name, self._entry, index, part)
                    self._block = index
                target[done : done + want] = memoryview(self._buffer)[inside : inside + want]
            done += want

    def read_rows(self, start: int, target: Tensor) -> None:
        """Fill a tensor whose bytes lie row-major from byte ``start`` on; any device, contiguous or not."""
        if target.numel() == 0:
            return
        if target.device.type == "cpu" and target.is_contiguous():
            self.read_into(start, _writable(target))
            return
        if target.dim() == 0:
            part = torch.empty((), dtype=target.dtype)
            self.read_into(start, _writable(part))
            target.copy_(part)
            return
        row = target[0].numel() * target.element_size()
        step = max(1, BLOCK // max(1, row))
        for first in range(0, target.shape[0], step):
            rows = target[first : first + step]
            part = torch.empty(rows.shape, dtype=target.dtype)
            self.read_into(start + first * row, _writable(part))
            rows.copy_(part)

    def check_all(self) -> None:
        """Read the whole file and compare every checksum."""
        for index in range(len(self._entry.crc32)):
            length = min(BLOCK, self._entry.size - index * BLOCK)
            part = memoryview(self._buffer)[:length]
            self._read(index, part)
            check_block(self._folder, self._name, self._entry, index, part)

    def _read(self, index: int, part: memoryview) -> None:
        self._file.seek(index * BLOCK)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), (index + 1) * BLOCK, _AHEAD * BLOCK, os.POSIX_FADV_WILLNEED)
        done = 0
        while done < len(part):
            count = self._file.readinto(part[done:])
            if not count:
                raise CheckpointError(f"{self._folder / self._name} was cut short while it was read.")
            done += count


def _writable(tensor: Tensor) -> memoryview:
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)
