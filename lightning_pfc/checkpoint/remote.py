"""Checkpoints at addresses (``s3://``, ``memory://``, ``http://``): fetched first, then read like any other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from lightning_pfc.checkpoint.errors import CheckpointError


def is_address(place: str | Path) -> bool:
    """Whether a checkpoint lies elsewhere than in a file system of this machine."""
    return "://" in str(place)


@contextmanager
def fetched(place: str | Path) -> Iterator[Path]:
    """A local path of a checkpoint, file or folder. What was fetched is gone afterwards; errors name the address.

    Raises:
        FileNotFoundError: there is nothing at the address.
        CheckpointError: it cannot be fetched; and those of the block.
    """
    if not is_address(place):
        yield Path(place).absolute()
        return
    address = str(place)
    with tempfile.TemporaryDirectory(prefix="checkpoint-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / address.rstrip("/").rpartition("/")[2]
        try:
            _fetch(address, path)
        except FileNotFoundError:
            raise FileNotFoundError(f"checkpoint {address} does not exist") from None
        except (OSError, ValueError, ImportError) as error:
            raise CheckpointError(f"checkpoint {address} cannot be fetched: {error}") from error
        try:
            yield path
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(path), address)) from error


def _fetch(address: str, target: Path) -> None:
    system, inner = fsspec.core.url_to_fs(address)
    if not system.isdir(inner):
        with system.open(inner, "rb") as source, target.open("wb") as out:
            while block := source.read(1 << 24):
                out.write(block)
        return
    top = inner.rstrip("/")
    for name in system.find(top):
        parts = Path(name[len(top) :].lstrip("/")).parts
        if not parts or any(part in ("..", "/") for part in parts):
            raise ValueError(f"{name} is not below it")
        file = target.joinpath(*parts)
        file.parent.mkdir(parents=True, exist_ok=True)
        system.get_file(name, str(file))
