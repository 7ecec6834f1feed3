"""What ``pfc-train`` does, and the same from Python: :func:`train`."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, ModelSummary
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_pfc import signals
from lightning_pfc.callbacks import Preemption, Summary, Throughput
from lightning_pfc.callbacks.csv_log import read_metrics
from lightning_pfc.checkpoint.publish import newest_of_any_kind
from lightning_pfc.commands.idle_keys import warn_idle_keys
from lightning_pfc.commands.prediction import predict
from lightning_pfc.commands.preflight import check_launch
from lightning_pfc.commands.verdict import Verdict, judge
from lightning_pfc.config import RUN_DIR_VARIABLE, compose
from lightning_pfc.data.source import IdentityData
from lightning_pfc.distributed.jobs import adopt_step, restart_count, step_host
from lightning_pfc.distributed.rendezvous import agree_on_text
from lightning_pfc.report import draw, gaps_of, peak_memory, print_results, versions
from lightning_pfc.runs.best import best_checkpoint
from lightning_pfc.runs.choices import choose, told
from lightning_pfc.runs.claim import Claim, claimed
from lightning_pfc.runs.hard_pairs import write_hard_pairs
from lightning_pfc.runs.identity_lists import write_identities
from lightning_pfc.runs.records import set_aside, write_record
from lightning_pfc.runs.resuming import as_it_was, earlier_run
from lightning_pfc.storage.row_files import rows_of_run
from lightning_pfc.storage.whole_files import write_json
from lightning_pfc.strategies import PartialFCStrategy
from lightning_pfc.transfer import ClassMeans, InitFrom
from lightning_pfc.transfer.sources import find_source
from lightning_pfc.validation import VerificationEvaluation

_log = logging.getLogger(__name__)


def train(*overrides: str, config_dirs: Sequence[str | os.PathLike[str]] = ()) -> dict[str, Any]:
    """Do what ``pfc-train OVERRIDES`` does, and return what it writes to results.json.

    Args:
        overrides: as on the command line: ``train("data=glyphs", "loss=cosface", "trainer.max_epochs=2")``.
        config_dirs: folders of your own configs, searched before those of the package.

    Returns:
        ``metrics`` by name, ``run_dir``, ``seconds`` and more; the same metrics on every rank.

    Raises:
        ValueError: for a group, an option or a key that does not exist, saying what does; or for bad values.

    Note:
        With several devices and neither torchrun nor srun, the processes are started by running your script again, as
        every Trainer does: keep the call under ``if __name__ == "__main__":``.
    """
    adopt_step()
    made = functools.partial(compose, config_dirs=config_dirs)
    earlier = earlier_run(overrides)
    words = list(overrides) if earlier is None else [word for word in earlier.words if not word.startswith("hydra.")]
    config = made(words) if earlier is None else as_it_was(made(words), earlier, made)
    folder = Path(str(config.output_dir)).absolute()
    with _run_dir_for_children(folder):
        return run(config, folder, words)


def run(config: DictConfig, folder: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train and test as a composed config says, leaving everything in ``folder``. Runs on every rank.

    Returns:
        What rank 0 writes to ``folder/results.json``.
    """
    started = time.perf_counter()
    with open_dict(config):
        config.output_dir = str(folder)
    check_launch(config)
    if made := choose(config, overrides):
        rank_zero_info("%s", told(made))
    warn_idle_keys(config)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # a job of one process needs none
    L.seed_everything(config.seed, workers=True, verbose=False)
    callbacks = [*_beginning(config), *_callbacks(config)]  # before those that copy the model
    trainer = _trainer(config, callbacks, folder)  # first: what it refuses is known before data and model are built
    with _signals_of(callbacks), _claim(config, folder, trainer) as claim:
        return _fit_and_test(config, trainer, folder, overrides, started, claim)


@contextlib.contextmanager
def _claim(config: DictConfig, folder: Path, trainer: L.Trainer) -> Iterator[Claim]:
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


