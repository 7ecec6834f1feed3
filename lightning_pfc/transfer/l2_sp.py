"""L2-SP: weights are pulled to where they started from, not to zero (Li, Grandvalet and Davoine, arXiv:1802.01483)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class StartingPoint:
    """A copy of some parameters, and the pull towards it: ``weight / 2`` times the squared distance.

    The copy takes as much memory as the parameters, beside them, and as much of each checkpoint.

    Args:
        weight: alpha of the paper, above 0.
        start: values by the names of the parameters, on any device.
    """

    def __init__(self, weight: float, start: Mapping[str, Tensor]) -> None:
        self.weight = weight
        self.start = {name: value.detach().clone() for name, value in start.items()}

    @property
    def nbytes(self) -> int:
        """Of the copy."""
        return sum(value.numel() * value.element_size() for value in self.start.values())

    @torch.no_grad()
    def pull(self, parameters: Mapping[str, nn.Parameter]) -> Tensor:
        """Add the gradient of the term, ``weight * (w - start)``, to those that have a gradient.

        Args:
            parameters: by name; those without a gradient do not move, and are left out.

        Returns:
            () the term: ``weight / 2`` times the sum of squares of ``w - start``.
        """
        total: Tensor | None = None
        for name, param in parameters.items():
            if param.grad is None or name not in self.start:
                continue
            if self.start[name].device != param.device:
                self.start[name] = self.start[name].to(param.device)
            away = param.detach() - self.start[name]
            param.grad.add_(away, alpha=self.weight)
            square = away.float().square().sum()
            total = square if total is None else total + square
        return torch.zeros(()) if total is None else total * (self.weight / 2)
