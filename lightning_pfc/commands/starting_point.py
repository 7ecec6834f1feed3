"""Where a run begins: in a folder that is its own, and from which checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_info
from omegaconf import DictConfig

from lightning_pfc.callbacks.csv_log import read_metrics
from lightning_pfc.checkpoint.publish import newest_of_any_kind
from lightning_pfc.distributed.jobs import restart_count, step_host
from lightning_pfc.distributed.rendezvous import agree_on_text
from lightning_pfc.runs.claim import Claim, claimed
from lightning_pfc.storage.row_files import rows_of_run
from lightning_pfc.strategies import PartialFCStrategy


@contextlib.contextmanager
def own_folder(config: DictConfig, folder: Path, trainer: L.Trainer) -> Iterator[Claim]:
    """The run folder is this run's, its checkpoints have its id, and rows in files are its own."""
    if not config.fit:
        yield Claim("", False)
        return
    given = Path(str(config.ckpt_path)).absolute() if config.ckpt_path else None
    with claimed(folder, goes_on=bool(config.resume) or (given is not None and folder in given.parents)) as claim:
        if isinstance(trainer.strategy, PartialFCStrategy) and claim.run:
            trainer.strategy.run_id = claim.run
        with rows_of_run(claim.run or None):
            yield claim


def starting_point(config: DictConfig, folder: Path, trainer: L.Trainer, claim: Claim) -> str | None:
    """The checkpoint that training goes on from: this run's own newest one, if it has run before; else the user's."""
    if not claim.comes_back:
        return str(config.ckpt_path) if config.ckpt_path else None
    keepers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    folders = dict.fromkeys([*(Path(c.dirpath) for c in keepers if c.dirpath), folder / "checkpoints"])

    def choose() -> str:
        return str(newest_of_any_kind(folders, claim.run) or "")

    # All ranks take what rank 0 finds: a folder on a network may look older from another host.
    what = f"checkpoint of {folder} after {restart_count()} restarts"
    found = agree_on_text(what, choose, "ckpt_path=FILE", os.environ.get("MASTER_ADDR") or step_host())
    if not found:
        return str(config.ckpt_path) if config.ckpt_path else None
    if isinstance(trainer.strategy, PartialFCStrategy):
        trainer.strategy.fall_back = True  # nobody is watching: rather an older one than none
    rank_zero_info("This job has run before; it goes on from %s", found)
    return found


def logged_before(folder: Path) -> dict[str, float]:
    """Each name's last value of a job's earlier starts: where those had trained to the end, nothing is logged again."""
    path = folder / "metrics.csv"
    rows = read_metrics(path) if path.is_file() else []
    last = {name: value for row in rows for name, value in row.items() if name not in ("step", "epoch")}
    return {name: float(torch.tensor(value)) for name, value in last.items()}  # in float32, as the Trainer keeps them
