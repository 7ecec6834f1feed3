"""The table of contents of a checkpoint folder: JSON, written last, with a checksum of every block of every file."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.manifest_check import check_layout
from lightning_pfc.checkpoint.manifest_entries import ChunkEntry, FileEntry, TensorEntry
from lightning_pfc.names.renamed import renamed_names
from lightning_pfc.storage.regular import open_regular

MANIFEST = "manifest.json"
FORMAT = "lightning-pfc checkpoint"
VERSION = 1
BLOCK = 8 << 20  # bytes under one checksum
_MOST_BYTES = 1 << 28  # of a manifest: the checksums of 100 TB take less


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint folder holds.

    Attributes:
        tensors: by path within the checkpoint, such as ``state_dict/head.weight``.
        files: by name within the folder.
        world_size: how many ranks wrote it.
        info: what is nice to know without opening a file: epoch, step, versions.
    """

    tensors: dict[str, TensorEntry]
    files: dict[str, FileEntry]
    world_size: int
    info: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it into a folder and force it to the disk."""
        body = {"format": FORMAT, "version": VERSION, **asdict(self)}
        text = json.dumps({"sha256": _digest(body), **body}, indent=1)
        with open(folder / MANIFEST, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Read and check it; the other files are not opened.

        Raises:
            CheckpointError: if it is missing, damaged, of another format, or says what cannot be: a file or a row that
                is nowhere, twice, or behind the end of a file.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(_read_text(path, folder))
            if content.get("format") != FORMAT:
                raise ValueError("it is not the manifest of a lightning-pfc checkpoint")
            if content.get("version") != VERSION:
                raise ValueError(f"it has version {content.get('version')!r}; this release reads version {VERSION}")
            if content.pop("sha256", None) != _digest(content):
                raise ValueError("its checksum does not match: it was altered or cut short")
            manifest = Manifest._of(content)
            check_layout(
                manifest.tensors, manifest.files, manifest.world_size, manifest.info, block=BLOCK, own_name=MANIFEST
            )
        except FileNotFoundError:
            raise CheckpointError(
                f"{path} does not exist: {folder} is not a complete checkpoint of this package."
            ) from None
        except Exception as error:  # whatever a file holds, what leaves here is one kind of error
            what = str(error) if isinstance(error, OSError | ValueError | CheckpointError) else type(error).__name__
            raise CheckpointError(f"{path} cannot be used: {what}. Resume from another checkpoint.") from error
        return manifest

    @staticmethod
    def _of(content: dict[str, Any]) -> Manifest:
        return Manifest(
            tensors={
                key: TensorEntry(**{**entry, "chunks": [ChunkEntry(**chunk) for chunk in entry["chunks"]]})
                for key, entry in content["tensors"].items()
            },
            files={name: FileEntry(**entry) for name, entry in content["files"].items()},
            world_size=content["world_size"],
            info=content["info"],
        )


def _read_text(path: Path, folder: Path) -> str:
    with open(open_regular(path, folder), "rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > _MOST_BYTES:
            raise ValueError(f"it has {size} bytes, and a manifest has at most {_MOST_BYTES}")
        return file.read(_MOST_BYTES).decode("utf-8")


def is_checkpoint_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder that says it is a complete checkpoint of this package."""
    return os.path.isfile(os.path.join(path, MANIFEST))


def unfinished_folder(path: str | os.PathLike[str]) -> CheckpointError:
    """The error for a folder where a checkpoint is looked for, and that is none."""
    return CheckpointError(
        f"{os.fspath(path)} is a folder without {MANIFEST}: it is not a checkpoint of this package, or not a complete "
        "one. Resume from another checkpoint."
    )


def check_block(folder: Path, name: str, entry: FileEntry, index: int, data: Any) -> None:
    """Compare a block with its checksum.

    Raises:
        CheckpointError: naming the file, if they differ.
    """
    if index >= len(entry.crc32) or zlib.crc32(data) != entry.crc32[index]:
        raise CheckpointError(
            f"{folder / name} is damaged: bytes from {index * BLOCK} on do not match their checksum. Resume from "
            "another checkpoint, or copy this one again."
        )


def check_size(folder: Path, name: str, entry: FileEntry) -> None:
    """Compare a file's size with what was written.

    Raises:
        CheckpointError: naming the file, if it is missing, of another size, or no ordinary file of this folder.
    """
    os.close(open_checked(folder, name, entry))


def open_checked(folder: Path, name: str, entry: FileEntry) -> int:
    """A file descriptor for reading one file of a checkpoint.

    Raises:
        CheckpointError: naming the file, if it is missing, of another size, or no ordinary file of this folder.
    """
    path = folder / name
    try:
        handle = open_regular(path, folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{path} cannot be read: {reason}. Resume from another checkpoint.") from error
    size = os.fstat(handle).st_size
    if size != entry.size:
        os.close(handle)
        raise CheckpointError(
            f"{path} is damaged: it has {size} bytes, {entry.size} were written. Resume from another checkpoint, or "
            "copy this one again."
        )
    return handle


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


_ENTRIES = "lightning_pfc.checkpoint.manifest_entries"
__getattr__ = renamed_names(__name__, {name: f"{_ENTRIES}:{name}" for name in ("dtype_name", "dtype_of")})
