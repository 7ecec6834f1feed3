"""Operations with two implementations: plain torch everywhere, Triton on a GPU, shapes alone on fake tensors.

Each is an operator of ``torch.ops.lightning_pfc``, so fake tensors, ``torch.compile`` and counters of FLOPs see it as
one thing. On a CPU it is the plain torch function, its *twin*, or, in a process that Triton was told to interpret
(``TRITON_INTERPRET=1``), the kernel. Triton is imported when a device first asks for it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "lightning_pfc"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
Launches = int | Callable[[Sequence[Any]], int]
_CHOSEN: ContextVar[Container[str] | None] = ContextVar("kernels", default=None)
HOSTS = {"cpu"}
"""Types of devices where small operations stay those of plain torch."""


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation.

    Attributes:
        name: in ``torch.ops.lightning_pfc``.
        twin: the plain torch function.
        kernel: ``"module:function"`` of what starts the Triton kernels; the function takes what the twin takes.
        launches: how many kernels a call starts at most, clearing of memory included; a function of the arguments
            where it depends on them.
    """

    name: str
    twin: Callable[..., Any]
    kernel: str
    launches: Launches

    def count_launches(self, args: Sequence[Any]) -> int:
        """How many kernels a call with these arguments starts at most."""
        return self.launches if isinstance(self.launches, int) else self.launches(args)

    def __call__(self, *args: Any, kernels: Container[str] | None = None) -> Any:
        """The operation.

        Args:
            args: of the twin.
            kernels: names of the operations that run as kernels; None: those that were found good on the device of
                the arguments, which is tried at the first call.
        """
        if not self._runs_as_kernel(args, kernels):
            return self.twin(*args)
        return getattr(getattr(torch.ops, NAMESPACE), self.name)(*args)

    def _runs_as_kernel(self, args: tuple[Any, ...], kernels: Container[str] | None) -> bool:
        if kernels is not None:
            return self.name in kernels
        return self.runs_on(next(arg.device for arg in args if isinstance(arg, torch.Tensor)))

    def runs_on(self, device: torch.device) -> bool:
        """Whether it runs as a kernel there: as :func:`using` says, else where it was found good."""
        chosen = _CHOSEN.get()
        if chosen is not None:
            return self.name in chosen
        if device.type == "cuda":
            return all(finds_good(self.name, device) for finds_good in JUDGES)
        return device.type in ("cpu", "meta")  # there is no kernel for any other

    @property
    def writes(self) -> list[bool]:
        """Which arguments are written."""
        arguments = getattr(getattr(torch.ops, NAMESPACE), self.name).default._schema.arguments
        return [argument.alias_info is not None and argument.alias_info.is_write for argument in arguments]

    @functools.cached_property
    def triton(self) -> Callable[..., Any]:
        """What starts the kernels."""
        module, _, function = self.kernel.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return found


OPERATIONS: dict[str, Operation] = {}
"""All of them, by name."""
JUDGES: list[Callable[[str, torch.device], bool]] = []
"""Who says whether an operation's kernel is used on a GPU; see :mod:`lightning_pfc.kernels.choice`."""


@contextmanager
def using(kernels: Container[str] | None) -> Iterator[None]:
    """While open, the operations of this thread that run as kernels are these; None leaves all as it is."""
    if kernels is None:
        yield
        return
    token = _CHOSEN.set(kernels)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def takes_kernels(x: Tensor) -> bool:
    """Whether the small operations around ``x`` are those of this package: on an accelerator, but for float64."""
    return x.device.type not in HOSTS and x.dtype != torch.float64


def operation(
    schema: str, twin: Callable[..., Any], fake: Callable[..., Any], kernel: str, launches: Launches
) -> Operation:
    """Register an operation.

    Args:
        schema: of the operator, as ``torch.library.define`` takes it, with its name.
        twin: plain torch; takes any device.
        fake: takes tensors without values, gives results of the right shape, dtype and device.
        kernel: see :class:`Operation`.
        launches: see :class:`Operation`.
    """
    name = schema.partition("(")[0]
    made = Operation(name, twin, kernel, launches)
    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, lambda *args: (made.triton if interpreted() else twin)(*args), "CPU")  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, lambda *args: made.triton(*args), "CUDA")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    OPERATIONS[name] = made
    return made


def differentiable(made: Operation, backward: Callable[..., Any], setup: Callable[..., None]) -> None:
    """Give an operation its derivative, as ``torch.library.register_autograd`` takes it."""
    torch.library.register_autograd(f"{NAMESPACE}::{made.name}", backward, setup_context=setup, lib=_LIBRARY)


@functools.cache
def interpreted() -> bool:
    """Whether this process interprets Triton kernels on the CPU; Triton decides when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "") == "1" and has_triton()


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed; it is not imported for the answer."""
    return importlib.util.find_spec("triton") is not None
