"""Memory-mapped rows: centers and optimizer state larger than memory; a run resumes from what is on disk."""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from math import prod
from pathlib import Path
from queue import Queue

import torch
from torch import Tensor

from lightning_pfc.distributed.class_rows import class_rows
from lightning_pfc.storage.file_lock import ask_for_lock
from lightning_pfc.storage.makers import hidden_path, sweep_parts
from lightning_pfc.storage.regular import read_regular
from lightning_pfc.storage.whole_files import errors_of

_MAGIC = b"PFCROWS1"
_HEADER_BYTES = 4096  # one page, so that the rows begin on one
_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "uint8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


_run: ContextVar[str | None] = ContextVar("run", default=None)


@contextlib.contextmanager
def rows_of_run(run: str | None) -> Iterator[None]:
    """While heads are made for a run: rows in files are its own, and those of another one are refused.

    Args:
        run: its id; None takes whatever rows there are.
    """
    token = _run.set(run)
    try:
        yield
    finally:
        _run.reset(token)


class RowFiles:
    """Tensors of rows in a folder, one memory-mapped file each.

    A file has a header of one page (its name, shape and element type) and then the rows as they are in memory. It is
    made under another name, at its full size, and gets its own name when it is whole: an interrupted run leaves no half
    file, and a full disk is an error before anything is written, not a crash in the middle of a step. Pages come
    into memory when they are touched, and the system takes them back when it needs the room.

    Computation on such a tensor is that on any other: the same numbers, bit for bit.

    Args:
        folder: Made if it is not there. Every rank needs its own.

    Raises:
        OSError: If the folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._run = _run.get()
        self._open: dict[str, _RowFile] = {}
        self._prefetcher: _Prefetcher | None = None

    def __contains__(self, name: str) -> bool:
        """Whether there is a file for ``name``."""
        return self._path(name).exists()

    def tensor(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, fill: Callable[[Tensor], object] | None = None
    ) -> Tensor:
        """The rows called ``name``: those on disk, or a new file.

        Args:
            name: A word.
            shape: First the number of rows.
            dtype: Element type.
            fill: Writes the rows of a new file, before it gets its name; None leaves zeros.

        Returns:
            A CPU tensor; what is written to it is written to the file.

        Raises:
            ValueError: If there is a file of another shape or type, a truncated one, one that is no file of rows, or
                one that another process has open. It is left as it is.
            OSError: If the disk has no room for a new file; nothing is left of it.
        """
        shape = torch.Size(shape)
        if dtype not in _NAMES:
            raise ValueError(f"rows of {dtype} cannot be kept in a file; there are {', '.join(_DTYPES)}.")
        opened = self._open.get(name)
        if opened is None:
            path = self._path(name)
            self._check_owner(path)
            if not path.exists():
                _create(path, name, shape, dtype, fill)
            opened = self._open[name] = _RowFile(path)
        if (opened.shape, opened.dtype) != (shape, dtype):
            raise ValueError(
                f"{opened.path} holds {opened.dtype} of shape {tuple(opened.shape)}, and {dtype} of shape "
                f"{tuple(shape)} was asked for; give another folder, or the options with which the file was made."
            )
        return opened.tensor

    def _check_owner(self, path: Path) -> None:
        """Whose the rows are is in a file beside them."""
        owner, said = self.folder / "run", ""
        with contextlib.suppress(OSError):
            said = read_regular(owner, 1024).decode(errors="replace").strip()
        if self._run is None or said == self._run:
            return
        if path.exists() and said:
            raise ValueError(
                f"row_folder={self.folder} holds the rows of run {said}, and this is run {self._run}. Give another "
                "folder, or remove it if they are not needed any more."
            )
        owner.write_text(self._run, encoding="utf-8")

    def prefetch(self, rows: Tensor | Callable[[], Tensor]) -> None:
        """Has the pages of some rows read in all files, by a thread, while the caller goes on.

        Only a hint: where the system takes none, or rows are asked for faster than a disk reads, nothing happens.

        Args:
            rows: Row numbers ``(n,)`` int64, ascending; or what finds them, to be called by the thread.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        if self._prefetcher is None:
            self._prefetcher = _Prefetcher()
        self._prefetcher.submit(list(self._open.values()), rows)

    def flush(self) -> None:
        """Returns when everything that was written to the tensors is on disk."""
        for opened in self._open.values():
            opened.pages.flush()

    def close(self) -> None:
        """Ends the thread of :meth:`prefetch`. The tensors stay valid; their files close when nobody holds them."""
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None
        self._open.clear()

    def _path(self, name: str) -> Path:
        if not name.isidentifier():
            raise ValueError(f"name={name!r} is not a word.")
        return self.folder / f"{name}.rows"


def row_files(param: Tensor) -> RowFiles | None:
    """The files in which a head keeps the rows of ``param``, or None."""
    record = class_rows(param)
    found: RowFiles | None = None if record is None else record.files
    return found


