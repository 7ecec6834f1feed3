"""The checkpoint of one process: one plain file that ``torch.load`` reads, with checksums of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any, cast

import torch

from lightning_pfc.checkpoint.archive import check_archive, check_checkpoint, check_records, has_comment, load_archive
from lightning_pfc.checkpoint.blocks import BlockWriter
from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.publish import prepare_file, publish, remove
from lightning_pfc.checkpoint.seal import Seal, SealWriter, read_seal
from lightning_pfc.storage.regular import open_regular

OWN = "lightning_pfc"  # the key of what this package adds to a checkpoint


def save_file(target: Path, checkpoint: dict[str, Any]) -> None:
    """Write one file: streamed, sealed, forced to the disk, and under its name only when it is complete.

    Tensors are written from where they are: those in memory-mapped files never pass through memory of the process.

    Raises:
        CheckpointError: if it could not be written; whatever had the name before is still there.
    """
    made = prepare_file(target)
    try:
        with BlockWriter(made) as file:
            writer = SealWriter(file.write)
            torch.save(checkpoint, cast(IO[bytes], writer))
            writer.finish()
        publish(made, target)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint {target} could not be written ({error}). What was there before is untouched; see that "
            "the disk has room and may be written, then resume."
        ) from error
    finally:
        remove(made)


def load_file(
    path: Path,
    *,
    weights_only: bool = True,
    map_location: Any = "cpu",
    share: tuple[int, int] = (0, 1),
    check: bool = True,
) -> dict[str, Any]:
    """Read one file, its checksums compared. Its tensors stay in it, and are read as they are touched.

    Args:
        path: of a checkpoint of one process, or any that Lightning has written.
        weights_only: False runs code that the file names.
        map_location: as in ``torch.load``.
        share: (rank, ranks) where several processes read one file: each compares a part of it.
        check: False compares nothing.

    Raises:
        FileNotFoundError: if there is nothing.
        CheckpointError: naming the file, if it is damaged, no checkpoint, or holds more than tensors and plain values.
    """
    try:
        check_file(path, share if check else None)
        content = load_archive(path, weights_only=weights_only, map_location=map_location, mmap=True)
        check_checkpoint(content)
    except FileNotFoundError:
        raise FileNotFoundError(f"checkpoint {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}. Resume from another checkpoint.") from error
    return cast("dict[str, Any]", content)


def check_file(path: Path, share: tuple[int, int] | None = (0, 1)) -> Seal | None:
    """Compare every byte of a file with its checksums: our own, or those that a zip file has of its records.

    Args:
        path: the file.
        share: (i, n) checks every n-th part, from part i on; None looks at the table of contents only.

    Returns:
        Our own checksums, if it has any.

    Raises:
        OSError, ValueError: if it cannot be read, or does not match.
    """
    with open(open_regular(path), "rb", buffering=0) as file:
        seal = read_seal(file)
        if seal is not None and share is not None:
            seal.check(file, share)
        records = check_archive(file, os.fstat(file.fileno()).st_size)
        if seal is None and has_comment(file):
            raise ValueError("its checksums are damaged")
        if seal is None and share is not None:
            check_records(file, records, share)
    return seal
