"""Going on with a run: its own words and config, and what was typed over them.

``resume=FOLDER`` goes on in the folder of the run, ``ckpt_path=FILE`` of a run starts another one from it. Either takes
the config that the run had: the words that made it come first, then those that are typed; where today's defaults are
others than the run's, the run's are kept.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lightning_pfc.config_words import config_dir, new_key, new_target
from lightning_pfc.runs.records import newest_record
from lightning_pfc.storage.regular import read_regular

_OF_A_START = ("output_dir", "ckpt_path", "resume", "fit")  # words of one start, not of the run
_MISSING = object()
_MOST = 16 << 20  # bytes of a config
Path_ = tuple[str, ...]


@dataclass(frozen=True)
class Earlier:
    """A run that is gone on with.

    Attributes:
        folder: of the run.
        config: its own, as plain values.
        recorded: the words that made it.
        added: words that follow from going on with it.
        typed: what the user wrote now.
    """

    folder: Path
    config: DictConfig
    recorded: tuple[str, ...]
    added: tuple[str, ...]
    typed: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """What the config is composed of."""
        return [*self.recorded, *self.added, *self.typed]


def earlier_run(typed: Sequence[str]) -> Earlier | None:
    """The run that some words go on with, if any.

    Args:
        typed: words of the command line, flags among them.

    Raises:
        ValueError: what ``resume=`` names is no run, or has no checkpoint yet; or its config cannot be taken.
    """
    values = {
        key: value
        for word in typed
        for key, value in [_split(word)]
        if key in ("resume", "ckpt_path", "init_from", "head.init")
    }
    if empty := next((key for key, value in values.items() if value == ""), None):
        raise ValueError(f"{empty}= is empty: is a variable not set? Give a value, or leave {empty} out.")
    goes_on = next((f"{key}={values[key]}" for key in ("resume", "ckpt_path") if values.get(key) is not None), None)
    if goes_on is not None and values.get("init_from") is not None:
        raise ValueError(
            f"init_from={values['init_from']} begins anew with weights, and {goes_on} goes on with a run. Leave one of "
            "them out."
        )
    if goes_on is not None and values.get("head.init") == "class_means":
        raise ValueError(
            f"head.init=class_means begins anew with means of the pictures, and {goes_on} goes on with the centers of "
            "a run. Leave one of them out."
        )
    if (given := values.get("resume")) is not None:
        folder = Path(str(given))
        if "ckpt_path" in values or "fit" in dict(map(_split, typed)):
            added: tuple[str, ...] = ()
        else:
            added = (f"ckpt_path={_quoted(_checkpoint(folder))}",)
        if {"-m", "--multirun"} & set(typed):
            raise ValueError("resume= goes on with one run, and -m makes many. Leave one of them out.")
        if newest_record(folder, "config") is None:
            raise ValueError(f"resume={given}: {_what_is_wrong(folder)} Give a run folder, such as runs/DATE_TIME.")
        return _read(folder, (*added, f"output_dir={_quoted(folder)}", "hydra.output_subdir=null"), typed)
    if (given := values.get("ckpt_path")) is not None and (found := _run_of(Path(str(given)))) is not None:
        return _read(found, (), typed)
    return None


def as_it_was(config: DictConfig, earlier: Earlier, compose: Callable[[list[str]], DictConfig]) -> DictConfig:
    """A composed config with the values that the run had, but for those that typed words change.

    Args:
        config: of ``earlier.words``, as composed today; changed in place.
        earlier: the run.
        compose: makes a config of words.

    Raises:
        ValueError: the run's config names a class that no config of this package and no typed word does.
    """
    before = compose(list(earlier.recorded))
    now, then, theirs = (dict(_leaves(each)) for each in (config, before, earlier.config))
    with open_dict(config):
        theirs |= {new: theirs.pop(path) for path in list(theirs) if (new := _new_path(path)) != path}
        for path, value in theirs.items():
            if path[0] in _OF_A_START or _is_made_of_others(now.get(path)):
                continue
            if path[-1] == "_target_" and now.get(path, new_target(value)) == new_target(value):
                value = new_target(value)  # and not where the run's own words name the earlier class
            unchanged = now.get(path, _MISSING) == then.get(path, _MISSING)
            if unchanged and now.get(path, _MISSING) != value and _has_room(config, path):
                OmegaConf.update(config, ".".join(path), value, force_add=True)
    _check_targets(config, earlier)
    return config


# --- details ----------------------------------------------------------------------------------------------------------


def _read(folder: Path, added: tuple[str, ...], typed: Sequence[str]) -> Earlier:
    path = newest_record(folder, "config")
    if path is None:
        raise ValueError(f"{folder} has no config.yaml.")
    config = _load(path)
    if not isinstance(config, DictConfig) or "model" not in config or "data" not in config:
        raise ValueError(f"{path} is not the config of a run of pfc-train.")
    if any(_is_made_of_others(value) for _, value in _leaves(config)):
        raise ValueError(f"{path} holds '${{', which a run's record never does. Write the value in its place.")
    words = newest_record(folder, "overrides") or folder / ".hydra" / "overrides.yaml"
    found: Any = _load(words) if words.is_file() else OmegaConf.create([])
    if not isinstance(found, ListConfig) or not all(isinstance(word, str) for word in found):
        raise ValueError(f"{words} is no list of words.")
    renewed = {_key(word) for word in typed if word.startswith("+")}  # a key is added once
    kept = [
        word
        for word in found
        if _key(word) not in _OF_A_START
        and not _key(word).startswith("hydra")
        and not (word.startswith("+") and _key(word) in renewed)
    ]
    return Earlier(folder, config, tuple(kept), added, tuple(typed))


def _load(path: Path) -> DictConfig | ListConfig:
    try:
        return OmegaConf.create(read_regular(path, _MOST).decode("utf-8"))
    except (OmegaConfBaseException, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # the YAML parser's own
        raise ValueError(f"{path} is no YAML: {str(error).splitlines()[0]}") from error


def _run_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in."""
    if not checkpoint.exists():
        return None
    for folder in list(checkpoint.absolute().parents)[:2]:
        record = newest_record(folder, "config")
        if record is not None:
            config = _load(record)
            return folder if isinstance(config, DictConfig) and {"model", "data"} <= set(config) else None
    return None


