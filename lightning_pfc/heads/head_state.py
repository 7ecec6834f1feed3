"""What a head keeps beside its centers: tensors of its loss and sampler, and how they are saved and loaded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_pfc.distributed.collectives import summed_gradient
from lightning_pfc.heads.center_init import initial_centers
from lightning_pfc.heads.changed_options import ChangedOptions, check_memory
from lightning_pfc.heads.kernel_choice import KernelChoice
from lightning_pfc.heads.outside_graphs import outside_graphs
from lightning_pfc.heads.product_precision import ProductPrecision
from lightning_pfc.heads.sampling import Sampler
from lightning_pfc.heads.selective_checkpoints import without_selection
from lightning_pfc.heads.sharded_centers import (
    LOSS_PREFIX,
    MEMORY_PREFIX,
    SAMPLED_PREFIX,
    SAMPLER_PREFIX,
    ShardedCenters,
)
from lightning_pfc.heads.softmax.precision import PrecisionWord
from lightning_pfc.kernels.choice import Kernels
from lightning_pfc.losses import Loss
from lightning_pfc.losses.auxiliary import AuxiliaryLoss
from lightning_pfc.losses.base import DEFAULTS_VERSION
from lightning_pfc.matmul.in_precision import Precision
from lightning_pfc.names.renamed import warn_renamed

_OF_SAMPLERS = (SAMPLER_PREFIX, SAMPLED_PREFIX)


class HeadState(ChangedOptions, ShardedCenters):
    """Registers what a loss and a sampler keep as buffers and parameters, and gives it back under their names.

    Attributes:
        step: () int64 buffer, training forwards so far.
        defaults_version: () int64 buffer, which version's defaults the head began with. A head that goes on from an
            older one trains with what the older one meant by the arguments that were left out.
        precision_code: () int64 buffer, what products are computed in, as
            :class:`~lightning_pfc.heads.product_precision.ProductPrecision` numbers it.
        kernels_code: () int64 buffer, which small operations run as kernels, as
            :attr:`~lightning_pfc.heads.kernel_choice.KernelChoice.code` numbers it.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """To ``torch.compile`` and to checkpoints what a head does with a batch is one call, in a subclass too."""
        super().__init_subclass__(**options)
        for name in ("prepare", "loss_output", "target_ranks"):
            if name in vars(cls):
                setattr(cls, name, outside_graphs(without_selection(vars(cls)[name])))

    step: Tensor
    defaults_version: Tensor
    precision_code: Tensor
    kernels_code: Tensor
    kernel_choice: KernelChoice
    embedding_dim: int
    loss: Loss
    sampler: Sampler
    auxiliary_losses: tuple[AuxiliaryLoss, ...]
    _init_left_out: bool
    _products: ProductPrecision

    @property
    def device(self) -> torch.device:
        """Where the head computes: where its centers are, or, with centers on the host, where it was moved to."""
        return self.weight.device if self.rows_on == "device" else self.step.device

    @property
    def precision(self) -> PrecisionWord:
        """What products are computed in; ``auto`` until the head is set up, at the latest in its first forward."""
        return self._products.settled or self._products.word

    @property
    def asked_precision(self) -> PrecisionWord:
        """What was asked for."""
        return self._products.word

    def settle_precision(self, device: torch.device, trainer_precision: str | None = None) -> Precision:
        """What products are computed in; found the first time, the same ever after.

        Args:
            device: where the head computes.
            trainer_precision: the Trainer's, in Lightning's words; None in a plain script.
        """
        found = self._products.settled
        if found is None:
            found = self._products.settle(device, trainer_precision)
            self.precision_code.fill_(self._products.code)
        return found

    def settle_kernels(self) -> Kernels | None:
        """The small operations that run as kernels; chosen the first time, then the same. None off a GPU.

        One exchange on the CPU the first time on a GPU; every rank must come here.
        """
        found = self.kernel_choice.settled
        if found is None:
            found = self.kernel_choice.settle(self.device, self.comm.agreement)
            if found is not None:
                self.kernels_code.fill_(found.code)
        return found

    def _register_state(self) -> None:
        """Register everything; to be called once loss, auxiliary losses and sampler are there."""
        self._sampler_cache: dict[str, Any] = {}
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device="cpu"))
        self.register_buffer("defaults_version", torch.tensor(DEFAULTS_VERSION, device="cpu"))
        self.register_buffer("precision_code", torch.tensor(self._products.code, device="cpu"))
        self.register_buffer("kernels_code", torch.tensor(self.kernel_choice.code, device="cpu"))
        self._register_loss_tensors()
        self._register_sampler_tensors()
        self._settle_options()

    def _register_loss_tensors(self) -> None:
        for name, value in self.loss.initial_state(self.num_classes).items():
            self.register_buffer(LOSS_PREFIX + name, value.cpu())
        for name, value in self.loss.initial_parameters(self.num_classes).items():
            self.register_parameter(LOSS_PREFIX + name, nn.Parameter(value.cpu()))
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        parts: list[Loss | AuxiliaryLoss] = [self.loss, *self.auxiliary_losses]
        check_memory(parts, self.embedding_dim)
        for part in parts:
            for name, shape in part.class_buffers(self.embedding_dim).items():
                self._register_class_buffer(MEMORY_PREFIX + name, shape, wide)

    def _register_sampler_tensors(self) -> None:
        for name, value in self.sampler.initial_state(self.num_classes, self.embedding_dim).items():
            self.register_buffer(SAMPLER_PREFIX + name, value.cpu())
        for name, (shape, dtype) in self.sampler.row_state(self.embedding_dim).items():
            self._register_class_buffer(SAMPLED_PREFIX + name, shape, dtype)

    def _register_class_buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.register_buffer(name, torch.zeros((self.num_classes, *shape), dtype=dtype, device="meta"))

    @property
    def additions(self) -> tuple[AuxiliaryLoss, ...]:
        """The earlier name of ``auxiliary_losses``."""
        warn_renamed("PartialFC.additions", "auxiliary_losses")
        return self.auxiliary_losses

    @additions.setter
    def additions(self, losses: Sequence[AuxiliaryLoss]) -> None:
        warn_renamed("PartialFC.additions", "auxiliary_losses")
        self.auxiliary_losses = tuple(losses)

    # --- under the names of those who use them ------------------------------------------------------------------------

    def _loss_state(self) -> dict[str, Tensor]:
        """Averages of the loss."""
        return self._buffers_named(LOSS_PREFIX)

    def _class_memory(self) -> dict[str, Tensor]:
        """What the losses remember of every class, (c, ...) each."""
        return self._buffers_named(MEMORY_PREFIX)

    def _sampler_state(self) -> dict[str, Tensor]:
        """What the sampler keeps, small tensors and rows alike."""
        return self._buffers_named(SAMPLER_PREFIX) | self._buffers_named(SAMPLED_PREFIX)

    def _loss_parameters(self) -> dict[str, Tensor]:
        """What the loss learns, so that the gradients of all ranks are added up: each rank knows its own part."""
        return {
            name.removeprefix(LOSS_PREFIX): summed_gradient(parameter, self.comm.group)
            for name, parameter in self._parameters.items()
            if parameter is not None and name.startswith(LOSS_PREFIX)
        }

    def _buffers_named(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): buffer
            for name, buffer in self._buffers.items()
            if buffer is not None and name.startswith(prefix)
        }

    # --- loading ------------------------------------------------------------------------------------------------------

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, *args: Any
    ) -> None:
        # A run may go on with another sampler, which then begins without a memory of its own.
        own = {f"{prefix}{name}": value for name, value in self._buffers.items() if name.startswith(_OF_SAMPLERS)}
        for key in [key for key in state_dict if key.startswith(tuple(prefix + word for word in _OF_SAMPLERS))]:
            if key not in own:
                del state_dict[key]
        self._sampler_cache.clear()
        if self._comm is None:
            self._ensure_storage()
        for key in own:
            state_dict.setdefault(key, self._buffers[key.removeprefix(prefix)])
        if prefix + "step" in state_dict:  # a head that goes on: of the first version if it does not say
            self.initial_centers = self.initial_centers._replace(awaits_means=False)
            version = state_dict.setdefault(prefix + "defaults_version", torch.tensor(1))
            self._keep_defaults_of(int(version))
            code = state_dict.setdefault(prefix + "precision_code", self.precision_code)
            self._products.load(int(code), tell=self.comm.rank == 0)
            state_dict[prefix + "precision_code"] = torch.full_like(code, self._products.code)
            self.kernel_choice.load(int(state_dict.setdefault(prefix + "kernels_code", self.kernels_code)))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *args)

    def _keep_defaults_of(self, version: int) -> None:
        """Go on with what the arguments that were left out meant in that version, and say so where it differs."""
        loss = self.loss.with_defaults_of(version)
        if loss != self.loss:
            self.loss = loss
            if self.comm.rank == 0:
                warnings.warn(
                    f"this head began with other defaults and goes on with them: {loss}. Give the arguments by name to "
                    "change that.",
                    stacklevel=2,
                )
        if self._init_left_out:
            init = loss.center_init if version > 1 else "normal"
            self.initial_centers = initial_centers(init, None, init, (self.num_classes, self.embedding_dim))
