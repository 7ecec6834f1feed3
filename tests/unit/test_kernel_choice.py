"""The kernels that a head was set up with: one warning, the log, the checkpoint, and the run that goes on."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import torch.distributed as dist
from torch import nn

from lightning_pfc import PartialFC
from lightning_pfc.distributed import Comm
from lightning_pfc.kernels import choice
from lightning_pfc.kernels.library import OPERATIONS
from tests.ranks import RankPool

CUDA = torch.device("cuda", 0)


@pytest.fixture
def as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A CPU passes for a GPU; gives what says which kernels agree there."""

    def pretend(*bad: str, chip: int = 90) -> None:
        pretend_gpu(monkeypatch, bad, chip)

    pretend()
    return pretend


def pretend_gpu(patch: pytest.MonkeyPatch, bad: tuple[str, ...], chip: int = 90) -> None:
    patch.setattr(PartialFC, "device", CUDA)
    patch.setattr(choice, "_obstacle", lambda device, chip: None)
    patch.setattr(choice, "chip_of", lambda device: chip)
    patch.setattr(choice, "_COMPARED", {})
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(choice, "_PLANTED", dict.fromkeys(OPERATIONS, lambda device: [()]))
    patch.setattr(choice, "difference", lambda name, arguments: 9.0 if name in bad else 0.0)


def make(**options: Any) -> PartialFC:
    return PartialFC(embedding_dim=8, num_classes=30, loss="arcface", sample_rate=0.5, **options)


def test_every_operation_has_a_bit_for_ever() -> None:
    assert set(choice.NUMBERED) == OPERATIONS.keys()
    assert choice.NUMBERED[:3] == ("adagrad_rows_", "adamw_rows_", "bad_rows")
    assert choice.NUMBERED[-2:] == ("unpack_sums", "project_rows_")
    chosen = choice.Kernels(frozenset({"draw_uniform", "unpack_sums"}), 90)
    assert chosen.code == 90 << 48 | 1 << 4 | 1 << 16
    assert choice.Kernels.of_code(chosen.code) == chosen
    assert choice.Kernels.of_code(choice.TORCH.code) == choice.TORCH
    assert choice.Kernels.of_code(choice.NOT_CHOSEN) is None
    assert choice.Kernels.of_code(chosen.code | 1 << 40) == chosen  # an operation of a later version


def test_a_cpu_chooses_nothing() -> None:
    head = make().to("cpu")
    assert head.settle_kernels() is None
    assert int(head.kernels_code) == choice.NOT_CHOSEN


def test_one_warning_names_what_is_left_out_however_many_heads(as_if_on_a_gpu: Any) -> None:
    as_if_on_a_gpu("exponentials_")
    heads = [make(), make(seed=1)]
    with pytest.warns(UserWarning, match="kernel exponentials_ differs from plain torch by 9 times") as seen:
        found = [head.settle_kernels() for head in heads]
    assert len(seen) == 1
    assert found[0] == found[1] == choice.Kernels(frozenset(OPERATIONS) - {"exponentials_"}, 90)
    assert [int(head.kernels_code) for head in heads] == [found[0].code] * 2


def test_a_run_goes_on_with_what_its_checkpoint_kept(as_if_on_a_gpu: Any) -> None:
    as_if_on_a_gpu("exponentials_", "link_equal")
    trained = make().to("cpu")
    with pytest.warns(UserWarning, match="differs"):
        before = trained.settle_kernels()
    as_if_on_a_gpu("link_equal")  # exponentials_ would do now; that changes the bits of a step, so it stays out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for heir in (make().to("cpu"), copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
            heir.load_state_dict(trained.state_dict())
            assert int(heir.kernels_code) == before.code
            assert heir.settle_kernels() == before
    as_if_on_a_gpu("draw_uniform")  # what does not do any more is left out, with its name
    heir = make().to("cpu")
    heir.load_state_dict(trained.state_dict())
    with pytest.warns(UserWarning, match="kernel draw_uniform differs") as seen:
        assert heir.settle_kernels().names == before.names - {"draw_uniform"}
    assert len(seen) == 1
    as_if_on_a_gpu(chip=100)  # another chip: compared anew
    heir = make().to("cpu")
    heir.load_state_dict(trained.state_dict())
    assert heir.settle_kernels() == choice.Kernels(frozenset(OPERATIONS), 100)


def test_a_choice_that_is_settled_is_not_looked_at_again(as_if_on_a_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step asks three times; the code is 17 searches in a list."""
    head = make().to("cpu")
    settled = head.settle_kernels()
    monkeypatch.setattr(choice.Kernels, "code", property(lambda self: pytest.fail("computed again")))
    assert head.settle_kernels() is settled


def test_the_user_s_word_goes_before_the_checkpoint(as_if_on_a_gpu: Any) -> None:
    trained = make().to("cpu")
    trained.settle_kernels()
    heir = make(kernels="torch").to("cpu")
    heir.load_state_dict(trained.state_dict())
    assert heir.settle_kernels() == choice.TORCH
    assert int(heir.kernels_code) == choice.TORCH.code


def test_a_checkpoint_of_an_earlier_version_says_nothing() -> None:
    state = make().to("cpu").state_dict()
    del state["kernels_code"]
    heir = make().to("cpu")
    heir.load_state_dict(state)
    assert int(heir.kernels_code) == choice.NOT_CHOSEN


class Plain(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(8, 8), make()

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.head(self.backbone(batch[0]), batch[1])
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_trainer_logs_saves_and_resumes_it(as_if_on_a_gpu: Any, monkeypatch: Any, tmp_path: Any) -> None:
    said: list[str] = []
    monkeypatch.setattr("lightning_pfc.strategies.said_kernels.rank_zero_info", said.append)
    monkeypatch.setattr(choice, "_obstacle", lambda device, chip: "no" if device.type == "cpu" else None)
    data = torch.utils.data.TensorDataset(torch.randn(8, 8), torch.arange(8))

    def fit(steps: int, **options: Any) -> Plain:
        module = Plain()
        trainer = L.Trainer(
            strategy="pfc", accelerator="cpu", devices=1, max_steps=steps, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: False)  # for Lightning and the memory of rows
            patch.setattr(choice, "_found_good", lambda name, device: name not in bad)
            trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4), **options)
            trainer.save_checkpoint(tmp_path / "kept.ckpt")
        if dist.is_initialized():
            dist.destroy_process_group()
        return module

    bad = {"exponentials_"}
    first = fit(1)
    bad = set()
    again = fit(2, ckpt_path=tmp_path / "kept.ckpt")
    assert said == ["head: small operations by Triton kernels on sm_90, but exponentials_ in torch"] * 2
    assert int(again.head.kernels_code) == int(first.head.kernels_code) != choice.NOT_CHOSEN


def leave_out(rank: int, world_size: int) -> tuple[int, list[str], list[str]]:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pretend_gpu(patch, (("exponentials_",), ("bad_rows",))[rank])
        patch.setattr(PartialFC, "device", CUDA)
        head = make(comm=Comm.from_group())
        found = head.settle_kernels()
        assert found is head.settle_kernels()
        lost = sorted(OPERATIONS.keys() - found.names)
        return int(head.kernels_code), lost, [str(w.message).split()[2] for w in seen if "kernel" in str(w.message)]


def test_what_one_rank_leaves_out_is_left_out_by_all(ranks: RankPool) -> None:
    (code, lost, named), (other, also, names) = ranks.run(2, leave_out)
    assert code == other
    assert lost == also == ["bad_rows", "exponentials_"]
    assert (named, names) == (["exponentials_"], ["bad_rows"])
