"""The 3 x 3 convolution beside torch's, in value and gradients, on small maps and on larger ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pfc.models.conv3x3 import Conv3x3


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("places", [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 3), (4, 1)])
@pytest.mark.parametrize("images", [1, 31, 32, 40])
def test_as_torchs_convolution(
    images: int, places: tuple[int, int], stride: int, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    conv = Conv3x3(5, 7, stride).double()
    x = torch.randn(images, 5, *places, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    weight = conv.weight.detach().clone().requires_grad_()
    found, expected = conv(x), F.conv2d(x, weight, stride=stride, padding=1)
    torch.testing.assert_close(found, expected)
    slopes = torch.randn_like(expected)
    (of_x,) = torch.autograd.grad(expected, x, slopes, retain_graph=True)
    (of_weight,) = torch.autograd.grad(expected, weight, slopes)
    torch.testing.assert_close(torch.autograd.grad(found, (x, conv.weight), slopes), (of_x, of_weight))


def products(conv: Conv3x3, x: Tensor) -> set[str]:
    """The operators that compute."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        conv(x)
    return {event.key for event in profile.key_averages()} & {"aten::conv2d", "aten::linear"}


def test_a_product_where_every_place_sees_every_place_and_images_are_many() -> None:
    conv, many = Conv3x3(5, 7), torch.randn(32, 5, 2, 2)
    assert products(conv, many) == {"aten::linear"}
    assert products(conv, many[:31]) == {"aten::conv2d"}
    assert products(conv, torch.randn(32, 5, 3, 2)) == {"aten::conv2d"}
    assert products(Conv3x3(5, 7, stride=2), many) == {"aten::conv2d"}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(
    ("places", "stride", "by"),
    [((4, 4), 1, "_KernelByProduct"), ((3, 4), 1, "_KernelByProduct"), ((8, 7), 2, "_KernelByProduct"),
     ((2, 2), 2, "_KernelByProduct"), ((5, 4), 1, "Convolution"), ((9, 8), 2, "Convolution"),
     ((2, 2), 1, "_Whole"), ((1, 2), 1, "_Whole"), ((2, 1), 1, "_Whole"), ((1, 1), 1, "_Whole")],
)  # fmt: skip
def test_the_gradients_of_bfloat16_on_small_maps(
    places: tuple[int, int], stride: int, by: str, autocast: bool, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    conv = Conv3x3(5, 7, stride)
    x = torch.randn(32, 5, *places).contiguous(memory_format=memory_format)
    if not autocast:
        conv, x = conv.bfloat16(), x.bfloat16()
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = conv(x)
    assert found.dtype == torch.bfloat16
    assert type(found.grad_fn).__name__.startswith(by)
    exact = x.detach().bfloat16().double().requires_grad_()
    weight = conv.weight.detach().bfloat16().double().requires_grad_()
    expected = F.conv2d(exact, weight, stride=stride, padding=1)
    slopes = torch.randn_like(found)
    torch.autograd.backward(found, slopes)
    torch.autograd.backward(expected, slopes.double())
    for ours, theirs in ((found, expected), (x.grad, exact.grad), (conv.weight.grad, weight.grad)):
        assert ours is not None
        assert theirs is not None
        assert float((ours.detach().double() - theirs.detach()).norm() / theirs.detach().norm()) < 4e-3


@pytest.mark.parametrize("edge", [2, 4])
def test_nothing_is_kept_for_a_gradient_that_nobody_asks_for(edge: int) -> None:
    conv, x = Conv3x3(5, 7).bfloat16(), torch.randn(32, 5, edge, edge).bfloat16()
    with torch.no_grad():
        assert conv(x).grad_fn is None
    conv.weight.requires_grad_(False)
    x.requires_grad_()
    (of_x,) = torch.autograd.grad(conv(x).sum(), x)
    assert of_x.shape == x.shape
    assert conv.weight.grad is None


def test_under_autocast_it_gives_its_precision() -> None:
    x = torch.randn(32, 5, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert Conv3x3(5, 7)(x).dtype == torch.bfloat16


def test_an_exported_graph_has_a_convolution_and_batches_of_any_size() -> None:
    conv = Conv3x3(5, 7)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(conv, (torch.randn(2, 5, 2, 2),), dynamic_shapes=({0: batch},))
    assert any("conv2d" in str(node.target) for node in program.graph.nodes)
    for images in (1, 3, 64):
        x = torch.randn(images, 5, 2, 2)
        torch.testing.assert_close(program.module()(x), conv(x))
