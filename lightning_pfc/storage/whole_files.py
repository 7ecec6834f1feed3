"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from lightning_pfc.storage.makers import hidden_path, sweep_parts_once
from lightning_pfc.storage.regular import is_replaceable


@contextlib.contextmanager
def write_whole(path: str | os.PathLike[str], mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """A file to write into; it gets its name when the block ends, and is gone if the block raises.

    Args:
        path: the file to be; an older one is replaced in one step. Missing folders above it are made. A device or a
            pipe, such as ``/dev/stdout``, is written to.
        mode: ``"wb"`` or ``"w"``.
        **options: of ``open``.
    """
    final = Path(path)
    if not is_replaceable(final):
        with errors_of(final, final), final.open(mode, **options) as file:
            yield file
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    sweep_parts_once(final.parent.absolute())
    partial = hidden_path(final)
    try:
        with errors_of(partial, final):
            with partial.open(mode, **options) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(final)
    finally:
        with contextlib.suppress(OSError):  # the first error is what is said
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def errors_of(partial: Path, final: Path) -> Iterator[None]:
    """Within it, an error of the system names the file or folder to be, not the one that is made for it, or none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:  # of writing
            error.filename = str(final)
        with contextlib.suppress(TypeError, ValueError):  # it names another one
            error.filename = str(final / Path(error.filename).relative_to(partial))
        raise


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> Path:
    """Plain data as JSON; numbers that do not exist become null."""
    with write_whole(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")
    return Path(path)


def sha256(path: str | os.PathLike[str]) -> str:
    """The digest of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
