"""One connection to the database of a gallery: its transactions, and its errors in words."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from lightning_pfc.data.errors import missing_library
from lightning_pfc.gallery.errors import GalleryBusyError, GalleryError, GalleryFullError, NotAGalleryError
from lightning_pfc.gallery.postgres_schema import LOCK, VERSION

_TIMEOUT_MS = 10_000


class PostgresDatabase:
    """A connection that is shared by all threads, and made again after it broke.

    Args:
        address: ``postgresql://USER@HOST/DATABASE``.

    Raises:
        GalleryError: if the database cannot be reached.
    """

    def __init__(self, address: str) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise missing_library("psycopg[binary]", "A gallery in PostgreSQL") from error
        self._psycopg: Any = psycopg
        self._address = address
        self.name = re.sub(r"//[^@/]*@", "//", address)  # no password in any message
        self._lock = threading.RLock()
        self._connection: Any = None
        with self.reading():
            pass

    def close(self) -> None:
        """Let go of the connection."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Everything in the block or nothing of it; one writer at a time, in all processes."""
        with self._lock, self._explained():
            connection = self._connected()
            nested = connection.info.transaction_status != self._psycopg.pq.TransactionStatus.IDLE
            with contextlib.nullcontext() if nested else connection.transaction():
                if not nested:
                    connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
                yield

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """No other thread in between, and errors that a user can read."""
        with self._lock, self._explained():
            self._connected()
            yield

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """One statement, in a block of :meth:`reading` or :meth:`writing`; its cursor."""
        return self._connected().execute(statement, values or None)

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a question."""
        with self.reading():
            found: list[tuple[Any, ...]] = self.execute(statement, values).fetchall()
            return found

    def _connected(self) -> Any:
        if self._connection is None or self._connection.closed:
            self._connection = self._psycopg.connect(self._address, autocommit=True, connect_timeout=10)
            for setting in (
                "SET search_path TO pfc_gallery, public",
                f"SET lock_timeout = {_TIMEOUT_MS}",
                "SET synchronous_commit = on",
            ):
                self._connection.execute(setting)
        return self._connection

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        errors = self._psycopg.errors
        try:
            yield
        except errors.LockNotAvailable as error:
            raise GalleryBusyError(f"{self.name} is being written by another process; try again.") from error
        except errors.DiskFull as error:
            raise GalleryFullError(f"{self.name}: the disk is full; nothing was changed. Make room there.") from error
        except (errors.UndefinedTable, errors.InvalidSchemaName) as error:
            raise NotAGalleryError(f"{self.name} has no gallery; make one with `pfc-gallery build`.") from error
        except self._psycopg.IntegrityError:
            raise  # the store knows what it means
        except self._psycopg.Error as error:
            raise GalleryError(
                f"{self.name}: {str(error).strip().splitlines()[0] if str(error) else error!r}."
            ) from error

    # --- settings -----------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, str]:
        """All settings by name.

        Raises:
            NotAGalleryError: if there are none, or of a newer version.
        """
        found = dict(self.rows("SELECT name, value FROM settings"))
        if int(found.get("version", 0)) > VERSION:
            raise NotAGalleryError(
                f"{self.name} is a gallery of version {found['version']}, and this is for version {VERSION}: install a "
                "newer lightning-pfc."
            )
        return found

    def set(self, name: str, value: str | int) -> None:
        """Change a setting, in a block of :meth:`writing`."""
        self.execute(
            "INSERT INTO settings VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, str(value)),
        )