class _RowFile:
    """A file of rows that exists, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        close = weakref.finalize(self, os.close, self.file)
        if ask_for_lock(self.file) is False:
            raise ValueError(
                f"{path} is in use by another process: two would write over each other's rows. End that one first, or "
                "give another row_folder."
            )
        self.shape, self.dtype = _read_header(path, os.read(self.file, _HEADER_BYTES))
        expected, found = _HEADER_BYTES + _num_bytes(self.shape, self.dtype), os.fstat(self.file).st_size
        if found != expected:
            raise ValueError(
                f"{path} has {found} bytes, and {tuple(self.shape)} of {self.dtype} needs {expected}: it is "
                "truncated or was changed by something else; restore it, or remove it and load a checkpoint."
            )
        self.pages = mmap.mmap(self.file, expected)
        close.detach()
        weakref.finalize(self.pages, os.close, self.file)  # the lock lasts as long as somebody holds the rows
        if hasattr(mmap, "MADV_RANDOM"):
            self.pages.madvise(mmap.MADV_RANDOM)  # rows are far apart: reading ahead of them would be for nothing
        count = prod(self.shape)
        flat = torch.frombuffer(self.pages, dtype=self.dtype, offset=_HEADER_BYTES, count=count) if count else None
        self.tensor = torch.empty(self.shape, dtype=self.dtype) if flat is None else flat.view(self.shape)

    def page_runs(self, rows: Tensor) -> Iterator[tuple[int, int]]:
        """Offset and length of the pages that hold ascending rows, neighbours together."""
        width = _num_bytes(self.shape[1:], self.dtype)
        first = (_HEADER_BYTES + rows * width) // mmap.PAGESIZE
        last = (_HEADER_BYTES + (rows + 1) * width - 1) // mmap.PAGESIZE
        if rows.numel() == 0:
            return
        new_run = torch.ones_like(first, dtype=torch.bool)
        new_run[1:] = first[1:] > last[:-1] + 1
        starts = first[new_run]
        ends = last[torch.cat([new_run[1:], new_run.new_ones(1)])]
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            yield start * mmap.PAGESIZE, (end + 1 - start) * mmap.PAGESIZE


class _Prefetcher:
    """A thread that advises the kernel to read pages; the reading itself is the kernel's.

    ``posix_fadvise`` and not ``mmap.madvise``, which would hold up every other thread of Python while it asks.
    """

    def __init__(self) -> None:
        self._queue: Queue[tuple[list[_RowFile], Tensor | Callable[[], Tensor]] | None] = Queue()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="row prefetch", daemon=True)
        self._thread.start()
        # A thread that still computes while the interpreter is taken down ends in a traceback, or worse.
        atexit.register(self.close)

    def submit(self, files: list[_RowFile], rows: Tensor | Callable[[], Tensor]) -> None:
        if self._queue.empty():  # else the thread is behind already
            self._queue.put((files, rows))

    def close(self) -> None:
        atexit.unregister(self.close)
        self._ending = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            files, rows = job
            rows = rows if isinstance(rows, Tensor) else rows()
            for opened in files:
                for offset, length in opened.page_runs(rows):
                    if self._ending:
                        return
                    os.posix_fadvise(opened.file, offset, length, os.POSIX_FADV_WILLNEED)


def _create(
    path: Path, name: str, shape: torch.Size, dtype: torch.dtype, fill: Callable[[Tensor], object] | None
) -> None:
    """Makes a file of its full size under a name of its own, has it filled, then gives it its name."""
    header = _MAGIC + json.dumps({"name": name, "shape": list(shape), "dtype": _NAMES[dtype]}).encode()
    size = _HEADER_BYTES + _num_bytes(shape, dtype)
    sweep_parts(path.parent)  # of centers that may fill the disk
    part = hidden_path(path)
    part.unlink(missing_ok=True)
    try:
        with errors_of(part, path), part.open("xb") as file:
            file.write(header.ljust(_HEADER_BYTES, b"\n"))
            file.flush()
            # Room for everything now: a page of a sparse file that finds no room later ends the process with a signal.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            os.fsync(file.fileno())
        if fill is not None:
            made = _RowFile(part)
            fill(made.tensor)
            made.pages.flush()
        part.rename(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"no room for {size} bytes of rows ({error.strerror}); give a folder on a larger disk",
                str(path),
            ) from error
        raise


def _read_header(path: Path, header: bytes) -> tuple[torch.Size, torch.dtype]:
    try:
        if not header.startswith(_MAGIC) or len(header) < _HEADER_BYTES:
            raise ValueError("no header")
        fields = json.loads(header[len(_MAGIC) :])
        return torch.Size(fields["shape"]), _DTYPES[fields["dtype"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a file of rows, or its header is damaged ({error}); give another folder, or remove it."
        ) from error


def _num_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return prod(shape) * dtype.itemsize
