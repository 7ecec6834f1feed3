"""What a step makes a GPU do, counted without one; fused ways give the same numbers as those of plain torch."""

from __future__ import annotations

import pytest
import torch

from lightning_pfc import PartialFC
from lightning_pfc.heads.softmax.chunking import bytes_to_keep, chunk_width
from lightning_pfc.optim import RowWiseAdagrad, SparseAdamW, SparseSGD, fused_rows
from lightning_pfc.planning.fake_step import FakeStep, fake_head, fake_step
from lightning_pfc.strategies.clip import clip_grad_norm_

BUDGET = 8 << 30  # what a sixteenth of an H200's memory is


def counted(rate: float, batch: int, loss: str = "cosface", *, in_backward: bool = True) -> FakeStep:
    head = fake_head(
        embedding_dim=512,
        num_classes=1_000_000,
        loss=loss,
        sample_rate=rate,
        precision="bfloat16",
        memory_budget=BUDGET,
    )
    return fake_step(
        head,
        lambda params: SparseSGD(params, lr=0.1, momentum=0.9, update_in_backward=in_backward),
        batch,
        torch.bfloat16,
    )


@pytest.mark.parametrize(("batch", "loss", "most"), [(1024, "cosface", 3.3e9), (8192, "arcface", 15.1e9)])
def test_a_sampled_step(batch, loss, most):
    step = counted(0.1, batch, loss)
    draws = [work for work in step.works if work.name == "draw_uniform"]
    assert [work.launches for work in draws] == [6]
    assert draws[0].bytes < 10e6
    assert not [work for work in step.works if work.name in ("sort", "cumsum", "scatter", "searchsorted")]
    assert sum(work.launches for work in step.works) <= 40
    assert sum(work.bytes for work in step.works) <= most
    assert not any(work.waits for work in step.works)


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_an_update_after_the_backward_pass_is_one_kernel_too(rate):
    """The gradient is written, read again, and never sorted, added up or copied."""
    inside, after = (counted(rate, 1024, in_backward=way) for way in (True, False))
    rows = int(1_000_000 * rate)
    assert [work.name for work in after.optimizer if work.bytes > 1e6] == ["sgd_rows_"]
    assert sum(work.launches for work in after.works) <= sum(work.launches for work in inside.works) + 4
    more = sum(work.bytes for work in after.works) - sum(work.bytes for work in inside.works)
    assert more <= 3.1 * rows * 512 * 4  # projected: read and written beside the centers; then read by the optimizer
    assert not any(work.waits for work in after.works)


def test_a_chunk_of_a_whole_softmax():
    """Launches beyond the chunks, and of each, from two numbers of chunks."""
    found = {}
    for classes in (1_000_000, 2_000_000):
        head = fake_head(
            embedding_dim=512, num_classes=classes, loss="cosface", precision="bfloat16", memory_budget=1 << 40,
            chunk_size=100_000,
        )  # fmt: skip
        step = fake_step(head, lambda p: SparseSGD(p, lr=0.1, momentum=0.9, update_in_backward=True), 1024)
        found[classes] = sum(work.launches for work in step.works)
    each = (found[2_000_000] - found[1_000_000]) / 10
    assert each <= 12
    assert found[1_000_000] - 10 * each <= 30


@pytest.mark.parametrize(("batch", "most"), [(1024, 50), (8192, 350)])
def test_few_chunks_where_memory_allows(batch, most):
    assert sum(work.launches for work in counted(1.0, batch).works) <= most


