"""Compiles the kernels for chips that are not there, and says what the assembler made of them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.kernels.launching import Launch
from lightning_pfc.kernels.tiles import SHARED_BYTES

_POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
_COMPILER_OPTIONS = ("num_warps", "num_stages")
# The matrix units' instructions: as the compiler asks for them, and as they are called from Ampere to Blackwell.
_ASKED = re.compile(r"\bw?g?mma\.|\btcgen05\.mma")
_MATRIX = re.compile(r"\b(?:H|Q|I|B|D|O)G?MMA\b|\bUTC\w*MMA\b")


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What a kernel became on a chip.

    Attributes:
        name: of the kernel and its kind.
        chip: compute capability times ten.
        registers: of a thread.
        stack: bytes of a thread that live in memory and not in registers.
        spills: bytes that are written to or read from there for want of registers.
        shared: bytes of shared memory of a program.
        matrix: instructions of the matrix units.
        file: the machine code.
    """

    name: str
    chip: int
    registers: int
    stack: int
    spills: int
    shared: int
    matrix: int
    file: Path

    @property
    def faults(self) -> list[str]:
        """Why it is not to be used; nothing if it may be."""
        limit = SHARED_BYTES[self.chip]
        found = []
        if self.stack:
            found.append(f"uses {self.stack} bytes of stack")
        if self.spills:
            found.append(f"spills {self.spills} bytes")
        if self.shared > limit:
            found.append(f"needs {self.shared} bytes of shared memory, the chip has {limit}")
        return found


def compile_kernel(name: str, launch: Launch, chip: int, folder: Path) -> Compiled:
    """Compile one launch for a chip and write ``NAME.sm_NN.cubin``.

    Raises:
        RuntimeError: if it does not compile; the message is the compiler's.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    options = {key: value for key, value in launch.options.items() if key in _COMPILER_OPTIONS}
    try:
        with _assembler_says() as said:
            compiled = triton.compile(_source(launch), target=GPUTarget("cuda", chip, 32), options=options)
    except Exception as error:
        raise RuntimeError(f"{name} does not compile for sm_{chip}: {str(error).strip() or repr(error)}") from error
    text: str = compiled.asm["ptx"]
    cubin = folder / f"{name}.sm_{chip}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    registers, stack, spills = _uses(name, said.getvalue())
    return Compiled(
        name=name,
        chip=chip,
        registers=registers,
        stack=max(stack, _stack_of(cubin)),
        spills=spills,
        shared=compiled.metadata.shared,
        matrix=_matrix_instructions(cubin) if _ASKED.search(text) else 0,  # taking it apart takes half a second
        file=cubin,
    )


def _source(launch: Launch) -> Any:
    """The kernel with the types that its arguments have, as Triton specialises it when it is started."""
    from triton.compiler import ASTSource

    kernel = launch.kernel
    constants = {key: value for key, value in launch.options.items() if key not in _COMPILER_OPTIONS}
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, launch.arguments, strict=False)):
        kind, aligned = _describe(value)
        signature[name] = kind
        if kind == "constexpr":
            constants[name] = value
        if aligned:
            attributes[(place,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    ordered = {name: signature[name] for name in kernel.arg_names}
    return ASTSource(kernel, signature=ordered, constexprs=constants, attrs=attributes)


def _describe(value: Any) -> tuple[str, bool]:
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype], True
    if isinstance(value, float):
        return "fp32", False
    if value == 1:
        return "constexpr", False
    return "i32" if -(2**31) <= value < 2**31 else "u64" if value >= 2**63 else "i64", value % 16 == 0


@contextmanager
def _assembler_says() -> Iterator[StringIO]:
    """What ``ptxas -v`` says while Triton compiles; it keeps that to itself, and compiles equal kernels once."""
    from triton import knobs

    said = StringIO()
    with knobs.nvidia.scope(), knobs.compilation.scope(), redirect_stdout(said):
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True
        yield said


def _uses(name: str, said: str) -> tuple[int, int, int]:
    """Registers, stack and spills as ``ptxas -v`` gives them."""
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    registers = re.findall(r"Used (\d+) registers", said)
    if not frames or not registers:
        raise RuntimeError(f"ptxas did not say what {name} uses: {said.strip()}")
    stack = max(int(frame[0]) for frame in frames)
    return max(map(int, registers)), stack, max(int(stores) + int(loads) for _, stores, loads in frames)


def _stack_of(cubin: Path) -> int:
    """The stack in the machine code itself, which is there however the assembler was asked."""
    found = re.findall(r"STACK:(\d+)", _run(_tool("cuobjdump"), "--dump-resource-usage", str(cubin)))
    return max((int(size) for size in found), default=0)


def _matrix_instructions(cubin: Path) -> int:
    return len(_MATRIX.findall(_run(_tool("cuobjdump"), "--dump-sass", str(cubin))))


def _tool(name: str) -> str:
    from triton import knobs

    path: str = getattr(knobs.nvidia, name).path
    return path


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} fails: {(done.stderr or done.stdout).strip()}")
    return done.stdout + done.stderr
