"""What ``pfc-train`` does, and the same from Python: :func:`train`."""

from __future__ import annotations

import contextlib
import functools
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_info
from omegaconf import DictConfig, open_dict

from lightning_pfc.callbacks import Preemption
from lightning_pfc.commands.idle_keys import warn_idle_keys
from lightning_pfc.commands.prediction import predict
from lightning_pfc.commands.preflight import check_launch
from lightning_pfc.commands.refused_start import no_folder_of_a_refused_start
from lightning_pfc.commands.results import (
    KeepRecord,
    collect_results,
    draw_plots,
    list_hardest,
    seconds_before,
    write_results,
)
from lightning_pfc.commands.run_words import check_run_words
from lightning_pfc.commands.starting_point import logged_before, own_folder, starting_point
from lightning_pfc.commands.trainer import make_callbacks, make_trainer
from lightning_pfc.commands.verdict import judge
from lightning_pfc.config import RUN_DIR_VARIABLE, compose
from lightning_pfc.config_words import check_run_folder
from lightning_pfc.distributed.jobs import adopt_step
from lightning_pfc.processes import signals
from lightning_pfc.runs.best import best_checkpoint
from lightning_pfc.runs.choices import choose, of_own_pictures, told
from lightning_pfc.runs.claim import Claim
from lightning_pfc.runs.resuming import as_it_was, earlier_run
from lightning_pfc.transfer import ClassMeans, InitFrom


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
    with _run_dir_for_children(folder), no_folder_of_a_refused_start(folder):
        return run(config, folder, words)


def run(config: DictConfig, folder: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train and test as a composed config says, leaving everything in ``folder``. Runs on every rank.

    Returns:
        What rank 0 writes to ``folder/results.json``.
    """
    started = time.perf_counter()
    check_run_folder(folder)
    with open_dict(config):
        config.output_dir = str(folder)
    check_run_words(config)
    check_launch(config)
    if made := choose(config, overrides):
        rank_zero_info("%s", told(made))
    warn_idle_keys(config)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # a job of one process needs none
    L.seed_everything(config.seed, workers=True, verbose=False)
    callbacks = make_callbacks(config)
    trainer = make_trainer(config, callbacks, folder)  # first: what it refuses is known before data and model are built
    with _signals_of(callbacks), own_folder(config, folder, trainer) as claim:
        return _fit_and_test(config, trainer, folder, overrides, started, claim)


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
    data, module = _data_and_module(config, trainer)
    record = KeepRecord(config, overrides, folder, data)
    trainer.callbacks.insert(0, record)  # type: ignore[attr-defined]

    chosen = config.fit and config.get("choices") == "made" and of_own_pictures(config)
    metrics = _fit(trainer, module, data, starting_point(config, folder, trainer, claim)) if config.fit else {}
    if config.fit and claim.comes_back:
        metrics = logged_before(folder) | metrics
    best = best_checkpoint(trainer) if chosen else None
    if config.test:
        metrics |= _test(trainer, module, data, best, best if config.fit else config.ckpt_path)
    verdict = judge(module, data, metrics, gap=chosen)
    metrics |= verdict.metrics

    if config.predict.source is not None:
        path = None if config.fit or config.test else config.ckpt_path
        predict(trainer, module, data, str(config.predict.source), folder, k=config.predict.k, ckpt_path=path)
    if config.fit:
        record.keep()  # where there was nothing left to train

    started -= seconds_before(trainer)  # a requeued job counts on
    results = collect_results(config, trainer, folder, overrides, metrics, verdict, best)
    results["seconds"] = time.perf_counter() - started
    if trainer.is_global_zero:
        if config.plots:
            draw_plots(module, data, folder, verdict)
        list_hardest(module, data, folder)
        results["seconds"] = time.perf_counter() - started
        write_results(results, folder)
    signals.all_is_done()
    return results


def _data_and_module(config: DictConfig, trainer: L.Trainer) -> tuple[L.LightningDataModule, L.LightningModule]:
    data: L.LightningDataModule = instantiate(config.data, _convert_="all")
    if config.ckpt_path and getattr(trainer.strategy, "match", None) == "names":
        data.goes_on_from = str(config.ckpt_path)  # type: ignore[attr-defined]
    data.prepare_data()  # before there are ranks: the head needs the number of classes
    data.setup("fit")
    module: L.LightningModule = instantiate(
        config.model,
        num_classes=data.num_classes,  # type: ignore[attr-defined]
        input_size=list(data.input_size),  # type: ignore[attr-defined]
        _convert_="all",
    )
    return data, module


def _fit(
    trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule, ckpt_path: str | None
) -> dict[str, float]:
    for begins in (each for each in trainer.callbacks if isinstance(each, InitFrom | ClassMeans)):  # type: ignore[attr-defined]
        begins.goes_on_from = ckpt_path
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return _numbers(trainer)


def _test(
    trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule, best: str | None, ckpt_path: str | None
) -> dict[str, float]:
    measured = trainer.validate if best and not data.test_dataloader() else trainer.test
    measured(module, datamodule=data, ckpt_path=ckpt_path, verbose=False)
    return _numbers(trainer)


# --- details ----------------------------------------------------------------------------------------------------------


def _numbers(trainer: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


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
