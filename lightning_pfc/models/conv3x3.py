"""The 3 x 3 convolution of our networks; on small maps, where a library's is slow on a CPU, by matrix products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_ROWS = 32  # images from which on a product pays: its matrix is laid out anew each time
_SMALL = 4  # places of an edge of the output up to which the gradient of a bfloat16 kernel is a product


class Conv3x3(nn.Conv2d):
    """``nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)``: (B, inside, H, W) -> (B, outside, H', W').

    Small pictures end in maps of 2 x 2 or 1 x 1 places, of which every place of the output sees every place of the
    input. A processor's convolution spends most of its time on the padding there, so the whole is a product; in
    bfloat16 with gradients laid out for it. The gradient of a bfloat16 kernel, a sum over few places of many images,
    is a product on outputs of up to 4 x 4 places, too. Elsewhere, on a GPU and in exported graphs it is the library's
    convolution.
    """

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__(inside, outside, 3, stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """As ``nn.Conv2d``, to rounding."""
        # first of all whether this is recorded: a graph that is asked for its batch has that size for ever
        if _is_recorded() or len(x) < _ROWS or not x.is_cpu:
            return super().forward(x)
        height, width = x.shape[-2:]
        whole = self.stride == (1, 1) and max(height, width) <= 2
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if dtype != torch.bfloat16 or not torch.is_grad_enabled() or max(height, width) > _SMALL * self.stride[0]:
            return self._product(x, height, width) if whole else super().forward(x)
        # autocast does not see inside of a function of ours
        operands = (x.to(dtype), self.weight.to(dtype))
        y: Tensor = _Whole.apply(*operands)[0] if whole else _KernelByProduct.apply(*operands, self.stride[0])
        return y

    def _product(self, x: Tensor, height: int, width: int) -> Tensor:
        kernel = self.weight.permute(0, 2, 3, 1)  # channels last, as the map mostly is
        seen = [kernel[:, 1 - i : 1 - i + height, 1 - j : 1 - j + width] for i in range(height) for j in range(width)]
        matrix = torch.stack(seen).flatten(0, 1).flatten(1)  # (H W outside, H W inside)
        y = F.linear(x.permute(0, 2, 3, 1).flatten(1), matrix)
        return y.view(len(x), height, width, self.out_channels).permute(0, 3, 1, 2)


class _KernelByProduct(torch.autograd.Function):
    """The library's convolution; the gradient of its kernel as a product of gradients and what each place saw."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        return F.conv2d(x, weight, None, stride, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.stride = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            more = ([ctx.stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, [True, False, False])
            of_x = torch.ops.aten.convolution_backward(grad, x, weight, None, *more)[0]
        if ctx.needs_input_grad[1]:
            of_weight = _of_kernel(x, grad, ctx.stride)
        return of_x, of_weight, None


class _Whole(torch.autograd.Function):
    """A convolution to a map of up to 2 x 2 places as one product: :meth:`Conv3x3._product` in fewer copies.

    Places of the output are taken backwards, so that its matrix is a view of the kernel, laid out once. The kernel's
    gradient is the sum of the matrix's blocks, in float32. Autograd would make a kernel of zeros around each block.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inside, height, width = x.shape[1:]
        kernel = weight.permute(0, 2, 3, 1)[:, 2 - height : 1 + height, 2 - width : 1 + width].contiguous()
        of_outside, of_row, of_place, _ = kernel.stride()
        blocks = kernel.as_strided(
            (height, width, len(kernel), height, width, inside), (of_row, of_place, of_outside, of_row, of_place, 1)
        )
        matrix = blocks.reshape(height * width * len(kernel), -1)
        rows = x.permute(0, 2, 3, 1).reshape(len(x), -1)
        y = (rows @ matrix.t()).view(len(x), height, width, len(kernel)).flip(1, 2)
        return y.permute(0, 3, 1, 2), rows, matrix

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])
        ctx.place = inputs[0].shape[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, matrix = ctx.saved_tensors
        inside, height, width = ctx.place
        of_rows = grad.permute(0, 2, 3, 1).flip(1, 2).reshape(len(grad), -1)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = (of_rows @ matrix).view(len(grad), height, width, inside).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            blocks = (of_rows.t() @ rows).view(height, width, -1, height, width, inside)
            kernel = rows.new_zeros(blocks.shape[2], 3, 3, inside, dtype=torch.float32)
            for i in range(height):
                for j in range(width):
                    kernel[:, 2 - height + i : 2 + i, 2 - width + j : 2 + j] += blocks[i, j]
            of_weight = kernel.permute(0, 3, 1, 2).to(rows.dtype)
        return of_x, of_weight


def _of_kernel(x: Tensor, grad: Tensor, stride: int) -> Tensor:
    """Gradient of the kernel, (outside, inside, 3, 3), of (B, inside, H, W) and the output's (B, outside, H', W')."""
    images, inside = x.shape[:2]
    outside, *places = grad.shape[1:]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    of_image, of_row, of_place, _ = padded.stride()
    seen = padded.as_strided(
        (images, *places, 3, 3, inside), (of_image, of_row * stride, of_place * stride, of_row, of_place, 1)
    )
    rows = grad.permute(0, 2, 3, 1).reshape(-1, outside)
    return (rows.t() @ seen.reshape(len(rows), -1)).view(outside, 3, 3, inside).permute(0, 3, 1, 2)


def _is_recorded() -> bool:
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