def _beginning(config: DictConfig) -> list[Callback]:
    """What a run begins with: weights, then centers from them."""
    callbacks: list[Callback] = []
    if config.fit and config.init_from:
        if not config.ckpt_path and not restart_count():
            find_source(str(config.init_from))  # what is not there is said before a folder is made
        callbacks.append(InitFrom(str(config.init_from), config.init_parts and list(config.init_parts)))
    if config.fit and config.head.get("init") == "class_means":
        callbacks.append(ClassMeans())
    if config.fit and config.finetune:
        callbacks.append(instantiate(config.finetune))
        if not (config.init_from or config.ckpt_path or config.backbone.pretrained):
            rank_zero_warn("finetune= is for weights that exist: give init_from= or backbone.pretrained=true.")
    return callbacks


def _callbacks(config: DictConfig) -> list[Callback]:
    callbacks: list[Callback] = _instantiate_each(config.callbacks)
    unwanted: list[type[Callback]] = []  # a Trainer refuses callbacks that have nothing to do
    if not config.trainer.get("enable_progress_bar", True):
        unwanted.append(LightningProgressBar)
    if not any((config.logger or {}).values()):
        unwanted.append(LearningRateMonitor)
    return [callback for callback in callbacks if not isinstance(callback, tuple(unwanted))]


def _trainer(config: DictConfig, callbacks: list[Callback], folder: Path) -> L.Trainer:
    loggers: list[Logger] = _instantiate_each(config.logger)
    own_summary = config.trainer.get("enable_model_summary", True) and not any(
        isinstance(callback, ModelSummary) for callback in callbacks
    )
    trainer: L.Trainer = instantiate(
        config.trainer,
        callbacks=[*callbacks, *([Summary()] if own_summary else [])],
        logger=loggers or False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        default_root_dir=str(folder),
        **({"enable_model_summary": False} if own_summary else {}),
        _convert_="all",
    )
    _refuse_sweep_over_children(trainer)
    return trainer


@contextlib.contextmanager
def _signals_of(callbacks: Sequence[Callback]) -> Iterator[None]:
    """Outside of fit, where the callback catches them itself, they are caught as it says."""
    preemption = next((callback for callback in callbacks if isinstance(callback, Preemption)), None)
    if preemption is None:
        signals.release()
        yield
    else:
        with signals.caught([each.name for each in preemption.signals], preemption.requeue):
            yield