def test_a_chunk_stays_within_the_budget():
    gpu = torch.device("meta")
    for batch, rows, budget in [(1024, 10**6, 8 << 30), (8192, 10**6, 8 << 30), (64, 10**5, 1 << 28), (512, 10**7, 0)]:
        shape = {"kept_bytes": 2, "budget": budget}
        width = chunk_width(batch, rows, 512, gpu, **shape)
        kept = min(rows * batch * 2, bytes_to_keep(width, batch, 512, gpu, **shape))
        worked_on = width * (batch * 6 + 512 * 8)
        assert kept + worked_on <= budget or (width <= 64 * 132 and kept == 0)
        assert rows <= width * -(-rows // width) < rows + width


@pytest.mark.parametrize("in_backward", [True, False])
@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (SparseSGD, {"momentum": 0.9, "weight_decay": 1e-3}),
        (SparseSGD, {"momentum": 0.9, "nesterov": True, "state_dtype": "int8"}),
        (SparseSGD, {}),
        (SparseAdamW, {"missed_steps": "decay"}),
        (SparseAdamW, {"state_dtype": "bfloat16"}),
        (RowWiseAdagrad, {"weight_decay": 1e-3}),
    ],
)
def test_a_fused_update_is_the_update(make, options, rate, in_backward, monkeypatch):
    found, calls = [], []
    apply = fused_rows.FusedRows.apply
    monkeypatch.setattr(fused_rows.FusedRows, "apply", lambda *a, **k: (calls.append(k["projects"]), apply(*a, **k)))
    for fused in (False, True):
        monkeypatch.setattr(fused_rows, "DEVICES", ("cpu",) if fused else ())
        torch.manual_seed(0)
        head = PartialFC(embedding_dim=8, num_classes=60, loss="cosface", sample_rate=rate, chunk_size=25).to("cpu")
        optimizer = make(head.parameters(), lr=0.1, update_in_backward=in_backward, **options)
        for step in range(4):
            torch.manual_seed(step)
            x = torch.randn(12, 8, requires_grad=True)
            head(x, torch.randint(60, (12,))).backward()
            optimizer.step()
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] *= 0.9
        found.append((head.weight.detach(), x.grad))
    assert calls
    assert in_backward or not any(calls)  # what is in .grad is the gradient of the centers
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-4, atol=1e-6)
    # of entries near 1: four steps make 1e-5 of a rounding
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-4, atol=2e-5)
    assert (
        found[0][0] - PartialFC(embedding_dim=8, num_classes=60, loss="cosface").to("cpu").weight
    ).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["accumulated", "clipped", "made anew", "dense"])
def test_a_gradient_that_is_not_as_the_head_gave_it(kind, monkeypatch):
    """Several backward passes, another's row numbers, or none: the fused update takes each for what it is."""
    found, given = [], []
    kernel = fused_rows._OPERATIONS["SparseSGD"]

    class Watched:
        runs_on = staticmethod(kernel.runs_on)

        def __call__(self, *arguments):
            given.append(arguments[3])
            kernel(*arguments)

    monkeypatch.setitem(fused_rows._OPERATIONS, "SparseSGD", Watched())
    for fused in (False, True):
        monkeypatch.setattr(fused_rows, "DEVICES", ("cpu",) if fused else ())
        torch.manual_seed(0)
        head = PartialFC(embedding_dim=8, num_classes=60, loss="cosface", sample_rate=0.3).to("cpu")
        optimizer = SparseSGD(head.parameters(), lr=0.1, momentum=0.9)
        for step in range(3):
            torch.manual_seed(step)
            for _ in range(2 if kind == "accumulated" else 1):
                head(torch.randn(12, 8), torch.randint(60, (12,))).backward()
            if kind == "clipped":
                clip_grad_norm_([], [head.weight], 0.5, head.comm)
            elif kind == "made anew":  # the same number of entries, some of them twice
                grad = head.weight.grad
                rows = grad._indices().flip(1)
                rows[:, :2] = rows[:, 2:3]
                head.weight.grad = torch.sparse_coo_tensor(rows, grad._values(), grad.shape)
            elif kind == "dense":
                head.weight.grad = head.weight.grad.to_dense().t().contiguous().t()
            optimizer.step()
            optimizer.zero_grad()
        found.append(head.weight.detach())
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-6)
    assert len(given) == 3
    assert all(grad.is_contiguous() for grad in given)  # a kernel would read anything else wrongly


def test_the_word_for_kernels_holds_for_the_optimizer(monkeypatch):
    monkeypatch.setattr(fused_rows, "DEVICES", ("cpu",))
    monkeypatch.setattr(fused_rows.FusedRows, "apply", lambda *args, **options: pytest.fail("a kernel was started"))
    head = PartialFC(embedding_dim=8, num_classes=60, loss="cosface", sample_rate=0.3, kernels="torch").to("cpu")
    optimizer = SparseSGD(head.parameters(), lr=0.1)
    before = head.weight.detach().clone()
    head(torch.randn(12, 8), torch.arange(12)).backward()
    optimizer.step()
    assert not torch.equal(head.weight, before)


def test_a_rule_of_somebodys_own_is_not_replaced(monkeypatch):
    class Mine(SparseSGD):
        def _update_rows(self, weight, state, grad, group, step):
            weight.zero_()

    monkeypatch.setattr(fused_rows, "DEVICES", ("cpu",))
    head = PartialFC(embedding_dim=8, num_classes=20, loss="cosface").to("cpu")
    optimizer = Mine(head.parameters(), lr=0.1, update_in_backward=True)
    head(torch.randn(4, 8), torch.arange(4)).backward()
    optimizer.step()
    assert not head.weight.any()
