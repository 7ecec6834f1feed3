"""The control channel: a small message of every rank to every rank, on the CPU, before any large collective.

Sizes travel here, and so do errors. A rank that found bad input says so instead of silently leaving the others in a
collective that can never end; a rank that is somewhere else in the program is noticed by its tag, or by its absence.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from lightning_pfc.distributed.collectives import all_gather_rows

_NUMBERS = 8  # int64 numbers in a message
_RIDING = 4  # and of somebody else who rides with it
_TEXT = 920  # bytes of text in a message: the tag, or an error
_HEAD = 8 * (1 + _NUMBERS + 1 + _RIDING)
MESSAGE_BYTES = _HEAD + _TEXT
_KINDS: tuple[type[Exception], ...] = (RuntimeError, ValueError, TypeError, FloatingPointError, OSError)


class Rider(NamedTuple):
    """Numbers that go with the next message, whoever sends it, on every rank alike.

    Attributes:
        numbers: up to 4 integers for the others.
        judge: called on every rank with those of all ranks, by rank, each padded with zeros to 4; what it raises it has
            to raise on every rank. It may use the control channel's group.
    """

    numbers: Sequence[int]
    judge: Callable[[list[list[int]]], None]


class _Message(NamedTuple):
    """Kind of an error or -1, its text or the tag, numbers, and those of a rider; None: nobody rides."""

    kind: int
    text: str
    numbers: list[int]
    riding: list[int] | None


class Agreement:
    """One exchange of small messages between all ranks of a group.

    Args:
        group: a process group with a CPU backend (gloo), or None for a single process.
        rank: this rank within the group.
        world_size: ranks in the group.
        timeout: how long a rank waits for the others, the same that the group was made with.
        store: a key-value store that all ranks share; with it, a time-out names the ranks that did not arrive.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        rank: int = 0,
        world_size: int = 1,
        timeout: timedelta = timedelta(minutes=10),
        store: Any = None,
    ) -> None:
        self.group = group
        self.rank = rank
        self.world_size = world_size
        self.timeout = timeout
        self.rider: Rider | None = None
        """What goes with the next message, which takes it off; it stays until every rank has one."""
        self._store = store
        self._calls = 0
        self._raised: BaseException | None = None

    def exchange(self, tag: str, values: Sequence[int] = (), error: BaseException | None = None) -> list[list[int]]:
        """Tell every rank where this one is, and learn the same of all others: one all-gather of 1 KiB on the CPU.

        Args:
            tag: the place in the program; all ranks must be at the same one.
            values: up to 8 integers for the others.
            error: what went wrong here, if anything did.

        Returns:
            The values of every rank, by rank, each padded with zeros to 8.

        Raises:
            ValueError, TypeError, FloatingPointError, OSError, RuntimeError: on *every* rank, when any rank passed an
                error (of the same type, the message naming the rank), when the tags differ, or when a rank did not
                arrive within the time-out.
        """
        try:
            return self._exchange(tag, values, error)
        except BaseException as failure:
            self._raised, self.rider = failure, None
            raise

    def knows(self, error: BaseException) -> bool:
        """Whether this error came out of :meth:`exchange`: then every rank has raised, and none needs to be told."""
        return error is self._raised

    def in_other_words(self, error: BaseException) -> BaseException:
        """``error``, which says what :meth:`exchange` has raised a moment ago, and is known like it."""
        self._raised = error
        return error

    def _exchange(self, tag: str, values: Sequence[int], error: BaseException | None) -> list[list[int]]:
        if len(values) > _NUMBERS:
            raise ValueError(f"values has {len(values)} numbers; at most {_NUMBERS} fit a message.")
        if self.group is None:
            self.rider = None
            if error is not None:
                raise error
            return [list(values) + [0] * (_NUMBERS - len(values))]
        self._calls += 1
        mine = _pack(tag, values, error, self.rider)
        start = time.monotonic()
        try:
            gathered = all_gather_rows(mine[None], self.world_size, self.group)
        except RuntimeError as failure:
            raise RuntimeError(self._absence(tag, time.monotonic() - start)) from (error or failure)
        messages = [_unpack(row) for row in gathered]
        failed = [(r, each.kind, each.text) for r, each in enumerate(messages) if each.kind >= 0]
        if failed:
            if error is not None:
                raise error
            r, kind, text = failed[0]
            raise _KINDS[kind](f"rank {r}: {text}")
        rider, riding = self.rider, [each.riding for each in messages if each.riding is not None]
        if rider is not None and len(riding) == len(messages):
            self.rider = None
            rider.judge(riding)
        tags = [each.text for each in messages]
        if len(set(tags)) > 1:
            places = "; ".join(f"rank {r} is at '{text}'" for r, text in enumerate(tags))
            raise RuntimeError(
                f"The ranks have left step with each other: {places}. Every rank must call the same things in the same "
                "order: no head inside `if rank == 0`, no training_step that returns None on some ranks only."
            )
        return [each.numbers for each in messages]

    def abort(self, error: BaseException, timeout: timedelta = timedelta(seconds=10)) -> None:
        """Tell the ranks that wait in :meth:`exchange` that this one has failed. Bounded in time; never raises."""
        self.rider = None
        if self.group is None:
            return
        with contextlib.suppress(Exception):
            message = _pack("aborted", (), error)[None]
            out = [torch.empty_like(message) for _ in range(self.world_size)]
            work = dist.all_gather(out, message, group=self.group, async_op=True)
            if work is not None:
                work.wait(timeout)

    def _absence(self, tag: str, waited: float) -> str:
        """The message for a time-out or a lost connection, naming the absent ranks where a store can tell."""
        absent = "at least one rank"
        if self._store is not None:
            with contextlib.suppress(Exception):
                key = f"lightning_pfc/waiting/{self._calls}"
                self._store.set(f"{key}/{self.rank}", tag)
                time.sleep(min(2.0, self.timeout.total_seconds()))  # the others time out a moment later
                missing = [r for r in range(self.world_size) if not self._store.check([f"{key}/{r}"])]
                if missing:
                    absent = "rank " + ", ".join(map(str, missing))
        return (
            f"rank {self.rank} waited {waited:.1f} s at '{tag}' for {absent}, which never came: "
            "it has died, is stuck, or does not call what the others call. Look at its output; if it is only slow, "
            "give a longer timeout, PartialFCStrategy(timeout=...)."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Agreement:
        return self  # a process group cannot be copied, and a copied head talks to the same ranks


def _pack(tag: str, values: Sequence[int], error: BaseException | None, rider: Rider | None = None) -> torch.Tensor:
    kind = -1
    if error is not None:
        kind = next((i for i, cls in enumerate(_KINDS) if i and isinstance(error, cls)), 0)
        text = str(error) if kind else f"{type(error).__name__}: {error}"
    else:
        text = tag
    riding = () if rider is None else rider.numbers
    numbers = [kind, *_padded(values, _NUMBERS), int(rider is not None), *_padded(riding, _RIDING)]
    head = torch.tensor(numbers, dtype=torch.int64).view(torch.uint8)
    raw = text.encode()[:_TEXT].decode(errors="ignore").encode()
    return torch.cat([head, torch.tensor(list(raw.ljust(_TEXT, b"\0")), dtype=torch.uint8)])


def _padded(values: Sequence[int], length: int) -> list[int]:
    return [*values, *[0] * (length - len(values))]


def _unpack(row: torch.Tensor) -> _Message:
    numbers = row[:_HEAD].clone().view(torch.int64).tolist()
    text = bytes(row[_HEAD:].tolist()).rstrip(b"\0").decode(errors="replace")
    values, (rides, *riding) = numbers[1 : 1 + _NUMBERS], numbers[1 + _NUMBERS :]
    return _Message(numbers[0], text, values, riding if rides else None)
