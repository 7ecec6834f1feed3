"""What the parts of the strategy know: the heads of the model, the run, and whose the classes are."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn

from lightning_pfc.checkpoint.identities import Identities
from lightning_pfc.distributed import Comm
from lightning_pfc.heads.partial_fc import PartialFC, iter_heads
from lightning_pfc.strategies.whose import names_of_data


class WithHeads(DDPStrategy):
    """DDP that finds the sharded heads of its module."""

    _clip: Literal["global", "backbone"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._run_id: str | None = None
        self._names: tuple[Any, Identities] | None = None

    @property
    def comm(self) -> Comm:
        """Who the heads talk to."""
        raise NotImplementedError

    def _is_set_up(self) -> bool:
        raise NotImplementedError

    def _attach_heads(self) -> None:
        raise NotImplementedError

    def _iter_heads(self) -> Iterator[tuple[str, PartialFC]]:
        return iter_heads(self.lightning_module) if self.lightning_module is not None else iter(())

    def _has_heads(self) -> bool:
        return next(self._iter_heads(), None) is not None

    # -- the run

    @property
    def run_id(self) -> str:
        """Of the run, which every checkpoint keeps: given, or that of the checkpoint it goes on from, or a new one."""
        if self._run_id is None:
            self._run_id = secrets.token_hex(8)
        return self._run_id

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self._run_id = run_id

    def _adopt_run(self, facts: Mapping[str, Any]) -> None:
        if self._run_id is None and self._fitting() and isinstance(facts.get("run"), str):
            self._run_id = facts["run"]

    @property
    def _trainer(self) -> Any:
        return getattr(self.lightning_module, "_trainer", None)

    def _fitting(self) -> bool:
        trainer = self._trainer
        return trainer is not None and trainer.state.fn == TrainerFn.FITTING

    def _predicting(self) -> bool:
        trainer = self._trainer
        return trainer is None or trainer.state.fn == TrainerFn.PREDICTING

    # -- whose the classes are

    def _identities(self, loop: str = "fit_loop") -> Identities | None:
        """The names of the classes, found once; whoever writes a file of them is the only one to go through them."""
        return self._as_identities(names_of_data(self._trainer, [head for _, head in self._iter_heads()], loop))

    def _as_identities(self, names: Any) -> Identities | None:
        if names is None:
            return None
        if self._names is None or self._names[0] is not names:
            self._names = names, Identities.of(names)
        return self._names[1]
