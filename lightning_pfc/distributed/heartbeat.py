"""Heartbeats: every rank knows within seconds that another one has died, is cut off or stands still, and which one.

A collective can only say that somebody did not come. So every process has a thread that tells the one on rank 0 over a
connection of its own where its main thread is, and hears from it that all is well; rank 0 sees a connection break, or
fall silent, or a rank stay behind the others, and tells everyone its name. Nothing here takes part in the training
itself: no collective, no lock that the main thread could wait for. Nothing that a stranger sends gets here: see
:mod:`lightning_pfc.distributed.door`.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any

from lightning_pfc.distributed.door import Door, addresses_of
from lightning_pfc.distributed.hub import Hub
from lightning_pfc.distributed.lines import Line, close_in_children
from lightning_pfc.distributed.pulse import Kind, Pace, Pulse
from lightning_pfc.distributed.spoke import Spoke
from lightning_pfc.distributed.watched import Watched

__all__ = ["Heartbeat", "Kind", "Pace", "Pulse"]


class Heartbeat(Watched):
    """This process's part: on rank 0 the hub, on the others a connection to it. Args: as of :class:`Watched`."""

    def listen(self, addresses: Sequence[str] | None = None) -> tuple[int, str]:
        """On rank 0: open a port until all others have come.

        Args:
            addresses: where the others look for rank 0, as numbers; by default those of ``localhost``.

        Returns:
            The port, and the secret that the others must know.

        Raises:
            OSError: if none of the addresses is this host's.
        """
        secret = secrets.token_hex(32)
        addresses = addresses_of("localhost") if addresses is None else addresses
        self.door = Door(addresses, secret, range(1, self.world_size), self._admit)
        self.door.open()
        return self.door.port, secret

    def connect(self, host: str, store: Any, name: str, meet: Callable[[], object]) -> None:
        """Begin on all ranks of a group; the secret goes through its store, and is taken out of it again.

        Rank 0 listens on the addresses by which the others know ``host``, and on no other.

        Args:
            host: where the others have found rank 0 already.
            store: of the process group.
            name: of this meeting, the same on all ranks, and another one each time.
            meet: a barrier, which raises on every rank if one does not come; called three times.
        """
        known = [] if self.rank == 0 else _known_addresses(host)
        store.set(f"{name}/{self.rank}", " ".join(known))
        meet()
        if self.rank == 0:
            texts = [bytes(store.get(f"{name}/{rank}")).decode() for rank in range(1, self.world_size)]
            try:
                port, secret = self.listen(list(dict.fromkeys(" ".join(texts).split())))
            except OSError as error:
                self.problem = f"rank 0 could not listen at {host}: {error}"
                port, secret = 0, ""
            store.set(name, " ".join([str(port), secret, *(self.door.addresses if self.door else ())]))
        meet()
        number, secret, *places = bytes(store.get(name)).decode().split(" ")
        meet()
        if self.rank == 0:
            store.delete_key(name)
        elif not set(known) & set(places):
            self.problem = f"rank 0 is not at {host} ({', '.join(known)}), where rank {self.rank} looked for it"
            return
        self.start(next((each for each in known if each in places), ""), int(number), secret)

    def start(self, host: str = "", port: int = 0, secret: str = "") -> None:
        """Begin; on ranks other than 0 with the address of rank 0. Returns at once, never raises."""
        for each in (self.wake, self._waker):
            close_in_children(each)
        target = Hub(self).run if self.rank == 0 else Spoke(self, host, port, secret).run
        self._thread = threading.Thread(target=target, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye: this rank is done, and its silence means nothing from now on."""
        self._end("")

    def fail(self, reason: str) -> None:
        """Tell the others that this rank is about to leave because of an error."""
        self._end(reason)

    def _end(self, reason: str) -> None:
        self.failure = reason
        self.said = True  # whatever comes now concerns a process that is leaving by itself
        if self.door is not None:
            self.door.close()  # first: whom it has welcomed must be among those that the hub takes leave of
        self.stopped.set()
        self._nudge()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(self.pace.interval + 2 if self.connected else 0.0)
        for each in (self.wake, self._waker):
            each.close()

    def _admit(self, rank: int, line: Line, about: Sequence[str]) -> None:
        self.arrivals.put((rank, line, about))
        self._nudge()

    def _nudge(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"x")


def _known_addresses(host: str) -> list[str]:
    try:
        return addresses_of(host)
    except OSError:
        return []
