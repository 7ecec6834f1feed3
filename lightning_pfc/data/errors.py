"""Errors of files that are read: each names the file and, where there is one, the byte at which it went wrong."""

from __future__ import annotations

import os
from types import TracebackType


class FormatError(ValueError):
    """A file does not hold what its format promises.

    Attributes:
        path: the file, or ``None`` when the bytes did not come from one.
        offset: byte (in text files: of the start of the line) at which the trouble was found, or ``None``.
    """

    def __init__(self, message: str, *, path: str | os.PathLike[str] | None = None, offset: int | None = None) -> None:
        # A data loader rebuilds a worker's error from its message alone, so the message holds everything.
        if path is not None:
            where = os.fspath(path) if offset is None else f"{os.fspath(path)}, byte {offset}"
            message = f"{where}: {message}"
        super().__init__(message)
        self.path = None if path is None else os.fspath(path)
        self.offset = offset


class BrokenImageError(FormatError):
    """The bytes of one image cannot be decoded, or only in part."""


class TooManyBrokenImagesError(FormatError):
    """More images were skipped than the policy allows."""


class MissingLibraryError(ImportError):
    """A format needs a library that is not installed; the message says how to get it."""

    def __init__(self, message: str, *, library: str | None = None) -> None:
        super().__init__(message, name=library)


_EXTRAS = {"faiss-cpu": "serve", "onnx": "export", "onnxruntime": "export", "peft": "lora", "psycopg[binary]": "serve"}
"""The extra of this package that a library comes with, where it is not ``data``."""


def missing_library(library: str, what: str) -> MissingLibraryError:
    """An error that says which library a format lacks and how to install it; to be raised by the caller.

    Args:
        library: name of the distribution on the package index.
        what: what was asked for, the start of the sentence.
    """
    extra = _EXTRAS.get(library, "data")
    given = f"'{library}'" if "[" in library else library  # as a shell takes it
    whole = "all data formats" if extra == "data" else "what belongs to it"
    return MissingLibraryError(
        f"{what} needs the library {library!r}, which is not installed. Install it with "
        f"`pip install {given}`, or {whole} with `pip install 'lightning-pfc[{extra}]'`.",
        library=library,
    )


class reading:
    """The boundary around what reads a file: whatever goes wrong in it leaves as a :class:`FormatError`.

    Parsers raise what they like about damaged input: RecursionError, KeyError, EOFError, zlib.error, MemoryError. What
    is documented already passes: FormatError, FileNotFoundError and MissingLibraryError.

    Args:
        path: the file, for the message.
        what: what it should be, such as ``"a list of images"``.
    """

    __slots__ = ("path", "what")

    def __init__(self, path: str | os.PathLike[str], what: str) -> None:
        self.path = path
        self.what = what

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Turn the error into the documented one.

        Raises:
            FormatError: for any other exception than the documented ones.
        """
        if not isinstance(error, Exception) or isinstance(error, FormatError | FileNotFoundError | MissingLibraryError):
            return
        if isinstance(error, MemoryError):
            raise FormatError(f"not {self.what}: it asks for more memory than there is", path=self.path) from error
        if isinstance(error, OSError):
            raise FormatError(f"it cannot be read: {error.strerror or error}", path=self.path) from error
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise FormatError(f"not {self.what}: {reason}", path=self.path) from error
