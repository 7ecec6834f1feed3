"""What a config says of a protocol, its type and arguments: checked before a model is loaded."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lightning_pfc.checked import check_call, check_path
from lightning_pfc.evaluation.report import ProtocolResult
from lightning_pfc.metrics.functional.checks import check_rate

_Method = TypeVar("_Method", bound=Callable[..., ProtocolResult])
_FILES = {"path", "images", "embeddings", "gallery", "probes", "distractors", "root", "identities"}

PROTOCOLS: dict[str, Callable[..., ProtocolResult]] = {}
"""Types of protocols, each with its method of :class:`~lightning_pfc.evaluation.protocols.Evaluator`."""


def protocol(*types: str) -> Callable[[_Method], _Method]:
    """Decorator: the method is what configs call by one of ``types``, with its arguments as keys."""

    def keep(method: _Method) -> _Method:
        PROTOCOLS.update(dict.fromkeys(types, method))
        return method

    return keep


def check_protocol(
    name: str, protocol: str | os.PathLike[str] | Mapping[str, Any]
) -> tuple[Callable[..., ProtocolResult], dict[str, Any]]:
    """The method and the arguments that a protocol of a config stands for, without running it.

    Raises:
        ValueError: As :meth:`Evaluator.run`.
    """
    if not isinstance(protocol, Mapping):
        protocol = {"type": "bin" if str(protocol).endswith(".bin") else "pairs", "path": protocol}
    arguments = dict(protocol)
    kind = arguments.pop("type", None)
    if str(kind) not in PROTOCOLS:
        raise ValueError(f"protocols.{name} has type {kind!r}; there are: {', '.join(sorted(PROTOCOLS))}")
    method = PROTOCOLS[str(kind)]
    try:
        inspect.signature(method).bind(None, name, **arguments)
    except TypeError as error:
        raise ValueError(f"protocols.{name} of type {kind}: {error}") from error
    for key in _FILES & set(arguments):
        if arguments[key] is not None:
            check_path(f"protocols.{name}.{key}", arguments[key])
    _check_values(f"protocols.{name}", method, arguments)
    return method, arguments


def _check_values(where: str, method: Callable[..., ProtocolResult], arguments: Mapping[str, Any]) -> None:
    """Values that are no paths, before a model is loaded and the first set measured."""
    check_call(method, {key: value for key, value in arguments.items() if key not in _FILES}, where)
    for key in ("block", "draws"):
        if key in arguments and arguments[key] < 1:
            raise ValueError(f"{where}.{key}={arguments[key]} must be at least 1")
    if "far" in arguments:
        check_rate(arguments["far"], f"{where}.far")


def missing_files(name: str, protocol: str | os.PathLike[str] | Mapping[str, Any]) -> list[str]:
    """The files and folders of a protocol that are not there; patterns of shards are left to their reader.

    Raises:
        ValueError: As :meth:`Evaluator.run`.
    """
    arguments = check_protocol(name, protocol)[1]
    groups = arguments.get("of", {})
    within = [path for group, entry in groups.items() for path in missing_files(f"{name}.of.{group}", entry)]
    named = [str(value) for key, value in arguments.items() if key in _FILES and value is not None]
    return [path for path in named if not set(path) & set("{*") and not Path(path).exists()] + within
