"""The words of a command line, before Hydra reads them: earlier keys, flags that are texts, a folder of one's own."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from lightning_pfc.names.renamed import warn_renamed

_FLAGS = {"no": "false", "off": "false", "n": "false", "yes": "true", "on": "true", "y": "true", "none": "null"}
_EARLIER_KEYS = {"model.head_options": "head", "model.sample_rate": "head.sample_rate", "model.seed": "head.seed"}
_EARLIER_TARGETS = {  # classes that configs of earlier versions named, and what they name in their place
    "lightning.pytorch.callbacks.ModelCheckpoint": "lightning_pfc.callbacks.RunCheckpoint",
    "lightning_pfc.protocols.Settings": "lightning_pfc.evaluation.EvaluationSettings",
}


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


class OwnFolders(SearchPathPlugin):
    """Folders of the user's own, searched before that of the package.

    Hydra searches those of ``--config-dir`` and ``hydra.searchpath`` after it, so that a file of the user's that has a
    name of the package's would not be read.
    """

    folders: ClassVar[Sequence[Path]] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra wherever it begins."""
        for folder in self.folders:
            search_path.prepend("own-folder", f"file://{folder}", SearchPathQuery(provider="main"))


@contextmanager
def own_folders(folders: Iterable[str | os.PathLike[str]]) -> Iterator[None]:
    """Hydra searches these first, in their order."""
    Plugins.instance().register(OwnFolders)
    before, OwnFolders.folders = OwnFolders.folders, [Path(folder).resolve() for folder in folders]
    try:
        yield
    finally:
        OwnFolders.folders = before


def typed_folders(words: Sequence[str]) -> list[str]:
    """What ``--config-dir`` is given; whether there is such a folder is Hydra's to say."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    given = parser.parse_known_args(words)[0].config_dir
    return [] if given is None else [given]


def with_new_keys(words: Iterable[str]) -> list[str]:
    """Overrides with keys under their present names; each that was given up is named once."""
    return [_with_new_key(word) for word in words]


def _with_new_key(word: str) -> str:
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    new = new_key(name)
    if not equals or new == name:
        return word
    warn_renamed(name, new)
    return f"{key[: len(key) - len(name)]}{new}={value}"


def new_key(key: str) -> str:
    """What a key of a config is called now."""
    for old, new in _EARLIER_KEYS.items():
        if f"{key}.".startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key


def new_target(target: Any) -> Any:
    """What the configs name now in place of a class that they named before."""
    return _EARLIER_TARGETS.get(str(target), target)


def check_flags(words: Iterable[str], config_name: str = "train") -> None:
    """See that no flag is given as a word that Hydra takes for a text, which would count as true.

    Args:
        words: the overrides.
        config_name: which of the main configs.

    Raises:
        ValueError: for ``no`` (yes, on, off, None) without quotes, alone, in a sweep or as a value within braces, where
            the config has true, false, a number or null, or where nothing says what the key is.
    """
    words = list(words)
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals or key.startswith("-") or (config_dir() / key.lstrip("+").partition("@")[0]).is_dir():
            continue
        for path, value in _unquoted(word):
            if (meant := _FLAGS.get(value.lower())) is not None:
                _check_flag(word, ".".join([key.lstrip("+"), *path]), value, meant, words, config_name)


def check_output_dir(words: Iterable[str]) -> None:
    """See that ``output_dir`` names a folder: an empty one, as an unset variable leaves it, would be the one one is in.

    Raises:
        ValueError: it is empty or null, or has ``${`` in it that is to stand as it is.
    """
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key.lstrip("+") == "output_dir" and value.strip("\"' ").lower() in ("", "null", "none"):
            raise ValueError(
                f"{word} names no folder. Leave the word out for a new one below runs/, or write output_dir=. for the "
                "one you are in."
            )
        if equals and key.lstrip("+") == "output_dir" and "\\${" in value:
            check_run_folder(value.replace("\\${", "${"))


def check_run_folder(folder: str | os.PathLike[str]) -> None:
    """See that a run folder can stand in a config, where ``${KEY}`` is the value of another key.

    Raises:
        ValueError: it cannot.
    """
    if "${" in os.fspath(folder):
        raise ValueError(
            f"the run folder {os.fspath(folder)} has ${{ in its name, which stands for another value in the run's own "
            "config. Give another name: output_dir=FOLDER."
        )


def check_working_folder() -> None:
    """See that Hydra's record can hold the folder one is in: a run in ``a${seed}`` would be written into ``a0``.

    Raises:
        ValueError: it cannot.
    """
    if "${" in (folder := os.getcwd()):
        raise ValueError(
            f"the folder you are in, {folder}, has ${{ in its name, which stands for another value in a config. Give "
            "that folder another name, or start in another one."
        )


def _check_flag(word: str, key: str, value: str, meant: str, words: Sequence[str], config_name: str) -> None:
    ours = [f"{group}={option}" for group, option in choices(words).items() if _is_ours(group, option)]
    if (config := composed(config_name, ours)) is None:
        return
    before = OmegaConf.select(config, key, default=_NEW)
    if isinstance(before, bool) or (value == "None" and not isinstance(before, str)):
        raise ValueError(f"{word}: Hydra takes {value} for a text; write {key}={meant}.")
    if before == _NEW and word.startswith("+") and value != "none":
        raise ValueError(
            f"{word}: Hydra takes {value} for a text, and nothing says what {key} is; write {meant}, or "
            f"\"'{value}'\" in both quotes if a text is meant."
        )


def _is_ours(group: str, option: str) -> bool:
    return (config_dir() / group / f"{option.removesuffix('.yaml')}.yaml").is_file()


_NEW = "\0"  # in place of what a config does not have


def _unquoted(word: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """The texts that a word gives without quotes, each with its keys within braces."""
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:  # to be explained when the words are composed
        return
    given: Any = override._value  # as it stands: value() takes the quotes away
    pending: list[tuple[tuple[str, ...], Any]] = [
        ((), value) for value in (given.list if isinstance(given, ChoiceSweep) else [given])
    ]
    while pending:
        path, value = pending.pop(0)
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, Mapping):
            pending += [((*path, str(key)), item) for key, item in value.items()]


def choices(words: Sequence[str]) -> dict[str, str]:
    """The options of groups that the overrides choose."""
    pairs = (word.partition("=")[::2] for word in words)
    return {key: value for key, value in pairs if value and (config_dir() / key).is_dir()}


def composed(config_name: str, words: Sequence[str]) -> DictConfig | None:
    """The package's config with some options of groups; None if they do not go together."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        try:
            return hydra_compose(config_name, overrides=list(words))
        except HydraException:
            return None
