"""What a store of a gallery does: identities, pictures, vectors, the truth from which every index is made.

``sqlite_store`` and ``postgres_store`` do it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from lightning_pfc.gallery.records import Identity, Match, ModelRecord, NewPicture, Photos, VectorBatch, Vectors


class Position(NamedTuple):
    """How far an index has followed a store.

    Attributes:
        picture: the last picture that it knows.
        removal: the last removal.
        generation: of the store; a store that forgets its removals begins another, and indexes start over.
    """

    picture: int = 0
    removal: int = 0
    generation: int = -1


class Pending(NamedTuple):
    """A picture that waits for its next vector: number, where it came from, identity, digest, what to show of it."""

    picture: int
    source: str
    identity: str
    digest: str
    preview: bytes | None


class Store(Protocol):
    """Identities and their pictures. Every change is on the disk, whole, when its method returns.

    Safe to be called from several threads.
    """

    @property
    def model(self) -> ModelRecord:
        """The model that made the vectors."""

    @property
    def pooling(self) -> str:
        """How the scores of an identity's pictures become one: "max" or "mean"."""

    @property
    def photos(self) -> Photos | None:
        """Whether the pictures are photos, which need not be said again to add or to search; None: nobody said."""

    def close(self) -> None:
        """Let go of everything."""

    def transaction(self) -> AbstractContextManager[None]:
        """Several changes as one: all of them are on the disk when the block ends, or none is."""

    # --- changes ------------------------------------------------------------------------------------------------------

    def enrol(self, name: str, pictures: Sequence[NewPicture], metadata: Mapping[str, Any] | None = None) -> Identity:
        """A new identity.

        Raises:
            IdentityExistsError: if there is one of this name.
        """

    def add_pictures(self, name: str, pictures: Sequence[NewPicture]) -> Identity:
        """More pictures of an identity.

        Raises:
            UnknownIdentityError: if there is none of this name.
        """

    def has(self, name: str, digest: str) -> bool:
        """Whether an identity has a picture already."""

    def extend(self, pictures: Iterable[tuple[str, NewPicture]]) -> int:
        """Many pictures by their identities' names, made where they are missing; returns how many there were.

        They are committed some thousand at a time; one batch is whole or absent. What is there already is left as it
        is, so that a job that was killed may begin again.
        """

    def remove(self, name: str) -> None:
        """Forget an identity: its numbers are overwritten on the disk when this returns.

        Raises:
            UnknownIdentityError: if there is none of this name.
        """

    def remove_picture(self, picture: int) -> None:
        """Forget a picture, likewise; an identity may be left without any.

        Raises:
            UnknownIdentityError: if there is no such picture.
        """

    def rename(self, name: str, new: str) -> Identity:
        """Call an identity otherwise.

        Raises:
            UnknownIdentityError, IdentityExistsError: if there is none of the one name, or one of the other.
        """

    def set_metadata(self, name: str, metadata: Mapping[str, Any]) -> Identity:
        """What its owner wants to remember of an identity, in place of what was there."""

    # --- requests that may come twice ---------------------------------------------------------------------------------

    def answer(self, key: str, request: str) -> str | None:
        """What a request of this key was answered, or None if it is the first.

        Raises:
            GalleryError: if the key was used for another request.
            UnknownIdentityError: if all pictures that it answered with have been removed.
        """

    def put_answer(self, key: str, request: str, answer: str) -> None:
        """Remember an answer for some days, in the transaction of what it answers.

        It is a JSON object with the numbers of pictures as ``pictures``; with the last of them it is forgotten.
        """

    # --- moving to another model --------------------------------------------------------------------------------------

    def begin_next(self, model: ModelRecord) -> None:
        """Start to move to another model, or go on with it; the old vectors serve until :meth:`adopt_next`.

        Raises:
            GalleryError: if the gallery is on its way to a third model, or has this one already.
        """

    def pending(self, after: int = 0, limit: int = 1000) -> list[Pending]:
        """Pictures that the next model has not seen yet, ascending from picture ``after``."""

    def put_next(self, model: ModelRecord, vectors: Sequence[tuple[int, Vectors]]) -> None:
        """Vectors of the next model by the numbers of their pictures; numbers that are gone are left out.

        Raises:
            GalleryError: if the gallery is on its way to another model, or to none, since somebody gave this one up.
        """

    def adopt_next(self) -> None:
        """Let the next model serve, and forget the old one's vectors.

        Raises:
            GalleryError: if a picture is left that the next model has not seen.
        """

    def abort_next(self) -> None:
        """Stay with the model that serves, and forget the vectors of the next one.

        Raises:
            GalleryError: if the gallery is not on its way to another model.
        """

    # --- care ---------------------------------------------------------------------------------------------------------

    def verify(self) -> list[str]:
        """What is wrong with the gallery, a line each; reads all of it. Empty: nothing."""

    def compact(self) -> None:
        """Give back the room of what was deleted, and overwrite what a process that was killed left of it."""

    def backup(self, folder: Path) -> None:
        """A copy of the gallery as it is now, while others go on with it; whole or absent."""

    # --- questions ----------------------------------------------------------------------------------------------------

    def identity(self, name: str) -> Identity:
        """One identity by its name.

        Raises:
            UnknownIdentityError: if there is none.
        """

    def identities(self, after: str = "", limit: int = 1000) -> list[Identity]:
        """Identities in the order of their names, those after ``after``."""

    def preview(self, picture: int) -> bytes | None:
        """The image to show of a picture, or None."""

    def bytes_on_disk(self) -> int:
        """What the gallery takes."""

    def count(self) -> tuple[int, int]:
        """How many identities, and how many pictures."""

    # --- for an index -------------------------------------------------------------------------------------------------

    def vectors(self, since: Position) -> Iterator[VectorBatch]:
        """Unit vectors of the pictures that came after ``since``, ascending, in batches."""

    def removed(self, since: Position) -> npt.NDArray[np.int64]:
        """Numbers of the pictures that were removed after ``since``."""

    def position(self) -> Position:
        """How far the store has come."""

    def vectors_of(self, pictures: npt.NDArray[np.int64]) -> Vectors:
        """Unit vectors (n, D) of pictures by their numbers; a row of NaN for one that is gone."""

    def names_of(self, identities: npt.NDArray[np.int64]) -> dict[int, str]:
        """Names by the numbers of identities."""


@runtime_checkable
class SearchingStore(Protocol):
    """A store that searches where its vectors lie."""

    def nearest(self, unit: Vectors, k: int) -> list[Match]:
        """The ``k`` identities nearest to a unit vector (D,), best first."""

    def position(self) -> Position:
        """How far the store has come."""
