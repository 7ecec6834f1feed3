"""What ``pfc-eval`` does, and the same from Python: :func:`evaluate`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_pfc.calibration.job import Calibrate, calibrate, target_of, write_thresholds
from lightning_pfc.checked import check_call, check_path
from lightning_pfc.commands.run_words import check_eval_words
from lightning_pfc.config import compose
from lightning_pfc.config_words import check_run_folder
from lightning_pfc.distributed.aside import aside
from lightning_pfc.evaluation.peers import Peers
from lightning_pfc.evaluation.protocol_config import PROTOCOLS, missing_files
from lightning_pfc.evaluation.protocols import Evaluator
from lightning_pfc.evaluation.report import ProtocolResult, as_json, draw, print_table
from lightning_pfc.processes.launching import saying_what_it_waits_for
from lightning_pfc.report import versions
from lightning_pfc.runs.network import load_network
from lightning_pfc.runs.run_folder import Run
from lightning_pfc.runs.thresholds import Threshold
from lightning_pfc.storage.whole_files import sha256, write_json

_log = logging.getLogger(__name__)


def evaluate(*overrides: str, config_dirs: Sequence[str | os.PathLike[str]] = ()) -> dict[str, Any]:
    """Do what ``pfc-eval OVERRIDES`` does, and return what it writes to results.json.

    Args:
        overrides: As on the command line: ``evaluate("ckpt_path=last.ckpt", "+protocols.lfw=lfw.bin")``.
        config_dirs: Folders of your own configs, searched before those of the package.

    Returns:
        ``metrics`` and ``intervals`` by name, and more; the same on every rank.

    Raises:
        ValueError: For a key that does not exist, or bad values.
        FileNotFoundError: For a file that is not there.
    """
    config = compose(overrides, config_name="eval", config_dirs=config_dirs)
    return run(config, Path(str(config.output_dir)).absolute(), overrides)


def run(config: DictConfig, folder: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluate as a composed config says, leaving everything in ``folder``. Runs on every rank.

    Returns:
        What rank 0 writes to ``folder/results.json``.
    """
    check_run_folder(folder)
    check_eval_words(config)
    with open_dict(config):
        config.output_dir = str(folder)
    protocols: dict[str, Any] = OmegaConf.to_container(config.protocols, resolve=True)  # type: ignore[assignment]
    words: dict[str, Any] = OmegaConf.to_container(config.calibrate, resolve=True)  # type: ignore[assignment]
    check_call(Calibrate, words, "calibrate")
    calibration = Calibrate(**words)
    if config.ckpt_path is not None:
        check_path("ckpt_path", config.ckpt_path)
    if config.run:
        protocols = _follow(config, protocols)
    if not protocols:
        raise ValueError(
            "protocols is empty; name at least one set, as in +protocols.lfw=lfw.bin "
            f"(types: {', '.join(sorted(PROTOCOLS))})"
        )
    if str(config.embedder.get("_target_", "")).endswith("checkpoint_embedder") and not config.ckpt_path:
        raise ValueError(
            "ckpt_path is missing; give a checkpoint, or choose embedder=onnx, embedder=timm, or embedder=none for "
            "embeddings made elsewhere"
        )
    _refuse_missing(protocols)
    with _ranks() as peers:
        embedder = instantiate(config.embedder, _convert_="all") if "_target_" in config.embedder else None
        evaluator = Evaluator(embedder, instantiate(config.settings, _convert_="all"), peers)
        thresholds, told = _thresholds(config, evaluator, protocols, calibration)  # first: it may refuse
        more: dict[str, Any] = {
            **({"thresholds": {t.name: t.to_dict() for t in thresholds}} if calibration.wanted else {}),
            "ranks": peers.world_size,
            "overrides": list(overrides),
            "versions": versions(),
            "run_dir": str(folder),
        }
        record = _Record(config, folder, list(protocols), more, peers.rank == 0)
        for name, protocol in protocols.items():
            _log.info("%s ...", name)
            with record.kept_if_the_next_fails(name):
                record.add(evaluator.run(name, protocol))
        results = record.results()
        if peers.rank == 0:
            pictures = draw(record.found, folder / "plots") if config.plots else []
            record.write()
            print_table(record.found, float(config.settings.level))
            if calibration.wanted:
                target = target_of(calibration, config.run, config.ckpt_path, folder)
                write_thresholds(target, thresholds)
                print("\n".join([*told, f"written to {target}"]))
            for path in [folder / "results.json", *pictures]:
                _log.info("%s", path)
    return results


