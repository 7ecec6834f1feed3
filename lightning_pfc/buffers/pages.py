"""Anonymous memory from the system itself, with advice about its pages."""

from __future__ import annotations

import mmap
from contextlib import suppress

HUGE_PAGES: int | None = getattr(mmap, "MADV_HUGEPAGE", None)
"""2 MiB a page: one fault where there would be 512."""

SMALL_PAGES: int | None = getattr(mmap, "MADV_NOHUGEPAGE", None)
"""4 KiB a page: memory is taken where it is written, and hardly anywhere else."""


def has_pages() -> bool:
    """Whether the system gives anonymous memory."""
    return hasattr(mmap, "MAP_ANONYMOUS")


def anonymous_pages(size: int, *advice: int | None) -> mmap.mmap:
    """Zeros of which a page costs memory when it is first written.

    Private: the pages of a shared mapping would be taken when they are read, too.

    Args:
        size: bytes.
        advice: of ``mmap.madvise``; what the system does not know (None, or refused) is left out.
    """
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for word in advice:
        if word is not None:
            with suppress(OSError):  # advice only: a kernel that does not know it goes on without
                pages.madvise(word)
    return pages
