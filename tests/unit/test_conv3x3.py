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


def test_under_autocast_it_gives_its_precision() -> None:
    x = torch.randn(32, 5, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert Conv3x3(5, 7)(x).dtype == torch.bfloat16


def test_an_exported_graph_has_a_convolution() -> None:
    graph = torch.export.export(Conv3x3(5, 7), (torch.randn(32, 5, 2, 2),)).graph
    assert any("conv2d" in str(node.target) for node in graph.nodes)
