"""A console script on top of Hydra: its words become a config, its errors one line.

Nothing here imports torch or Lightning: who asks for help, or mistypes a word, is answered at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lightning_pfc.commands.errors import cause, is_the_users
from lightning_pfc.commands.listed_groups import one_copy_for_all_groups
from lightning_pfc.commands.refused_start import no_folder_of_a_refused_start
from lightning_pfc.commands.system_errors import of_the_system
from lightning_pfc.config import explain, register_resolvers
from lightning_pfc.config_words import (
    check_flags,
    check_output_dir,
    check_working_folder,
    config_dir,
    own_folders,
    typed_folders,
    with_new_keys,
)

_log = logging.getLogger(__name__)
_FULL_ERROR = "HYDRA_FULL_ERROR"

Work = Callable[[DictConfig, Path, Sequence[str]], dict[str, Any]]


def run_application(
    name: str,
    config_name: str,
    work: Work,
    *,
    prepare: Callable[[], Sequence[str]] = lambda: sys.argv[1:],
    explain_more: Callable[[BaseException], str | None] = lambda error: None,
) -> None:
    """Run a command.

    Args:
        name: of the command, for messages.
        config_name: which of the main configs.
        work: given the config, the run folder, and the words.
        prepare: what comes before the words are read; gives those that Hydra gets.
        explain_more: what to say of an error that is neither Hydra's nor of a value; None shows where it happened.
    """
    register_resolvers()
    typed = sys.argv[:]
    helping = not {"--help", "-h"}.isdisjoint(typed[1:])
    with _hydra_raising() as before, one_copy_for_all_groups() if helping else nullcontext():
        try:
            if not helping:
                check_working_folder()
            sys.argv = [typed[0], *with_new_keys(prepare())]
            check_flags(sys.argv[1:], config_name)
            check_output_dir(sys.argv[1:])
            with own_folders(typed_folders(sys.argv[1:])):
                _application(name, config_name, work, before, typed)()
        except Exception as error:
            known = isinstance(error, HydraException | OmegaConfBaseException | ValueError | OSError)
            known = known and not isinstance(error, BrokenPipeError)  # whoever read has left, and need not be told
            text = _said(error, config_name, sys.argv[1:]) if known else explain_more(error)
            if before == "1" or text is None:
                raise
            sys.exit(f"{name}: {text}")
        finally:
            sys.argv = typed


def _application(name: str, config_name: str, work: Work, full_error: str | None, typed: list[str]) -> Any:
    # full_error: what the user had set; typed: the command line, which processes that this one starts are given again

    def task(config: DictConfig) -> dict[str, Any]:
        _restore(full_error)
        sys.argv = typed
        settings = HydraConfig.get()
        folder = Path(settings.runtime.output_dir)
        try:
            with no_folder_of_a_refused_start(folder):
                return work(config, folder, settings.overrides.task)
        except Exception as error:
            if full_error == "1" or not is_the_users(error):
                raise
            _log.debug("The run stopped.", exc_info=True)
            said = _said(cause(error), config_name)
            sys.exit(f"{name}: {said}\n(HYDRA_FULL_ERROR=1 shows where this was found.)")

    return hydra.main(config_path=str(config_dir()), config_name=config_name, version_base="1.3")(task)


def _said(error: BaseException, config_name: str, words: Sequence[str] | None = None) -> str:
    of_hydra = isinstance(error, HydraException)  # a config that is not there is both
    return of_the_system(error) if isinstance(error, OSError) and not of_hydra else explain(error, config_name, words)


@contextmanager
def _hydra_raising() -> Iterator[str | None]:
    """Hydra raises what it would print, so that it can be said better; yields what the user had set."""
    before = os.environ.get(_FULL_ERROR)
    os.environ[_FULL_ERROR] = "1"
    try:
        yield before
    finally:
        _restore(before)


def _restore(value: str | None) -> None:
    if value is None:
        os.environ.pop(_FULL_ERROR, None)
    else:
        os.environ[_FULL_ERROR] = value
