"""Processes that rank 0 starts by itself, and that end with it."""

from __future__ import annotations

import os

from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lightning_pfc.processes.launching import RANK_0


class ScriptLauncher(_SubprocessScriptLauncher):
    """Lightning's, which runs the script again for each process; it tells them who has started them."""

    def _call_children_scripts(self) -> None:
        os.environ[RANK_0] = str(os.getpid())
        try:
            super()._call_children_scripts()
        finally:
            os.environ.pop(RANK_0, None)
