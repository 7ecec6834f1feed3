"""The kernels' operations without a GPU: plain torch on a CPU, shapes alone on fake tensors, launches as declared."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import lightning_pfc.heads.sampling.draw_kernel
import lightning_pfc.optim.row_kernels  # noqa: F401  registers its operations
from lightning_pfc import PartialFC, kernels
from lightning_pfc.kernels import choice, library
from lightning_pfc.kernels.library import OPERATIONS
from lightning_pfc.optim import SparseSGD, fused_rows
from lightning_pfc.planning.work import WorkLog

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_neither_package_nor_operations_import_triton():
    code = "import sys, lightning_pfc.heads.sampling.draw_kernel, lightning_pfc.optim.row_kernels\n"
    code += "sys.exit(any(name.startswith('lightning_pfc.kernels.gpu') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_cpu_has_plain_torch(monkeypatch):
    assert choice.choose("auto", CPU) == choice.TORCH
    assert str(choice.choose("torch", CUDA)) == "plain torch"


@pytest.mark.parametrize(
    ("word", "device", "said"),
    [
        ("cuda", CPU, "kernels='cuda' is unknown; use one of auto, torch, triton."),
        (
            "triton",
            CPU,
            "kernels='triton' cannot be had: they run on a GPU, and the head is on cpu",
        ),
    ],
)
def test_a_word_that_cannot_be_followed_is_an_error(word, device, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        choice.choose(word, device)


def test_an_old_chip_and_a_missing_triton_are_named(monkeypatch):
    monkeypatch.setattr(choice, "chip_of", lambda device: 75)
    assert choice.choose("auto", CUDA) == choice.TORCH
    with pytest.raises(ValueError, match=r"compute capability 7.5, and they need 8.0"):
        choice.choose("triton", CUDA)
    monkeypatch.setattr(choice, "has_triton", lambda: False)
    with pytest.raises(ValueError, match="Triton is not installed"):
        choice.choose("triton", CUDA)


@pytest.mark.parametrize("name", sorted(choice._PLANTED))
def test_fake_tensors_have_the_shapes_of_the_twin(name):
    for arguments in choice._PLANTED[name](CPU):
        real = OPERATIONS[name].twin(*(a.clone() if isinstance(a, torch.Tensor) else a for a in arguments))
        with FakeTensorMode() as mode:
            given = [mode.from_tensor(a).to(CUDA) if isinstance(a, torch.Tensor) else a for a in arguments]
            fake = OPERATIONS[name](*given)
        for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (real, fake)), strict=True):
            if one is None:
                assert other is None
                continue
            assert (one.shape, one.dtype, one.is_contiguous()) == (other.shape, other.dtype, other.is_contiguous())
            assert other.device == CUDA


@pytest.mark.skipif("triton" not in sys.modules and not choice.has_triton(), reason="Triton is not installed")
@pytest.mark.parametrize("name", sorted(choice._PLANTED))
def test_no_more_launches_than_declared(name):
    from lightning_pfc.kernels.launching import counted_launches, recorded_launches

    for arguments in choice._PLANTED[name](CPU):
        given = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]
        with counted_launches() as names, recorded_launches():
            OPERATIONS[name].triton(*given)
        declared = OPERATIONS[name].count_launches(given)
        assert len(names) == declared or (name == "exponentials_" and len(names) <= declared)


def test_the_operations_are_differentiable_in_float64():
    torch.manual_seed(0)
    weight = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    index, targets = torch.tensor([0, 2, 5]), torch.tensor([[0, -1], [1, 1], [2, 0], [-1, -1]])
    assert torch.autograd.gradcheck(lambda w: kernels.gather_normalize_round(w, index, torch.float64), (weight,))
    assert torch.autograd.gradcheck(lambda a, w: kernels.target_cosines(a, w, index, targets), (x, weight))
    assert torch.autograd.gradcheck(lambda a, w: kernels.target_cosines(a, w, None, targets, False), (x, weight))


def test_a_program_that_is_compiled_sees_one_operator_each():
    weight, targets = torch.randn(30, 16), torch.tensor([[3], [-1]])
    x = torch.nn.functional.normalize(torch.randn(2, 16))

    def step(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        unit, _ = kernels.gather_normalize_round(weight, None, torch.float32)
        scores = x @ unit.t()
        sums = kernels.exponentials_(scores, scores, 8.0, 8.0, targets)
        return sums, kernels.target_cosines(x, weight, None, targets)

    graph = torch.compile(step, backend="aot_eager", fullgraph=True)
    for one, other in zip(graph(x, weight), step(x, weight), strict=True):
        assert torch.allclose(one, other)


def test_a_head_says_which_words_there_are():
    with pytest.raises(ValueError, match=r"kernels='cuda' is unknown; use one of auto, torch, triton"):
        PartialFC(embedding_dim=4, num_classes=9, loss="arcface", kernels="cuda")


@pytest.mark.skipif(choice.interpreted(), reason="interpreted kernels run on a CPU")
def test_a_head_on_a_cpu_refuses_triton_in_one_line():
    head = PartialFC(embedding_dim=4, num_classes=9, loss="arcface", kernels="triton")
    with pytest.raises(ValueError, match=r"kernels='triton' cannot be had: .*; use 'auto' or 'torch'") as raised:
        head(torch.randn(3, 4), torch.arange(3))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("loss", ["arcface", "curricularface"])
@pytest.mark.parametrize("word", ["torch", "auto"])
def test_the_word_of_a_head_holds_forward_and_backward(word, loss, monkeypatch):
    """As on an accelerator: operations are called as such, or plain torch does their work."""
    monkeypatch.setattr(library, "HOSTS", set())
    head = PartialFC(embedding_dim=8, num_classes=30, loss=loss, sample_rate=0.5, kernels=word).to("cpu")
    optimizer = SparseSGD(head.parameters(), lr=0.1, update_in_backward=True)
    monkeypatch.setattr(fused_rows, "DEVICES", ("cpu",))
    with WorkLog("cpu") as log:
        head(torch.randn(4, 8, requires_grad=True), torch.arange(4)).backward()
    optimizer.step()
    ours = [work.name for work in log.works if work.name in OPERATIONS]
    if word == "torch":
        assert not ours
    else:
        assert {"unit_embeddings", "unit_embeddings_backward", "sgd_rows_"} <= set(ours)


def test_equal_targets_of_a_large_batch_are_linked_in_little_memory():
    """Each beside each would be 10^12 comparisons, and as many numbers."""
    targets = torch.arange(10**6).view(250_000, 4) % 999_983
    following = kernels.link_equal(targets)
    assert following.dtype == torch.int32
    last = 10**6 - 999_983
    assert torch.equal(following[:last], -1 - torch.arange(999_983, 10**6, dtype=torch.int32))
    assert (following[last:999_983] == -1 - 10**6).all()
    assert (following[999_983:] == 10**6).all()


@pytest.mark.parametrize("labels", [[], [3], [3, 3, 3], [-1, 5, -1, 5, 2, -1]])
def test_equal_targets_are_linked_in_their_order(labels):
    targets = torch.tensor(labels, dtype=torch.int64)[:, None]
    expected = []
    for place, label in enumerate(labels):
        later = next((other for other in range(place + 1, len(labels)) if labels[other] == label), len(labels))
        expected.append(later if label in labels[:place] else -1 - later)
    assert kernels.link_equal(targets).tolist() == expected
