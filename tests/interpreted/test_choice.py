"""Which operations run as kernels: each is compared with plain torch on the device, and left out if it differs."""

from __future__ import annotations

import warnings

import pytest
import torch

import lightning_pfc.heads.sampling.draw_kernel
import lightning_pfc.optim.row_kernels  # noqa: F401  registers its operations
from lightning_pfc import kernels
from lightning_pfc.kernels import choice
from lightning_pfc.kernels.gpu import calls, drawing, updating
from lightning_pfc.kernels.library import OPERATIONS

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_compared(monkeypatch):
    monkeypatch.setattr(choice, "_COMPARED", {})


def test_every_kernel_agrees_with_its_twin_on_planted_inputs():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = choice.choose("auto", CPU)
    assert chosen.names == OPERATIONS.keys()
    assert chosen.names == choice._PLANTED.keys()


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_a_kernel_that_raises_is_replaced_by_torch(name, monkeypatch):
    def broken(*args):
        raise RuntimeError("out of\nresource: shared memory")

    monkeypatch.setitem(vars(OPERATIONS[name]), "triton", broken)
    with pytest.warns(UserWarning, match=f"The kernel {name} raises RuntimeError: out of resource") as seen:
        assert not choice._agrees(name, CPU)
    assert len(seen) == 1


def test_what_was_left_out_is_named(monkeypatch):
    monkeypatch.setattr(choice, "_agrees", lambda name, device: name != "draw_uniform")
    chosen = choice.choose("triton", CPU)
    assert chosen.names == OPERATIONS.keys() - {"draw_uniform"}
    assert str(chosen) == "Triton kernels on sm_0, but draw_uniform in torch"


MUTATIONS = {
    "gather_normalize_round": lambda unit, inverse: (unit * 1.05, inverse),
    "target_cosines": lambda cosines: cosines + 1e-3,
    "draw_uniform": lambda index, *rest: (index.flip(0), *rest),
}


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_a_kernel_that_gives_other_results_is_noticed(name, monkeypatch):
    real = OPERATIONS[name].triton

    def wrong(*args):
        results = real(*args)
        return MUTATIONS[name](*results) if isinstance(results, tuple) else MUTATIONS[name](results)

    monkeypatch.setitem(vars(OPERATIONS[name]), "triton", wrong)
    with pytest.warns(UserWarning, match=f"The kernel {name} differs from plain torch by"):
        assert not choice._agrees(name, CPU)


@pytest.mark.parametrize("name", ["exponentials_", "target_gradients_", "sgd_rows_", "adamw_rows_", "adagrad_rows_"])
@pytest.mark.parametrize("harm", ["nothing is written", "NaN"])
def test_a_kernel_that_writes_other_numbers_is_noticed(name, harm, monkeypatch):
    real = OPERATIONS[name].triton

    def wrong(*args):
        if harm == "NaN":
            real(*args)
            (args[1] if name == "exponentials_" else args[6] if name == "target_gradients_" else args[0])[0, 0] = (
                torch.nan
            )
        return OPERATIONS[name].twin(*args).neg() if name == "exponentials_" else None

    monkeypatch.setitem(vars(OPERATIONS[name]), "triton", wrong)
    with pytest.warns(UserWarning, match=f"The kernel {name} differs from plain torch by"):
        assert not choice._agrees(name, CPU)


def test_an_operation_that_was_left_out_is_done_by_its_twin(monkeypatch):
    def broken(*args, **options):
        raise AssertionError("the kernel was called")

    for module in (calls, drawing, updating):
        for name in ("launch",):
            monkeypatch.setattr(module, name, broken)
    weight = torch.randn(9, 16)
    unit, _ = kernels.gather_normalize_round(weight, None, torch.float32, kernels=choice.TORCH)
    assert torch.allclose(unit, torch.nn.functional.normalize(weight))
    with pytest.raises(AssertionError, match="was called"):
        kernels.gather_normalize_round(weight, None, torch.float32)


def test_what_was_chosen_is_kept(monkeypatch):
    monkeypatch.setattr(choice, "_agrees", lambda name, device: name != "draw_uniform")
    chosen = choice.Kernels(frozenset({"exponentials_", "link_equal"}), 0)
    assert choice.choose("auto", CPU, kept=chosen) == chosen
    worse = choice.Kernels(frozenset({"exponentials_", "draw_uniform"}), 0)
    assert choice.choose("auto", CPU, kept=worse).names == {"exponentials_"}
    other = choice.Kernels(frozenset({"exponentials_"}), 80)  # of another chip: compared anew
    assert choice.choose("auto", CPU, kept=other).names == OPERATIONS.keys() - {"draw_uniform"}
    assert choice.choose("torch", CPU, kept=chosen) == choice.TORCH
