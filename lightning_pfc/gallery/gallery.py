"""A gallery: identities on the disk, and an index of them in memory that follows."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt
from typing_extensions import Self

from lightning_pfc.gallery.errors import GalleryError, OtherModelError, UnknownIdentityError
from lightning_pfc.gallery.followers import Searcher, follower
from lightning_pfc.gallery.records import GalleryInfo, Identity, Match, ModelRecord, NewPicture, Photos, as_unit
from lightning_pfc.gallery.sqlite_schema import VERSION
from lightning_pfc.gallery.sqlite_store import SqliteStore
from lightning_pfc.gallery.store import Store


class Gallery:
    """Enrolled identities, searched exactly. Safe to be used from several threads and, through one store, processes.

    What another process changes is seen by the next search. Use :meth:`open` and :meth:`create`.

    Args:
        store: what keeps the identities.
        precision: of the index in memory, "float16" or "8bit"; results are rescored in float32 in either case.
    """

    def __init__(self, store: Store, precision: str = "float16") -> None:
        self.store = store
        self._precision = precision
        self._follower: Searcher | None = None
        self._lock = threading.Lock()

    @classmethod
    def create(
        cls,
        folder: str | Path,
        model: ModelRecord,
        *,
        pooling: str = "max",
        precision: str = "float16",
        photos: Photos | None = None,
    ) -> Self:
        """A new, empty gallery.

        Args:
            folder: to be made.
            model: what makes the vectors.
            pooling: how the scores of an identity's pictures become one: "max" or "mean".
            precision: of the index.
            photos: whether pictures are photos; what adds to it or searches it from the command line goes by that.

        Raises:
            GalleryError: if there is one already, or the folder cannot be written.
        """
        return cls(SqliteStore.create(Path(folder), model, pooling, photos), precision)

    @classmethod
    def open(cls, folder: str | Path, *, precision: str = "float16", for_reading: bool = False) -> Self:
        """A gallery that exists.

        Args:
            folder: of the gallery.
            precision: of the index.
            for_reading: nothing is going to be changed, so a full disk and a place that cannot be written will do.

        Raises:
            NotAGalleryError: for a folder without one, a damaged file, or one of a newer version.
        """
        return cls(SqliteStore(Path(folder), for_reading=for_reading), precision)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the store and forget the index."""
        with self._lock:
            self._follower = None
        self.store.close()

    def check_model(self, model: ModelRecord) -> None:
        """Refuse vectors of another model.

        Raises:
            OtherModelError: with the way out.
        """
        own = self.store.model
        if model.sha256 != own.sha256:
            raise OtherModelError(
                f"this gallery was made with model {own.sha256[:12]} (width {own.width}), and {model.source} is "
                f"{model.sha256[:12]} (width {model.width}): use the first, or move the gallery with "
                "`pfc-gallery reembed`."
            )

    # --- changes ------------------------------------------------------------------------------------------------------

    def enrol(self, name: str, pictures: Sequence[NewPicture], metadata: Mapping[str, Any] | None = None) -> Identity:
        """A new identity; on the disk when this returns. Raises IdentityExistsError."""
        return self.store.enrol(name, pictures, metadata)

    def add_pictures(self, name: str, pictures: Sequence[NewPicture]) -> Identity:
        """More pictures of an identity, likewise. Raises UnknownIdentityError."""
        return self.store.add_pictures(name, pictures)

    def extend(self, pictures: Iterable[tuple[str, NewPicture]]) -> int:
        """Many pictures by the names of their identities, in batches; returns how many there were."""
        return self.store.extend(pictures)

    def remove(self, name: str) -> None:
        """Forget an identity, in the file and in the index, before this returns. Raises UnknownIdentityError."""
        self.store.remove(name)
        self._refresh()

    def remove_picture(self, picture: int) -> None:
        """Forget one picture, likewise."""
        if not 0 < picture < 1 << 63:  # beyond what a database counts
            raise UnknownIdentityError(f"there is no picture {picture}; `pfc-gallery list` says which there are.")
        self.store.remove_picture(picture)
        self._refresh()

    # --- questions ----------------------------------------------------------------------------------------------------

    def search(self, vector: npt.ArrayLike, k: int = 5) -> list[Match]:
        """The ``k`` identities nearest to a vector (D,), best first; fewer where there are fewer.

        The scores are cosines of float32 vectors, and no identity with a higher one is left out, whatever the
        precision of the index.

        Raises:
            ValueError: for a vector of another width, of zeros or of numbers that are not finite; for k below 1.
        """
        if k < 1:
            raise GalleryError(f"k={k} must be at least 1.")
        unit = as_unit(vector, self.store.model.width)
        with self._lock:
            return self._current().search(unit, k)

    def info(self) -> GalleryInfo:
        """Figures of the gallery."""
        identities, pictures = self.store.count()
        return GalleryInfo(
            version=VERSION,
            model=self.store.model,
            identities=identities,
            pictures=pictures,
            bytes_on_disk=self.store.bytes_on_disk(),
            pooling=self.store.pooling,
        )

    def warm_up(self) -> None:
        """Make the index now and not at the first search."""
        self._refresh(make=True)

    def _refresh(self, make: bool = False) -> None:
        with self._lock:
            if make or self._follower is not None:
                self._current()

    def _current(self) -> Searcher:
        if self._follower is None:
            self._follower = follower(self.store, self._precision)
        self._follower.catch_up()
        return self._follower
