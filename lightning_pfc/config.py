"""The configs: where they lie, how they are composed, and what is said when a name does not exist."""

from __future__ import annotations

import datetime as dt
import difflib
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from lightning_pfc.config_words import (
    check_flags,
    check_output_dir,
    choices,
    composed,
    config_dir,
    own_folders,
    with_new_keys,
)
from lightning_pfc.distributed.jobs import job_name
from lightning_pfc.other_names import own_name

RUN_DIR_VARIABLE = "PFC_RUN_DIR"


def register_resolvers() -> None:
    """Make ``${pfc_run_dir:FOLDER}`` and ``${pfc_gpus:...}`` known to OmegaConf; doing it again changes nothing."""
    OmegaConf.register_new_resolver("pfc_run_dir", run_dir, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("pfc_gpus", gpus_per_node, replace=True)


def gpus_per_node(accelerator: object, devices: object) -> object:
    """What a job of a sweep asks its nodes for: a GPU a process; none, and no such option, on the CPU."""
    return None if accelerator == "cpu" else devices


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
    from lightning_pfc.distributed.rendezvous import agree_on_text  # and torch, which who asks for help can do without

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
        config_dirs: folders of your own, searched before that of the package.

    Raises:
        ValueError: for a group, an option or a key that does not exist, saying what does.
    """
    register_resolvers()
    words = with_new_keys(overrides)
    check_flags(words, config_name)
    check_output_dir(words)
    GlobalHydra.instance().clear()
    with own_folders(config_dirs), initialize_config_dir(str(config_dir()), version_base="1.3"):
        try:
            return hydra_compose(config_name, overrides=words)
        except (HydraException, ValueError) as error:  # a number for a group is a plain ValueError of Hydra's
            raise ValueError(explain(error, config_name, words)) from error


def explain(error: BaseException, config_name: str = "train", words: Sequence[str] | None = None) -> str:
    """What Hydra complains of, with the names that exist and the one that was probably meant.

    Args:
        error: of Hydra or OmegaConf; of any other the text is returned as it is.
        config_name: which of the main configs.
        words: the overrides; by default those of the command line.
    """
    words = [word for word in (sys.argv[1:] if words is None else words) if not word.startswith("-")]
    text = str(error).strip()
    if isinstance(error, HydraException) and (quoted := _quoted_rightly(text, words)):
        return quoted
    if isinstance(error, MissingMandatoryValue):
        return f"{text}. Give it: {text.rsplit(' ', 1)[-1]}=VALUE"
    if isinstance(error, OmegaConfBaseException) and (placed := _with_a_placeholder(text, words)):
        return placed
    if isinstance(error, HydraException) and error.__cause__ is not None and str(error.__cause__) not in text:
        text += f"\n{error.__cause__}".rstrip()
    full_key = re.search(r"full_key: (\S+)", text)
    text = "\n".join(line for line in text.splitlines() if not line.strip().startswith(("full_key:", "object_type=")))
    if "Could not load 'hydra/launcher/submitit" in text:
        return 'hydra/launcher=slurm needs submitit, which is not installed: pip install "lightning-pfc[slurm]"'
    if "Config group override must be a string or a list" in text and (word := _number_for_a_group(words)):
        group = word.partition("=")[0]
        return f"{word}: {group} is one of {', '.join(_options(group))}; a key of it is {group}.KEY=VALUE."
    if match := re.search(r"Could not find '([\w@]+(?:/[\w@]+)*)/([\w.+-]+)'", text):
        meant = own_name(match[2]) if match[1].rpartition("/")[2] == "backbone" else None
        return f"There is no {match[1]}={match[2]}.{_suggest(match[2], _options(match[1]), meant)}"
    if match := re.search(r"Could not (?:override|append|delete)[^']*'([^'=]+)'", text) or re.search(
        r"No match in the defaults list.*'([^']+)'", text
    ):
        key = full_key[1] if full_key else match[1].lstrip("+~")
        chosen = choices(words)
        existing = _siblings(key, config_name, chosen)
        *parents, name = key.split(".")
        if name in existing and "Could not delete" in text:
            return _not_deleted(text, key)
        if name in existing and "Could not append" in text:
            return f"{key} is there already. Leave the + out: {key}=VALUE."
        where = f"{'.'.join(parents)} has no key {name}" if parents else f"There is no key or group {name}"
        others = [option for option in _options_with(key) if option != chosen.get(parents[0])] if parents else []
        if others and not difflib.get_close_matches(name, existing, n=1, cutoff=0.8):
            group = parents[0]
            here = chosen.get(group) or _default_option(group, config_name)
            return (
                f"{where} with {group}={here}; it has one with {group}={', '.join(others[:8])}. Choose one of these: "
                f"{group}={others[0]} {key}=VALUE."
            )
        return f"{where}.{_suggest(name, existing)}\nTo add a new key, write +{key}=VALUE."
    return text


def _number_for_a_group(words: Sequence[str]) -> str | None:
    parser = OverridesParser.create()
    for word in words:
        key, _, value = word.partition("=")
        if _options(key) and not isinstance(parser.parse_override(f"word={value}").value(), str | list | dict | None):
            return word
    return None


def _not_deleted(text: str, key: str) -> str:
    """Why a key that is there was not taken out: it has another value than the word says, or none."""
    if value := re.search(r"The value of '.+' is (.*) and not (.*)\.", text, re.DOTALL):
        return f"{key} is {value[1]}, and not {value[2]}. Give the value that it has, or ~{key} alone."
    return f"{key} is null, and what is null cannot be taken out. Leave ~{key} out."


def _quoted_rightly(text: str, words: Sequence[str]) -> str | None:
    """A word whose value Hydra cannot take as it is, such as a path with ``=`` or ``(``, written in quotes."""
    parser = OverridesParser.create()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or re.fullmatch(r"(\+\+?|~)?[\w@/.$-]+", key, re.ASCII) is None or value[:1] in ("'", '"'):
            continue
        ambiguous = f"Ambiguous value for argument '{word}'" in text
        try:
            parser.parse_override(word)
            if not ambiguous:
                continue
        except HydraException:
            pass
        inner = re.sub(r'(\\*)"', r'\1\1\\"', value)
        inner = re.sub(r"(\\+)$", r"\1\1", inner)
        mended = f'{key}="{inner}"'
        try:
            if str(parser.parse_override(mended).value()) != value:
                continue
        except HydraException:
            continue
        more = " (or several, with -m)" if ambiguous else ""
        return f"{word}: write its value in quotes{more}, and the word too on the command line: {shlex.quote(mended)}"
    return None


def _with_a_placeholder(text: str, words: Sequence[str]) -> str | None:
    """A word with ``${...}`` in it that stands for nothing: a shell variable in quotes, or a name with a ``$``."""
    if not re.search("nterpolation|dereferencing", text):
        return None
    holding = [word for word in words if re.search(r"(?<!\\)\$\{", word)]
    if not holding:
        return None
    reason = text.splitlines()[0]
    missed = [quoted or last for quoted, last in re.findall(r"'([^']+)'|(\w+)$", reason)]
    named = [word for word in holding if any(name in word for name in missed)]
    return (
        f"{(named or holding)[0]}: {reason}. ${{KEY}} stands for the value of another key and ${{oc.env:NAME}} for a "
        "variable of the environment; leave the braces out where neither is meant"
    )


def _suggest(name: str, existing: Sequence[str], meant: str | None = None) -> str:
    close = [meant] if meant in existing else difflib.get_close_matches(name, existing, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"{hint} There are: {', '.join(sorted(existing))}." if existing else hint


def _options(group: str) -> list[str]:
    folder = config_dir() / group
    files = folder.rglob("*.yaml") if folder.is_dir() else ()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in files if path.parent.name[:1] != "_")


def _siblings(key: str, config_name: str, chosen: Mapping[str, str]) -> list[str]:
    """Keys beside ``key`` in the config with the options that were chosen, and no other override."""
    node: Any = composed(config_name, [f"{group}={option}" for group, option in chosen.items()])
    if node is None:
        node = composed(config_name, [])
    for part in key.split(".")[:-1]:
        node = OmegaConf.select(node, part) if isinstance(node, DictConfig) else None
    groups = [p.name for p in config_dir().iterdir() if p.is_dir()] if "." not in key else []
    return sorted({*(str(k) for k in node), *groups}) if isinstance(node, DictConfig) else []


def _default_option(group: str, config_name: str) -> str:
    """The option of a group that the main config takes."""
    listed = _plain(config_dir() / f"{config_name}.yaml").get("defaults", [])
    found = {key: value for entry in listed if isinstance(entry, dict) for key, value in entry.items()}
    return str(found.get(group, "its default"))


def _options_with(key: str) -> list[str]:
    """The options of a group that have a key, as ``data=folder`` has ``data.source.path``; first those that ask."""
    group, *rest = key.split(".")
    found = [(_has(group, option, rest), option) for option in _options(group) if "/" not in option]
    return [option for depth, option in sorted(found) if depth]


def _has(group: str, option: str, rest: Sequence[str]) -> int:
    """1 if an option wants a key to be given, 2 if it has it, more if a file that it builds upon has; else 0."""
    content = _plain(config_dir() / group / f"{option}.yaml")
    node: Any = content
    for part in rest:
        if not isinstance(node, dict) or part not in node:
            bases = [entry for entry in content.get("defaults", []) if isinstance(entry, str) and entry != "_self_"]
            return next((1 + depth for base in bases if (depth := _has(group, base, rest))), 0)
        node = node[part]
    return 1 if node == "???" else 2


def _plain(path: Path) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else None
    return content if isinstance(content, dict) else {}


register_resolvers()  # also where a pickled job of a sweep imports this module first
