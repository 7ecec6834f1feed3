"""An export's folder: it appears whole or not at all, and every file is the one that was checked."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lightning_pfc.deploy.description import FILE, ModelDescription
from lightning_pfc.deploy.errors import ExportError
from lightning_pfc.storage.makers import hidden_path, left_behind
from lightning_pfc.storage.whole_files import errors_of, sha256


@contextlib.contextmanager
def publish(target: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """A folder to write into; it gets its name when the block ends, and is gone if the block raises.

    Args:
        target: the folder to be.
        replace: put it in the place of one that is there.

    Raises:
        ExportError: something lies there already.
    """
    final = Path(target)
    if final.is_symlink() or (final.exists() and not _is_export(final)):
        raise ExportError("is no export, so it is not replaced; give another --out", final)
    if not replace and final.exists():
        raise ExportError("is there already; give another --out, or --force to replace it", final)
    final.parent.mkdir(parents=True, exist_ok=True)
    _sweep(final)
    partial = hidden_path(final)
    try:
        with errors_of(partial, final), _own_errors_of(partial, final):
            partial.mkdir()
            yield partial
            for file in partial.rglob("*"):
                _to_disk(file)
            _to_disk(partial)
            _move(partial, final)
        _to_disk(final.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _own_errors_of(partial: Path, final: Path) -> Iterator[None]:
    """Within it, what cannot be exported names the folder to be too."""
    try:
        yield
    except ExportError as error:
        error.args = tuple(str(each).replace(str(partial), str(final)) for each in error.args)
        error.path = error.path and error.path.replace(str(partial), str(final))
        raise


def _is_export(folder: Path) -> bool:
    return folder.is_dir() and ((folder / FILE).is_file() or not any(folder.iterdir()))


def _move(partial: Path, final: Path) -> None:
    if not final.exists():
        partial.rename(final)
        return
    old = hidden_path(final, ".old")
    final.rename(old)
    try:
        partial.rename(final)
    except OSError:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sweep(final: Path) -> None:
    """Take away what killed exports have left here; the old one of an export killed in its last moment returns."""
    for old in left_behind(final.parent, ".old", of=final):
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(final)
    for part in left_behind(final.parent, of=final):
        shutil.rmtree(part, ignore_errors=True)


def _to_disk(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def checksums(folder: Path) -> dict[str, str]:
    """The digest of every file of a folder but its description, by name."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != FILE)
    return {path.name: sha256(path) for path in files}


def open_folder(folder: str | os.PathLike[str]) -> ModelDescription:
    """The description of an export.

    Raises:
        ExportError: it is no export, or its description is damaged.
    """
    path = Path(folder)
    if path.suffix.lower() == ".onnx" and path.is_file():
        raise ExportError(
            "is an ONNX file alone, which does not say how pictures become its input; give the folder that pfc-export "
            "wrote (pfc-embed, pfc-eval embedder=onnx and pfc-data overlap take such a file)",
            path,
        )
    if not path.is_dir():
        raise ExportError(
            f"is {'a file' if path.exists() else 'not there'}; give the folder that pfc-export wrote", path
        )
    if not (path / FILE).is_file():
        raise ExportError(f"holds no {FILE}; give the folder that pfc-export wrote", path)
    return ModelDescription.read(path / FILE)


def checked_file(folder: str | os.PathLike[str], name: str, description: ModelDescription) -> Path:
    """The path of a file of an export, which is the one that was exported.

    Raises:
        ExportError: it is missing, or its digest is another one.
    """
    path = Path(folder) / name
    wanted = description.sha256.get(name)
    if wanted is None:
        raise ExportError(f"{FILE} has no sha256 of {name}; export again", folder)
    if not path.is_file():
        raise ExportError("is missing; export again, or copy the whole folder", path)
    found = sha256(path)
    if found != wanted:
        raise ExportError(
            f"was changed after the export (sha256 {found[:12]}..., {FILE} says {wanted[:12]}...); export again, or "
            "copy the folder again",
            path,
        )
    return path