class _Record:
    """What has been found so far; on disk after every set, so that a later one cannot lose it."""

    def __init__(self, config: DictConfig, folder: Path, names: list[str], more: dict[str, Any], writes: bool) -> None:
        self.config, self.folder, self.names, self.more, self.writes = config, folder, names, more, writes
        self.found: list[ProtocolResult] = []
        self.started = time.perf_counter()

    def results(self) -> dict[str, Any]:
        """Of ``results.json``; ``not_measured`` names the sets that are still to come."""
        left = self.names[len(self.found) :]
        return {
            **as_json(self.found),
            **({"not_measured": left} if left else {}),
            "seconds": time.perf_counter() - self.started,
            **self.more,
        }

    def add(self, result: ProtocolResult) -> None:
        """Keep what was found of a set."""
        self.found.append(result)
        self.write()

    def write(self) -> None:
        """On rank 0, all that there is."""
        if not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "config.yaml").exists():
            OmegaConf.save(self.config, self.folder / "config.yaml", resolve=True)
        write_json(self.folder / "results.json", self.results())

    @contextmanager
    def kept_if_the_next_fails(self, name: str) -> Iterator[None]:
        """Say where the sets before are, if this one cannot be measured."""
        try:
            yield
        except Exception:
            if self.found and self.writes:
                print_table(self.found, float(self.config.settings.level))
                done = ", ".join(result.name for result in self.found)
                _log.warning("%s could not be measured; %s: in %s", name, done, self.folder / "results.json")
            raise


def _refuse_missing(protocols: dict[str, Any]) -> None:
    """See that all files are there before a model is loaded and the first set measured.

    Raises:
        FileNotFoundError: some are not; names them all.
    """
    missing = [f"{path} (protocols.{name})" for name, each in protocols.items() for path in missing_files(name, each)]
    if missing:
        raise FileNotFoundError(f"no such verification file: {'; '.join(missing)}")


def _follow(config: DictConfig, protocols: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint and, unless the user names some, the held-out sets of a run."""
    folder = Run(str(config.run), config.ckpt_path)
    with open_dict(config):
        config.ckpt_path = str(folder.checkpoint)
    if protocols:
        return protocols
    sets = folder.verification_sets()
    if not sets:
        raise ValueError(f"run={config.run} held out no identities; name a set, as in +protocols.mine=pairs.txt")
    return {name: {"type": "run", "path": str(config.run), "set": name} for name in sets}


def _thresholds(
    config: DictConfig, evaluator: Evaluator, protocols: dict[str, Any], words: Calibrate
) -> tuple[list[Threshold], list[str]]:
    if not words.wanted:
        return [], []
    return calibrate(evaluator, protocols, words, model=_fingerprint(config))


def _fingerprint(config: DictConfig) -> str:
    """Of the weights that are judged: a threshold holds for them alone."""
    if str(config.embedder.get("_target_", "")).endswith("checkpoint_embedder"):
        return load_network(str(config.ckpt_path))[0].fingerprint()
    path = config.embedder.get("path")
    return sha256(str(path)) if path and Path(str(path)).is_file() else ""


@contextmanager
def _ranks() -> Iterator[Peers]:
    """The ranks of torchrun, if it started this process; each takes its own CUDA device if there are any."""
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield Peers.current()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    with saying_what_it_waits_for("waiting for all ranks of torchrun to start"):
        aside(lambda: dist.init_process_group("gloo"))  # embeddings travel once, on the CPU
    try:
        yield Peers.current()
    finally:
        dist.destroy_process_group()
