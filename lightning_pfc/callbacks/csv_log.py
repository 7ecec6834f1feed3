"""metrics.csv, which a resumed run continues."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning_utilities.core.rank_zero import rank_zero_only
from typing_extensions import override

from lightning_pfc.checked import checked
from lightning_pfc.storage.whole_files import write_whole

_log = logging.getLogger(__name__)
_ENDS = str.maketrans("\n\r", "  ")  # a header of two lines would be read as none, and all rows left out


@checked
class CSVLogger(Logger):
    """Writes ``SAVE_DIR/metrics.csv``: one row per logged step, one column per name, empty where nothing was logged.

    A file that is there already is continued: rows before the first step that is logged now stay, later ones are those
    of an interrupted run and are written anew. Of that first step what is logged again is: a run that goes on behind a
    batch validates under the number of that batch. Only rank 0 writes.

    Args:
        save_dir: the folder.
        flush_every: rows between writes.
    """

    def __init__(self, save_dir: str | os.PathLike[str], flush_every: int = 50) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self.flush_every = flush_every
        self._columns: list[str] = []
        self._pending: list[dict[str, Any]] = []
        self._first: int | None = None  # step that this start has logged
        self._earlier: list[dict[str, Any]] = []  # what an earlier one has logged there, and this one not again so far
        self._own: list[dict[str, Any]] = []  # beside them

    @property
    @override
    def name(self) -> str:
        return ""

    @property
    @override
    def version(self) -> str:
        return ""

    @property
    @override
    def save_dir(self) -> str:
        return str(self.path.parent)

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        number = step if step is not None else 0
        row: dict[str, Any] = {name.translate(_ENDS): float(value) for name, value in metrics.items()}
        row["step"] = number
        if self._first is None or (number == self._first and self._earlier):
            self._log_again(row, number)
            return
        self._earlier = []
        self._pending.append(row)
        if len(self._pending) >= self.flush_every:
            self.save()

    @override
    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the whole config."""

    @override
    @rank_zero_only
    def save(self) -> None:
        if not self._pending:
            return
        if any(name not in self._columns for row in self._pending for name in row):
            self._write([*read_metrics(self.path), *self._pending])
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns, restval="").writerows(self._pending)
        self._pending = []

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    def _log_again(self, row: dict[str, Any], number: int) -> None:
        """Write a row in place of what an earlier start has logged under its names, and of all that came later."""
        there = read_metrics(self.path) if self.path.exists() else []
        if self._first is None:
            self._first, self._earlier = number, [old for old in there if old["step"] == number]
        names = row.keys() - {"step"}
        rest = ({name: value for name, value in old.items() if name not in names} for old in self._earlier)
        self._earlier = [old for old in rest if len(old) > 1]
        self._own.append(row)
        self._write([*(old for old in there if old["step"] < number), *self._earlier, *self._own])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """The whole file anew, at once: a reader never sees half of it."""
        names = {name for row in rows for name in row}
        self._columns = ["step", *sorted(names - {"step"})]
        with write_whole(self.path, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Rows of a ``metrics.csv``, each with what was logged at its ``step``.

    The process that writes it may end within a line: a last line without an end is left out, since half a number looks
    like a whole one. So is any other line that is no row, with a warning.
    """
    text = Path(path).read_bytes().decode(errors="replace")
    # Not splitlines, which ends a line at U+2028 or a form feed too: a name of a metric may hold one.
    first, *lines = [line.removesuffix("\r") for line in text.split("\n")[:-1]] or [""]
    header = _fields(first)
    rows = [row for line in lines if (row := _row(header, _fields(line))) is not None]
    if len(rows) < len(lines):
        _log.warning("%s: %d lines are no rows of metrics, and are left out.", path, len(lines) - len(rows))
    return rows


def _fields(line: str) -> list[str]:
    """Of one line: a stray quotation mark, of a file system that has crashed, must not take the lines below with it."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _row(header: list[str], line: list[str]) -> dict[str, Any] | None:
    try:
        named = dict(zip(header, line, strict=True))
        numbers: dict[str, Any] = {name: float(value) for name, value in named.items() if value and name != "step"}
        return numbers | {"step": int(named["step"])}
    except (ValueError, KeyError):
        return None