def _checkpoint(folder: Path) -> Path:
    """The newest one of a run, ``last.ckpt`` if there is one."""
    from lightning_pfc.runs.own_checkpoint import own_checkpoint  # imports torch, for which --help need not wait

    try:
        own = own_checkpoint(folder)
    except ValueError as error:
        raise ValueError(f"resume={folder}: {error}") from None
    if own is not None:
        return own
    others = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    if others:
        return others[-1]
    raise ValueError(f"resume={folder}: {_what_is_wrong(folder)}")


def _what_is_wrong(folder: Path) -> str:
    if not folder.exists():
        return "there is no such folder."
    if not folder.is_dir():
        return "it is a file; ckpt_path=FILE starts from a checkpoint."
    if newest_record(folder, "config") is None:
        return "it has no config.yaml, so it is no run folder."
    return (
        "it has no checkpoint in checkpoints/, so there is nothing to go on from yet. Start it anew with its own "
        "words, or give ckpt_path=FILE."
    )


def _split(word: str) -> tuple[str, Any]:
    """Key and value of a word; an empty key for what is none, or cannot be read."""
    if word.startswith("-") or "=" not in word:
        return "", None
    try:
        parsed = OverridesParser.create().parse_override(word)
        return str(parsed.key_or_group), parsed.value()
    except (HydraException, ValueError):
        return "", None  # Hydra will say what is wrong with it


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~").partition("@")[0]


def _quoted(path: Path) -> str:
    """In Hydra's quotes, in which backslashes are ordinary but before a quote."""
    inner = re.sub(r"(\\*)'", r"\1\1\\'", str(path))
    return "'" + re.sub(r"(\\+)$", r"\1\1", inner) + "'"


def _leaves(node: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every value with its place; lists are values, and so are empty groups. Nothing is resolved."""
    plain = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    if isinstance(plain, dict) and plain:
        for key, value in plain.items():
            yield from _leaves(value, (*path, str(key)))
    else:
        yield path, plain


def _new_path(path: Path_) -> Path_:
    return tuple(new_key(".".join(path)).split("."))


def _is_made_of_others(value: Any) -> bool:
    """Whether a value follows from others, which may have been changed."""
    if isinstance(value, list | tuple):
        return any(map(_is_made_of_others, value))
    if isinstance(value, dict):
        return any(map(_is_made_of_others, value.values()))
    return isinstance(value, str) and "${" in value


def _has_room(config: DictConfig, path: Path_) -> bool:
    """Whether a value can be put there: nothing above it is a plain value now."""
    node: Any = config
    for part in path[:-1]:
        if part not in node or node._get_node(part) is None:
            return True
        if OmegaConf.is_interpolation(node, part):
            return False
        node = node[part]
        if not isinstance(node, DictConfig):
            return node is None
    return True


def _check_targets(config: DictConfig, earlier: Earlier) -> None:
    """A run folder may come from elsewhere: it chooses among the classes of this package's configs, and calls no other.

    Raises:
        ValueError: it names another.
    """
    typed = " ".join(earlier.typed)
    for path, value in _leaves(config):
        if path[-1:] == ("_target_",) and value not in _known_targets() and str(value) not in typed:
            raise ValueError(
                f"The config of {earlier.folder} has {'.'.join(path)}={value}, which no config of this package has. "
                "If you trust it, type this word too."
            )


@functools.cache
def _known_targets() -> frozenset[str]:
    """The classes that the configs of this package name."""
    found: set[str] = set()
    for file in config_dir().rglob("*.yaml"):
        for line in file.read_text(encoding="utf-8").splitlines():
            key, colon, value = line.strip().removeprefix("- ").partition(":")
            if colon and key == "_target_":
                found.add(value.partition(" #")[0].strip())
    return frozenset(found)
