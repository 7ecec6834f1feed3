"""Files are made under a hidden name and renamed when they are whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch

from lightning_pfc.checkpoint.blocks import BlockWriter, safetensors_header, tensor_bytes
from lightning_pfc.checkpoint.manifest_entries import dtype_name
from lightning_pfc.interchange.imported import Imported
from lightning_pfc.interchange.plain_weights import check_finite, check_kinds
from lightning_pfc.storage.first_error import FirstError
from lightning_pfc.storage.whole_files import errors_of


@contextmanager
def made_whole(target: Path) -> Iterator[Path]:
    """A hidden path beside ``target``, which takes its place if nothing goes wrong.

    Raises:
        ValueError: if ``target`` exists.
    """
    if target.exists():
        raise ValueError(f"{target} exists; name a new one, so that nothing is lost.")
    target.parent.mkdir(parents=True, exist_ok=True)
    made = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with errors_of(made, target):
            yield made
            os.replace(made, target)
    finally:
        if made.is_dir():
            for path in made.iterdir():
                path.unlink()
            made.rmdir()
        made.unlink(missing_ok=True)


def save_tensors(content: Any, path: Path) -> None:
    """``torch.save``, which would hide the reason why a file cannot be written behind one of its own.

    Raises:
        OSError: the first one of the file, such as that the disk is full.
    """
    with path.open("wb") as file:
        writer = FirstError(file.write)
        torch.save(content, cast(IO[bytes], writer))
        writer.finish()


def write_imported(found: Imported, target: Path, source: str | os.PathLike[str]) -> None:
    """One safetensors file with the names of a module of ours; parts are joined as they are written.

    Args:
        found: what is written.
        target: the file to be.
        source: where it was found, for messages.

    Raises:
        ValueError: if ``target`` exists, or what was found are no weights; nothing is left then.
    """
    check_kinds(source, found.parts)
    shapes = {name: [sum(p.shape[0] for p in parts), *parts[0].shape[1:]] for name, parts in _with_rows(found).items()}
    entries = []
    for name, parts in found.parts.items():
        size = sum(part.numel() * part.element_size() for part in parts)
        entries.append((name, dtype_name(parts[0].dtype), shapes.get(name, []), size))
    with made_whole(target) as made, BlockWriter(made) as file:
        file.write(safetensors_header(entries, {})[0])
        for name, parts in found.parts.items():
            for number, part in enumerate(parts):
                check_finite(source, name, part, number)
                for piece in tensor_bytes(part):
                    file.write(piece)


def _with_rows(found: Imported) -> dict[str, list]:  # type: ignore[type-arg]
    return {name: parts for name, parts in found.parts.items() if parts[0].dim()}
