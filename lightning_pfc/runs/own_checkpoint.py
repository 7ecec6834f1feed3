"""The checkpoint of a run folder that is its run's own: a folder may hold those of older runs, too."""

from __future__ import annotations

from pathlib import Path

from lightning_pfc.checkpoint.publish import newest_of_any_kind, run_of
from lightning_pfc.runs.claim import RECORD, read_record

LAST = Path("checkpoints") / "last.ckpt"


def own_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of the run that ``run.json`` of a folder names, ``last.ckpt`` if it is of that run.

    Where an older run has left its ``last.ckpt`` it keeps that name until a newer one saves, and for ever beside
    Lightning's own ``ModelCheckpoint``, which calls the newer one ``last-v1.ckpt``.
    Where ``run.json``, or the checkpoint itself, does not say whose it is, ``last.ckpt`` is taken.

    Args:
        folder: of the run.

    Returns:
        None where there is no ``last.ckpt``.

    Raises:
        ValueError: there are checkpoints, and all are of other runs.
    """
    last = folder / LAST
    record = read_record(folder)
    if not last.exists():
        return None
    owner = run_of(last)
    if record is None or owner in (None, record["run"]):
        return last
    if (own := newest_of_any_kind([last.parent], record["run"])) is not None:
        return own
    raise ValueError(
        f"{last} is of run {owner}, and {RECORD} beside it names run {record['run']}, which has saved nothing yet. "
        "Give the checkpoint itself to go on from the older run."
    )