def _fit_and_test(
    config: DictConfig, trainer: L.Trainer, folder: Path, overrides: Sequence[str], started: float, claim: Claim
) -> dict[str, Any]:
    data: L.LightningDataModule = instantiate(config.data, _convert_="all")
    data.prepare_data()  # before there are ranks: the head needs the number of classes
    data.setup("fit")
    module: L.LightningModule = instantiate(
        config.model,
        num_classes=data.num_classes,  # type: ignore[attr-defined]
        input_size=list(data.input_size),  # type: ignore[attr-defined]
        _convert_="all",
    )
    _keep_record(config, overrides, folder, data)

    metrics: dict[str, float] = {}
    if config.fit:
        starting_point = _starting_point(config, folder, trainer, claim)
        for begins in (each for each in trainer.callbacks if isinstance(each, InitFrom | ClassMeans)):  # type: ignore[attr-defined]
            begins.goes_on_from = starting_point
        trainer.fit(module, datamodule=data, ckpt_path=starting_point)
        metrics |= (_logged_before(folder) if claim.comes_back else {}) | _numbers(trainer)
    best = best_checkpoint(trainer) if config.fit and config.get("choices") == "made" else None
    if config.test:
        test_path = best if config.fit else config.ckpt_path
        measured = trainer.validate if best and not data.test_dataloader() else trainer.test
        measured(module, datamodule=data, ckpt_path=test_path, verbose=False)
        metrics |= _numbers(trainer)
    verdict = judge(module, data, metrics, gap=config.fit and config.get("choices") == "made")
    metrics |= verdict.metrics

    if config.predict.source is not None:
        path = None if config.fit or config.test else config.ckpt_path
        predict(trainer, module, data, str(config.predict.source), folder, k=config.predict.k, ckpt_path=path)

    throughput = next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]
    started -= throughput.seconds_before if throughput else 0.0  # a requeued job counts on
    results: dict[str, Any] = {
        "metrics": metrics,
        **metrics,
        "seconds": time.perf_counter() - started,
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
    if trainer.is_global_zero:
        if config.plots:
            _draw(module, data, folder, verdict)
        _list_hardest(module, data, folder)
        results["seconds"] = time.perf_counter() - started
        set_aside(folder / "results.json")
        write_json(folder / "results.json", results)
        print_results(results)
    signals.all_is_done()
    return results


# --- details ----------------------------------------------------------------------------------------------------------


def _instantiate_each(group: DictConfig | None) -> list[Any]:
    return [instantiate(node, _convert_="all") for node in (group or {}).values() if node]


def _starting_point(config: DictConfig, folder: Path, trainer: L.Trainer, claim: Claim) -> str | None:
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


def _logged_before(folder: Path) -> dict[str, float]:
    """Each name's last value of a job's earlier starts: where those had trained to the end, nothing is logged again."""
    path = folder / "metrics.csv"
    rows = read_metrics(path) if path.is_file() else []
    last = {name: value for row in rows for name, value in row.items() if name not in ("step", "epoch")}
    return {name: float(torch.tensor(value)) for name, value in last.items()}  # in float32, as the Trainer keeps them


def _numbers(trainer: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _refuse_sweep_over_children(trainer: L.Trainer) -> None:
    """Lightning's launcher runs the command line again in each child: here, the whole sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN or trainer.world_size == 1:
        return
    strategy = trainer.strategy
    environment = strategy.cluster_environment if isinstance(strategy, DDPStrategy) else None
    if environment is not None and not environment.creates_processes_externally:
        devices = trainer.num_devices
        raise ValueError(
            f"trainer.devices={devices} in a sweep (-m): each process that the trainer starts would run the whole "
            f"sweep again. Start the processes outside: torchrun --nproc-per-node={devices} $(which pfc-train) -m ..., "
            "or srun; or sweep with trainer.devices=1."
        )


@rank_zero_only
def _keep_record(config: DictConfig, overrides: Sequence[str], folder: Path, data: Any) -> None:
    if isinstance(found := getattr(data, "data", None), IdentityData):
        write_identities(folder, found)
    path = write_record(folder, "config", OmegaConf.to_yaml(config, resolve=True))
    if path.name != "config.yaml":
        rank_zero_info("%s has the config of this start; that of the first stays in config.yaml", path)
    write_record(folder, "overrides", OmegaConf.to_yaml(OmegaConf.create(list(overrides))))


def _draw(module: L.LightningModule, data: Any, folder: Path, verdict: Verdict) -> None:
    scores = {
        evaluation.name: evaluation.scores
        for evaluation in getattr(module, "evaluations", [])
        if isinstance(evaluation, VerificationEvaluation) and evaluation.scores is not None
    }
    sets = {**data.verification_sets("validate"), **data.verification_sets("test")} if scores else {}
    gaps = gaps_of(verdict.metrics, verdict.intervals)
    for path in draw(folder / "plots", folder / "metrics.csv", scores, sets, gaps):
        rank_zero_info("%s", path)


def _list_hardest(module: L.LightningModule, data: Any, folder: Path) -> None:
    """The hardest pairs by name, where pictures are files."""
    found = [e for e in getattr(module, "evaluations", []) if isinstance(e, VerificationEvaluation)]
    sets = {**data.verification_sets("validate"), **data.verification_sets("test")} if found else {}
    for each in found:
        if each.name in sets and each.scores is not None and each.embeddings is not None:
            write_hard_pairs(folder, each.name, sets[each.name], each.scores, each.embeddings)


@contextlib.contextmanager
def _run_dir_for_children(folder: Path) -> Iterator[None]:
    before = os.environ.get(RUN_DIR_VARIABLE)
    os.environ[RUN_DIR_VARIABLE] = str(folder)
    try:
        yield
    finally:
        _restore(RUN_DIR_VARIABLE, before)


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
