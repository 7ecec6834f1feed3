"""What a run leaves in its folder: its config, its numbers, pictures, and the hardest pairs by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only
from omegaconf import DictConfig, OmegaConf

from lightning_pfc.callbacks import Throughput
from lightning_pfc.commands.verdict import Verdict
from lightning_pfc.data.source import IdentityData
from lightning_pfc.report import draw, gaps_of, peak_memory, print_results, versions
from lightning_pfc.runs.hard_pairs import write_hard_pairs
from lightning_pfc.runs.identity_lists import write_identities
from lightning_pfc.runs.records import newest_record, set_aside, write_record
from lightning_pfc.storage.whole_files import write_json
from lightning_pfc.validation import VerificationEvaluation


class KeepRecord(Callback):
    """Keeps the config, the words of the command and the identities of the data in the run folder, on rank 0.

    At once where it is the folder's first start. Where a run is gone on with, when it trains: a start that is refused,
    for another architecture or other classes, or that only tests, would else be what the next one goes on with.
    """

    def __init__(self, config: DictConfig, overrides: Sequence[str], folder: Path, data: Any) -> None:
        self._kept = False
        self._given = config, overrides, folder, data
        if newest_record(folder, "config") is None:
            self.keep()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Weights, optimizers and counters have been taken."""
        self.keep()

    def keep(self) -> None:
        """Write it, if that was not done."""
        if not self._kept:
            _keep_record(*self._given)
        self._kept = True


@rank_zero_only
def _keep_record(config: DictConfig, overrides: Sequence[str], folder: Path, data: Any) -> None:
    if isinstance(found := getattr(data, "data", None), IdentityData):
        write_identities(folder, found)
    path = write_record(folder, "config", OmegaConf.to_yaml(config, resolve=True))
    if path.name != "config.yaml":
        rank_zero_info("%s has the config of this start; that of the first stays in config.yaml", path)
    write_record(folder, "overrides", OmegaConf.to_yaml(OmegaConf.create(list(overrides))))


def seconds_before(trainer: L.Trainer) -> float:
    """Seconds that a requeued job trained before this start."""
    throughput = _throughput(trainer)
    return throughput.seconds_before if throughput else 0.0


def collect_results(
    config: DictConfig,
    trainer: L.Trainer,
    folder: Path,
    overrides: Sequence[str],
    metrics: dict[str, float],
    verdict: Verdict,
    best: str | None,
) -> dict[str, Any]:
    """What results.json says, on every rank; the seconds are filled in when all is done."""
    throughput = _throughput(trainer)
    return {
        "metrics": metrics,
        **metrics,
        "seconds": 0.0,
        "samples": throughput.samples if throughput else None,
        "samples_per_second": throughput.samples_per_second if throughput else None,
        "steps": trainer.global_step,
        "peak_memory_bytes": peak_memory(),
        "ranks": trainer.world_size,
        "seed": config.seed,
        "intervals": verdict.intervals,
        "words": verdict.words,
        **({"best_checkpoint": Path(best).name} if best else {}),
        "overrides": list(overrides),
        "versions": versions(),
        "run_dir": str(folder),
    }


def write_results(results: dict[str, Any], folder: Path) -> None:
    """Put what an earlier start left aside, write results.json, and print it."""
    set_aside(folder / "results.json")
    write_json(folder / "results.json", results)
    print_results(results)


def draw_plots(module: L.LightningModule, data: Any, folder: Path, verdict: Verdict) -> None:
    """Pictures of the log, of scores, and of gaps."""
    scores = {
        evaluation.name: evaluation.scores
        for evaluation in getattr(module, "evaluations", [])
        if isinstance(evaluation, VerificationEvaluation) and evaluation.scores is not None
    }
    sets = {**data.verification_sets("validate"), **data.verification_sets("test")} if scores else {}
    gaps = gaps_of(verdict.metrics, verdict.intervals)
    for path in draw(folder / "plots", folder / "metrics.csv", scores, sets, gaps):
        rank_zero_info("%s", path)


def list_hardest(module: L.LightningModule, data: Any, folder: Path) -> None:
    """The hardest pairs by name, where pictures are files."""
    found = [e for e in getattr(module, "evaluations", []) if isinstance(e, VerificationEvaluation)]
    sets = {**data.verification_sets("validate"), **data.verification_sets("test")} if found else {}
    for each in found:
        if each.name in sets and each.scores is not None and each.embeddings is not None:
            write_hard_pairs(folder, each.name, sets[each.name], each.scores, each.embeddings)


def _throughput(trainer: L.Trainer) -> Throughput | None:
    return next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]
