"""One step of a parameter that is stepped by rows, in chunks, in plain torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from lightning_pfc.kernels.capture import capturing
from lightning_pfc.keyed_random.rounding_noise import RowNoise
from lightning_pfc.names.renamed import renamed_names
from lightning_pfc.optim.row_formats import FullRows, RowStorage, noise_of, weight_storage
from lightning_pfc.optim.rows import RowChunk, first_row


class StepsRows(ABC):
    """What an optimizer is to a step of rows: a rule for some of them, and what is common to all."""

    @abstractmethod
    def _update_rows(
        self, weight: Tensor, state: dict[str, Tensor], grad: Tensor, group: dict[str, Any], step: int
    ) -> None:
        """The rule, for some rows.

        Args:
            weight: ``(n, *rest)``, changed in place.
            state: Rows of the state, ``(n, ...)`` each, changed in place.
            grad: ``(n, *rest)``, left as it is.
            group: Options.
            step: Number of this step, from 1.
        """

    @abstractmethod
    def _row_noise(self, param: Tensor, group: dict[str, Any], step: int) -> RowNoise:
        """Bits for the rounding of a step."""

    @abstractmethod
    def _begin_rows(self, param: Tensor, group: dict[str, Any]) -> RowStep:
        """Counts a step of a parameter that is stepped by rows."""

    @abstractmethod
    def _group_of(self, param: Tensor) -> dict[str, Any]:
        """The options of a parameter."""


@dataclass(frozen=True, eq=False)
class RowStep:
    """One step of one parameter, to be applied to its rows in chunks.

    Attributes:
        optimizer: Knows the rule.
        param: Parameter ``(R, *rest)``.
        state: Its state.
        storages: How each state of the rule is kept.
        group: Options.
    """

    optimizer: StepsRows
    param: Tensor
    state: dict[str, Tensor]
    storages: dict[str, RowStorage]
    group: dict[str, Any]

    @cached_property
    def step(self) -> int:
        """Number of the step, from 1; with ``capturable=True`` the host waits for it.

        Raises:
            RuntimeError: while a CUDA graph is captured.
        """
        if capturing(self.param.device):
            raise RuntimeError(
                f"plain torch steps these rows of {type(self.optimizer).__name__} and reads the number of the step, so "
                "that no CUDA graph can hold it; give update_in_backward=True, and kernels='auto' to the head."
            )
        return int(self.state["step"])

    @cached_property
    def noise(self) -> RowNoise:
        """Bits for rounding."""
        return self.optimizer._row_noise(self.param, self.group, self.step)

    def apply(self, chunk: RowChunk, weight: Tensor | None = None) -> None:
        """Applies the rule to the rows of a chunk; no row may come twice in one step.

        Args:
            chunk: Row numbers and gradients.
            weight: The rows of the parameter, if the caller has read them; overwritten.
        """
        kept_weight, tensors = weight_storage(self.param.dtype), {"": self.param}
        in_place = isinstance(chunk.rows, slice) and isinstance(kept_weight, FullRows)  # reading is a view then
        if weight is None or in_place or weight.dtype != kept_weight.compute_dtype:
            weight = kept_weight.read("", tensors, chunk.rows)
        rows = {name: storage.read(name, self.state, chunk.rows) for name, storage in self.storages.items()}
        grad = chunk.grad.to(weight.dtype)
        self.optimizer._update_rows(weight, rows, grad, self.group, self.step)
        start = first_row(self.param)
        kept_weight.write("", tensors, chunk, weight, noise_of(self.noise, chunk, start, 0))
        for stream, (name, storage) in enumerate(self.storages.items(), 1):
            storage.write(name, self.state, chunk, rows[name], noise_of(self.noise, chunk, start, stream))


_OF_ROW_UPDATE = ("RowUpdate", "row_update")
__getattr__ = renamed_names(__name__, {name: f"lightning_pfc.optim.row_update:{name}" for name in _OF_ROW_UPDATE})
