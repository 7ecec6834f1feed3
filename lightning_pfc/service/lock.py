"""One service for one gallery."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_pfc.gallery.errors import GalleryBusyError, GalleryError

_LOCK, _HOLDER = "service.lock", "service.holder"


def _cannot_write(gallery: str, error: OSError) -> GalleryError:
    return GalleryError(
        f"{gallery}: {error.strerror or error}, where a service that enrols writes; --read-only serves it as it is."
    )


@contextlib.contextmanager
def service_lock(gallery: str | None) -> Iterator[None]:
    """Hold a gallery's folder for a service; the system lets go of it when the process ends, however it does.

    Raises:
        GalleryBusyError: if another service holds it; names it.
        GalleryError: if nothing can be written there.
    """
    if gallery is None or "://" in gallery or not Path(gallery).is_dir():
        yield
        return
    folder = Path(gallery)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with contextlib.suppress(OSError):
            holder = (folder / _HOLDER).read_text(encoding="utf-8")[:200]
            raise GalleryBusyError(f"{gallery} is served already by {holder}; end that, or serve another.") from None
        raise GalleryBusyError(f"{gallery} is served already by another process; end that, or serve another.") from None
    except OSError as error:
        raise _cannot_write(gallery, error) from error
    try:
        try:
            (folder / _HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        except OSError as error:
            raise _cannot_write(gallery, error) from error
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / _HOLDER).unlink()
        lock.release()
