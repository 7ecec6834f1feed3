"""A head that began when an argument left out meant something else goes on with what it meant, and says so by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from lightning_pfc import PartialFC, PartialFCModule
from lightning_pfc import losses as L
from lightning_pfc.heads.center_init import InitialCenters
from tests.ranks import RankPool

GOLDEN = Path(__file__).parents[1] / "golden" / "defaults_version_1"  # written by the version before
LOSSES: dict[str, tuple[L.Loss, str]] = {
    "sphereface": (L.SphereFace(scale=16.0, margin=3), "beyond_pi='cosine'"),
    "combined": (L.CombinedMargin(scale=16.0, m1=2.0, m2=0.3), "beyond_pi='cosine'"),
    "mvsoftmax": (L.MVSoftmax(), "hard_weight=1.12"),
    "warmup": (L.MarginWarmup(loss=L.SphereFace(scale=16.0, margin=3), steps=3), "beyond_pi='cosine'"),
    "adaface": (L.AdaFace(), ""),
}


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 20, (9,), generator=generator)


def make_head(loss: L.Loss) -> PartialFC:
    return PartialFC(embedding_dim=6, num_classes=20, loss=loss, sample_rate=0.5, seed=2).double()


def go_on(head: PartialFC) -> torch.Tensor:
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    values = []
    for number in (2, 3):
        value = head(*batch(number))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.detach())
    return torch.stack(values)


@pytest.mark.parametrize("name", LOSSES)
def test_an_older_head_goes_on_as_it_was(name: str) -> None:
    loss, by_name = LOSSES[name]
    old = torch.load(GOLDEN / "heads.pt", weights_only=True)[name]
    head = make_head(loss)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        head.load_state_dict(old["state"])
    assert [by_name in str(w.message) for w in said] == ([True] if by_name else [])
    torch.testing.assert_close(go_on(head), old["losses"], rtol=1e-9, atol=0)

    again = make_head(loss)  # from its own checkpoint, which is still of the old version
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again.load_state_dict(head.state_dict())
    assert again.loss == head.loss
    again.load_state_dict(make_head(loss).state_dict())
    assert again.loss == loss


@pytest.mark.filterwarnings("error")
def test_an_argument_that_was_given_stays() -> None:
    old = torch.load(GOLDEN / "heads.pt", weights_only=True)
    for name, loss in {
        "sphereface": L.SphereFace(scale=16.0, margin=3, beyond_pi="psi"),
        "mvsoftmax": L.MVSoftmax(hard_weight=1.2),
    }.items():
        head = make_head(loss)
        head.load_state_dict(old[name]["state"])
        assert head.loss == loss
        assert not torch.allclose(go_on(head), old[name]["losses"])


def test_weights_alone_are_no_older_head() -> None:
    old = torch.load(GOLDEN / "heads.pt", weights_only=True)["sphereface"]
    head = make_head(L.SphereFace())
    head.load_state_dict({"weight": old["state"]["weight"]}, strict=False)
    assert head.loss == L.SphereFace()
    assert head.defaults_version == 2


def test_the_start_of_an_older_head_is_known() -> None:
    """For what compares centers with those they began as."""
    head = make_head(L.AdaFace())
    assert head.initial_centers.init == "unit"
    head.load_state_dict(torch.load(GOLDEN / "heads.pt", weights_only=True)["adaface"]["state"])
    assert head.initial_centers == InitialCenters("normal", 0.01, 6)


def test_versions_of_arguments() -> None:
    assert L.MVSoftmax().hard_weight == 1.2
    assert L.MVSoftmax().with_defaults_of(1) == L.MVSoftmax(hard_weight=1.12)
    assert L.MVSoftmax().with_defaults_of(1).with_defaults_of(2) == L.MVSoftmax()
    assert L.CombinedMargin().with_defaults_of(1) == L.CombinedMargin()
    assert L.SphereFace().with_defaults_of(1).to_config() == {"name": "SphereFace"}
    assert L.loss_from_config({"name": "sphereface", "beyond_pi": None}) == L.SphereFace(beyond_pi="psi")


class Data(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Any:
        return torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(index)), index % 10


def make_module() -> PartialFCModule:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 8))
    loss = L.SphereFace(scale=16.0, margin=3)
    return PartialFCModule(backbone=net, num_classes=10, embedding_dim=6, loss=loss, input_size=4, sample_rate=0.5)


def resume(rank: int, world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    module = make_module()
    trainer = lightning.Trainer(
        strategy="pfc", devices=1, accelerator="cpu", max_steps=4, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="goes on with them: .*beyond_pi='cosine'"):
        trainer.fit(module, torch.utils.data.DataLoader(Data(), batch_size=4), ckpt_path=str(GOLDEN / "module.ckpt"))
    return module.head.weight.detach(), module.backbone[1].weight.detach()  # type: ignore[index, union-attr]


def test_a_run_is_resumed_as_it_was(ranks: RankPool) -> None:
    later = torch.load(GOLDEN / "module_two_steps_later.pt", weights_only=True)
    weight, net = ranks.run(1, resume, group=False)[0]
    torch.testing.assert_close(weight, later["weight"], rtol=1e-5, atol=5e-7)
    torch.testing.assert_close(net, later["net"], rtol=1e-5, atol=5e-7)


def test_a_module_is_loaded_as_it_was() -> None:
    with pytest.warns(UserWarning, match="beyond_pi='cosine'"):
        module = PartialFCModule.load_from_checkpoint(
            GOLDEN / "module.ckpt", backbone=nn.Sequential(nn.Flatten(), nn.Linear(48, 8)), weights_only=True
        )
    assert module.head.loss.beyond_pi == "cosine"  # type: ignore[attr-defined]
