"""The configs: where they lie, how they are composed, and what is said when a name does not exist."""

from __future__ import annotations

import datetime as dt
import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from lightning_pfc.distributed.jobs import job_name
from lightning_pfc.distributed.rendezvous import agree_on_text

RUN_DIR_VARIABLE = "PFC_RUN_DIR"


def config_dir() -> Path:
    """The folder of configs: inside the installed package, or ``conf/`` beside it in a checkout.

    Raises:
        FileNotFoundError: if the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"The configs of lightning_pfc are missing: neither {package / 'conf'} nor {package.parent / 'conf'} has a "
        "train.yaml. Install the package again."
    )


def register_resolvers() -> None:
    """Make ``${pfc_run_dir:FOLDER}`` known to OmegaConf; doing it again changes nothing."""
    OmegaConf.register_new_resolver("pfc_run_dir", run_dir, replace=True, use_cache=True)


def run_dir(base: str = "runs") -> str:
    """A folder for this run, the same on every rank: ``BASE/DATE_TIME``, or ``BASE/slurm-JOB`` inside a SLURM job.

    A job has its folder from its id, so that it finds what it wrote after a requeue; so has ``torchrun`` with a
    ``--rdzv-id``. Without one rank 0 chooses and the others ask it, also after a restart. A process started by another
    finds the choice in ``$PFC_RUN_DIR``.

    Raises:
        ValueError: for several processes that have no way to agree; the message says what to give.
    """
    if chosen := os.environ.get(RUN_DIR_VARIABLE):
        return chosen
    if name := job_name():
        return str(Path(base) / name)
    way_out = "hydra.run.dir=FOLDER (or output_dir=FOLDER)"
    return agree_on_text(f"run folder in {base}", lambda: _by_the_clock(Path(base)), way_out)


def _by_the_clock(base: Path) -> str:
    name = dt.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder, number = base / name, 2
    while folder.exists():
        folder, number = base / f"{name}_{number}", number + 1
    return str(folder)


def compose(
    overrides: Iterable[str] = (), *, config_name: str = "train", config_dirs: Sequence[str | os.PathLike[str]] = ()
) -> DictConfig:
    """The config that a command would run with.

    Args:
        overrides: as on the command line: ``"loss=arcface"``, ``"head.sample_rate=0.1"``.
        config_name: which of the main configs.
        config_dirs: folders of your own, searched before those of the package.

    Raises:
        ValueError: for a group, an option or a key that does not exist, saying what does.
    """
    register_resolvers()
    words = list(overrides)
    search = [f"file://{Path(folder).resolve()}" for folder in config_dirs]
    extra = [f"hydra.searchpath=[{','.join(search)}]"] if search else []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        try:
            return hydra_compose(config_name, overrides=[*words, *extra])
        except HydraException as error:
            raise ValueError(explain(error, config_name)) from error


def explain(error: BaseException, config_name: str = "train") -> str:
    """What Hydra complains of, with the names that exist and the one that was probably meant."""
    text = str(error).strip()
    if isinstance(error, MissingMandatoryValue):
        return f"{text}. Give it: {text.rsplit(' ', 1)[-1]}=VALUE"
    if isinstance(error, HydraException) and error.__cause__ is not None and str(error.__cause__) not in text:
        text += f"\n{error.__cause__}".rstrip()
    full_key = re.search(r"full_key: (\S+)", text)
    text = "\n".join(line for line in text.splitlines() if not line.strip().startswith(("full_key:", "object_type=")))
    if "Could not load 'hydra/launcher/submitit" in text:
        return 'hydra/launcher=slurm needs submitit, which is not installed: pip install "lightning-pfc[slurm]"'
    if match := re.search(r"Could not find '([\w@]+(?:/[\w@]+)*)/([\w.+-]+)'", text):
        return f"There is no {match[1]}={match[2]}.{_suggest(match[2], _options(match[1]))}"
    if match := re.search(r"Could not (?:override|append|delete)[^']*'([^'=]+)'", text) or re.search(
        r"No match in the defaults list.*'([^']+)'", text
    ):
        key = full_key[1] if full_key else match[1].lstrip("+~")
        existing = _siblings(key, config_name)
        *parents, name = key.split(".")
        where = f"{'.'.join(parents)} has no key {name}" if parents else f"There is no key or group {name}"
        return f"{where}.{_suggest(name, existing)}\nTo add a new key, write +{key}=VALUE."
    return text


def _suggest(name: str, existing: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, existing, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"{hint} There are: {', '.join(sorted(existing))}." if existing else hint


def _options(group: str) -> list[str]:
    folder = config_dir() / group
    files = folder.rglob("*.yaml") if folder.is_dir() else ()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in files if path.parent.name[:1] != "_")


def _siblings(key: str, config_name: str) -> list[str]:
    """Keys beside ``key`` in the config without overrides."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        node: Any = hydra_compose(config_name)
    for part in key.split(".")[:-1]:
        node = OmegaConf.select(node, part) if isinstance(node, DictConfig) else None
    groups = [p.name for p in config_dir().iterdir() if p.is_dir()] if "." not in key else []
    return sorted({*(str(k) for k in node), *groups}) if isinstance(node, DictConfig) else []


register_resolvers()  # also where a pickled job of a sweep imports this module first
