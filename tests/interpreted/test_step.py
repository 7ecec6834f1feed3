"""A whole training step by kernels, as on an accelerator, is the step of plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_pfc import PartialFC, losses
from lightning_pfc.kernels import library
from lightning_pfc.kernels.launching import counted_launches
from lightning_pfc.kernels.library import OPERATIONS
from lightning_pfc.optim import SparseSGD, fused_rows

LOSSES = [losses.ArcFace(), losses.CosFace(label_smoothing=0.1), losses.MagFace(), losses.CurricularFace()]


def steps(loss: losses.Loss, rate: float, precision: str, chunk_size: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, gradient of the last embeddings, centers after three steps."""
    head = PartialFC(
        embedding_dim=24, num_classes=90, loss=loss, sample_rate=rate, precision=precision, chunk_size=chunk_size
    ).to("cpu")
    optimizer = SparseSGD(head.parameters(), lr=0.1, momentum=0.9, update_in_backward=True)
    found = []
    for step in range(3):
        torch.manual_seed(step)
        x = torch.randn(7, 24, requires_grad=True)
        labels = torch.randint(90, (7,))
        labels[1] = labels[0]
        value = head(x, labels)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(value.detach())
    return torch.stack(found), x.grad, head.weight.detach()


@pytest.mark.parametrize(
    ("loss", "rate", "chunk_size"),
    [(0, 1.0, 40), (0, 0.3, None), (0, 0.0, None), (1, 0.3, 40), (2, 1.0, None), (2, 0.3, 40), (3, 0.3, 40)],
    ids=lambda value: type(LOSSES[value]).__name__ if isinstance(value, int) and value < 4 else None,
)
def test_a_step_by_kernels_is_a_step_of_plain_torch(loss, rate, chunk_size, monkeypatch):
    loss = LOSSES[loss]
    expected = steps(loss, rate, "float32", chunk_size)
    monkeypatch.setattr(library, "HOSTS", set())
    monkeypatch.setattr(fused_rows, "DEVICES", ("cpu",))
    found = steps(loss, rate, "float32", chunk_size)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 2e-5 * other.norm()


def test_in_half_precision_the_loss_is_near(monkeypatch):
    expected = steps(LOSSES[0], 0.3, "float32", 40)
    monkeypatch.setattr(library, "HOSTS", set())
    monkeypatch.setattr(fused_rows, "DEVICES", ("cpu",))
    with counted_launches() as names:
        found = steps(LOSSES[0], 0.3, "bfloat16", 40)
    assert {"unit_embeddings", "exponentials", "center_gradients", "begin_gradients", "sgd_rows"} <= set(names)
    assert torch.allclose(found[0], expected[0], rtol=1e-2)
    assert torch.nn.functional.cosine_similarity(found[1], expected[1]).min() > 0.995


@pytest.mark.parametrize("name", ["unit_embeddings", "margin_logits"])
def test_derivatives_of_kernels_are_those_of_plain_torch(name):
    torch.manual_seed(0)
    x = torch.randn(9, 20) * 3 if name == "unit_embeddings" else torch.rand(40) * 1.9 - 0.95
    rest = () if name == "unit_embeddings" else (8.0, 0.8, 0.6, 0.1, 1.0 - 1e-7, True)
    grads = []
    for function, dtype in ((OPERATIONS[name], torch.float32), (OPERATIONS[name].twin, torch.float64)):
        leaf = x.to(dtype).requires_grad_()
        out = function(leaf, *rest)
        weights = torch.linspace(-1, 1, out[0].numel(), dtype=dtype).view(out[0].shape)
        total = (out[0] * weights).sum() + (out[1].square().sum() if name == "unit_embeddings" else 0.0)
        (grad,) = torch.autograd.grad(total, leaf)
        grads.append(grad)
    assert torch.allclose(grads[0].double(), grads[1], rtol=1e-5, atol=1e-6)


def test_embeddings_may_be_a_view_where_their_kernel_was_left_out(monkeypatch):
    """Plain torch keeps the order of their numbers, and the other kernels read what it gives."""
    found = []
    for layout in (torch.Tensor.contiguous, lambda x: x.t().contiguous().t()):
        with monkeypatch.context() as patch:
            patch.setattr(library, "HOSTS", set())
            head = PartialFC(
                embedding_dim=24, num_classes=90, loss=LOSSES[0], sample_rate=0.3, precision="float16x3"
            ).to("cpu")
            torch.manual_seed(0)
            x = layout(torch.randn(7, 24)).requires_grad_()
            with library.using(OPERATIONS.keys() - {"unit_embeddings"}):
                head(x, torch.randint(90, (7,))).backward()
        found.append((head.weight.grad.to_dense(), x.grad))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


def test_an_optimizer_whose_state_is_a_view_steps_by_plain_torch(monkeypatch):
    """A checkpoint of somebody's own may hold momentum that lies the other way round."""
    found = []
    for layout in (torch.Tensor.contiguous, lambda x: x.t().contiguous().t()):
        with monkeypatch.context() as patch:
            patch.setattr(library, "HOSTS", set())
            patch.setattr(fused_rows, "DEVICES", ("cpu",))
            head = PartialFC(embedding_dim=24, num_classes=90, loss=LOSSES[0]).to("cpu")
            optimizer = SparseSGD(head.parameters(), lr=0.1, momentum=0.9, update_in_backward=True)
            optimizer.allocate_state()
            state, (start,) = optimizer.state_dict(), optimizer.state.values()
            torch.manual_seed(0)
            moving = torch.randn_like(start["momentum_buffer"])
            state["state"][0]["momentum_buffer"] = layout(moving)
            optimizer.load_state_dict(state)
            head(torch.randn(7, 24), torch.randint(90, (7,))).backward()
        found.append(head.weight.detach())
    assert torch.allclose(*found, rtol=1e-5, atol=1e-6)
