"""The public surface of the package, written down: what users import, write into configs, and type.

    python -m tests.surface          # records it anew, in surface.txt beside this file; CHANGELOG.md says what changed

A line a word: `import NAME`, `argument CLASS(NAME=)`, `group GROUP=OPTION`, `key KEY`, `command NAME`, `word COMMAND`.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
FILE = Path(__file__).with_name("surface.txt")
PACKAGES = (
    *(
        "",
        ".callbacks",
        ".checkpoint",
        ".data",
        ".data.formats",
        ".deploy",
        ".distributed",
        ".heads",
        ".heads.sampling",
    ),
    *(".losses", ".losses.auxiliary", ".metrics", ".metrics.functional", ".models", ".optim", ".planning"),
    *(".evaluation", ".plots", ".strategies"),
)
SIGNATURES = ("PartialFC", "PartialFCModule", "PartialFCStrategy", "data.IdentityDataModule", "data.Files")
PARSERS = ("ckpt", "data", "export", "gallery", "plan", "serve")


def names() -> Iterator[str]:
    """What can be imported from the public packages, and arguments of the classes that everybody uses."""
    for package in PACKAGES:
        module = importlib.import_module(f"lightning_pfc{package}")
        yield from (f"import {module.__name__}.{name}" for name in module.__all__)
    for name in SIGNATURES:
        package, _, last = f"lightning_pfc.{name}".rpartition(".")
        found = getattr(importlib.import_module(package), last)
        yield from (f"argument {name}({each}=)" for each in inspect.signature(found).parameters)


def keys() -> Iterator[str]:
    """Groups with their options, and every key that some option has."""
    folder = ROOT / "conf"
    for path in sorted(folder.rglob("*.yaml")):
        group, option = path.parent.relative_to(folder).as_posix(), path.stem
        if any(part.startswith("_") for part in path.parts) or group.startswith(("hydra", "experiment/")):
            continue
        yield f"group {group}={option}" if group != "." else f"config {option}"
        package = "" if group in (".", "experiment", "finetune", "preset", "profile") else f"{group.replace('/', '.')}."
        content: Any = OmegaConf.to_container(OmegaConf.load(path)) or {}
        yield from (f"key {package}{key}" for key in _leaves(content) if not key.startswith(("defaults", "hydra")))


def _leaves(content: Any, before: str = "") -> Iterator[str]:
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"


def words() -> Iterator[str]:
    """The console scripts, and every word that those without configs take."""
    yield from (f"command {name}" for name in re.findall(r"^(pfc-\w+) =", (ROOT / "pyproject.toml").read_text(), re.M))
    for name in PARSERS:
        parser = importlib.import_module(f"lightning_pfc.commands.{name}")._parser()
        yield from (f"word pfc-{name} {word}" for word in _words(parser))


def _words(parser: argparse.ArgumentParser, before: str = "") -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield f"{before}{name}"
                yield from _words(inner, f"{before}{name} ")
        elif action.option_strings:
            yield f"{before}{max(action.option_strings, key=len)}"
        else:
            yield f"{before}{action.dest.upper()}"


def surface() -> list[str]:
    """All of it, sorted, each once."""
    return sorted({*names(), *keys(), *words()})


def main() -> None:
    """Record it anew."""
    FILE.write_text("\n".join(surface()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
