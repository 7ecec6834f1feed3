"""Puts conf/ into the wheel; an editable install reads the checkout's own, so that edits are seen."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ConfHook(BuildHookInterface):
    """Adds conf/ as lightning_pfc/conf to ordinary wheels only."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a build; ``version`` is "standard" or "editable"."""
        if version == "standard":
            build_data["force_include"]["conf"] = "lightning_pfc/conf"
