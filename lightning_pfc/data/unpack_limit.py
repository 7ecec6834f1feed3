"""What a packed file may unpack to: bounded before room is made for it."""

from __future__ import annotations

import os

from lightning_pfc.data.errors import FormatError

ALWAYS = 1 << 28  # bytes that anything may unpack to
TIMES = 32  # and beyond them so many times its packed size


def check_unpacked(packed: int, unpacked: int, *, what: str, path: str | os.PathLike[str]) -> None:
    """Refuses what would unpack to far more than images, embeddings and labels do.

    Args:
        packed: bytes in the file.
        unpacked: bytes that the file says they become.
        what: is unpacked, for the message.
        path: of the file.

    Raises:
        FormatError: it is more than 256 MiB and more than 32 times the packed size, or negative.
    """
    if unpacked < 0 or packed < 0 or unpacked > ALWAYS + TIMES * packed:
        raise FormatError(
            f"{what} says that it unpacks from {packed:,} to {unpacked:,} bytes, which no data of this kind does; if "
            "it is right, store it without compression",
            path=path,
        )
