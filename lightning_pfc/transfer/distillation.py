"""Distillation of features to the starting point (Li and Hoiem, arXiv:1606.09282; Romero et al., arXiv:1412.6550).

The backbone that a run begins with goes on looking at the training pictures, frozen, and the one that is trained is
asked to see them alike: ``distill`` times the mean of ``1 - cosine`` of their features is added to the loss. It is what
the network *says* of pictures that is held, where L2-SP holds its weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pfc.heads.birth import world_size


class Teacher:
    """A frozen copy of a backbone, and the term that keeps its features.

    The copy takes as much memory as the backbone, and as much of each checkpoint; a step makes one more forward of it.

    Args:
        weight: of the term, above 0.
        backbone: to be copied, as it is.
    """

    def __init__(self, weight: float, backbone: nn.Module) -> None:
        self.weight = weight
        hooks, backbone._forward_hooks = backbone._forward_hooks, type(backbone._forward_hooks)()  # not those of others
        try:
            self.network = copy.deepcopy(backbone).requires_grad_(False).eval()
        finally:
            backbone._forward_hooks = hooks

    @property
    def nbytes(self) -> int:
        """Of the copy."""
        return sum(value.numel() * value.element_size() for value in self.network.state_dict().values())

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(b, ...) to (b, F): what the backbone said when it began. Dropout is off, and statistics stay."""
        if next(self.network.parameters()).device != images.device:
            self.network.to(images.device)
        found: Tensor = self.network(images)
        return found.flatten(1)

    def term(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """() the mean of ``1 - cosine`` over the global batch, scaled for ranks whose gradients are averaged.

        Collectives: one all-reduce of a number.

        Args:
            pairs: images, and what the backbone has made of them: those of this rank's step.
        """
        apart = [1 - F.cosine_similarity(new.flatten(1).float(), self.features(x).float()) for x, new in pairs]
        total = torch.cat(apart).sum()
        count = torch.full((), float(sum(len(each) for each in apart)), device=total.device)  # no copy to wait for
        ranks = world_size()
        if ranks > 1:
            dist.all_reduce(count)
        return total * (ranks / count)


class Listening:
    """Adds a teacher's term to the loss of ``training_step`` while it is open; the module itself is not changed.

    Args:
        module: with a ``backbone``.
        backbone: of it.
        teacher: of the backbone.
    """

    def __init__(self, module: L.LightningModule, backbone: nn.Module, teacher: Teacher) -> None:
        self._module, self._teacher = module, teacher
        self._pairs: list[tuple[Tensor, Tensor]] | None = None  # of the step that is going on
        self._hook = backbone.register_forward_hook(self._hear)
        self._own = vars(module).get("training_step")  # of this object, where somebody has set one
        self._step: Callable[..., Any] = module.training_step
        module.training_step = self._taught  # type: ignore[method-assign]

    def close(self) -> None:
        """Leave the module as it was."""
        self._hook.remove()
        vars(self._module).pop("training_step", None)
        if self._own is not None:
            self._module.training_step = self._own  # type: ignore[method-assign]

    def _hear(self, backbone: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self._pairs is not None and inputs and isinstance(output, Tensor):
            self._pairs.append((inputs[0], output))

    def _taught(self, *args: Any, **kwargs: Any) -> Any:
        pairs: list[tuple[Tensor, Tensor]] = []
        self._pairs = pairs
        try:
            result = self._step(*args, **kwargs)
        finally:
            self._pairs = None
        if result is None:
            return None
        if not pairs:
            raise ValueError(
                "finetune.distill keeps the features of module.backbone, and training_step did not call it as a "
                "module: call self.backbone(images), which gives a tensor."
            )
        if not any(features.requires_grad for _, features in pairs):
            return result  # frozen: it says what it said
        term = self._teacher.term(pairs)
        self._module.log("train/distill", term.detach(), on_step=True, on_epoch=False)
        if isinstance(result, Mapping):
            return {**result, "loss": result["loss"] + self._teacher.weight * term}
        return result + self._teacher.weight * term
