"""Names that were given up go on working, with one warning that names the new one."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_pfc import PartialFC
from lightning_pfc.losses import Loss, MagFace
from lightning_pfc.losses.auxiliary import AuxiliaryLoss
from lightning_pfc.names import renamed
from lightning_pfc.names.moved import _MODULES, _NAMES


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is said about names, as in a process that has said nothing yet."""
    monkeypatch.setattr(renamed, "_told", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found: list[str] = []
        yield found
        found += [str(w.message) for w in caught]


@pytest.mark.parametrize("old", _MODULES)
def test_modules_under_their_old_names(old: str) -> None:
    sys.modules.pop(old, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        renamed._told.discard(old)
        module = importlib.import_module(old)
    assert [f"{old} is called {_MODULES[old]} now" in str(w.message) for w in caught] == [True]
    assert caught[0].category is FutureWarning
    new = importlib.import_module(_MODULES[old])
    for name in vars(new):
        if not name.startswith("_"):
            assert getattr(module, name) is getattr(new, name)


def test_names_that_changed_with_their_modules() -> None:
    for name in _NAMES:
        module, _, old = name.partition(":")
        former = next(key for key, value in _MODULES.items() if value == module)
        where, _, new = _NAMES[name].rpartition(":")
        assert getattr(importlib.import_module(former), old) is getattr(importlib.import_module(where or module), new)


def test_a_script_of_before_runs_and_is_told_where_it_says_so() -> None:
    script = "\n".join(
        [
            "import lightning_pfc.protocols.suite as suite",
            "print(suite.Suite.__name__)  # imports torch, which looks into all modules",
            "from lightning_pfc.losses import Rows",
            "from lightning_pfc.heads.gathered import Gathered",
            "import lightning_pfc.losses.additions.triplet as triplet",
            "print(Rows.__name__, Gathered.__name__, triplet.Triplet.__name__)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Evaluator", "BatchInfo", "GlobalBatch", "Triplet"]
    assert done.stderr.count("FutureWarning") == 4 + 2  # the packages of suite and of additions, too
    assert "sys:1" not in done.stderr


def test_a_loss_of_before(said: list[str]) -> None:
    """Its methods have the names and arguments that they had."""

    @dataclass(frozen=True, kw_only=True)
    class Doubled(MagFace):
        def row_losses(
            self,
            target_logits: Tensor,
            negative_logsumexp: Any,
            negative_sum: Any,
            num_sampled: Any,
            rows: Any,
            state: Any,
        ) -> Tensor:
            assert rows.labels.shape == target_logits.shape
            return 2 * super().row_losses(target_logits, negative_logsumexp, negative_sum, num_sampled, rows, state)

    x, labels = torch.randn(3, 4), torch.tensor([1, 2, 3])
    values = [PartialFC(embedding_dim=4, num_classes=9, loss=loss)(x, labels) for loss in (Doubled(), MagFace())]
    torch.testing.assert_close(values[0], 2 * values[1])


def test_a_loss_of_before_that_remembers(said: list[str]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Mine(Loss):
        def row_memory(self, embedding_dim: int) -> dict[str, tuple[int, ...]]:
            return {"feature": (embedding_dim,)}

        def prototype_shares(self, memory: Any, rows: Any) -> Tensor:
            return torch.full((memory["feature"].shape[0],), 0.1)

        def remembered(self, x: Tensor, rows: Any) -> dict[str, Tensor]:
            return {"feature": torch.ones_like(x)}

    @dataclass(frozen=True, kw_only=True)
    class Extra(AuxiliaryLoss):
        def row_memory(self, embedding_dim: int) -> dict[str, tuple[int, ...]]:
            return {"seen": ()}

        def __call__(self, embeddings: Tensor, labels: Tensor, memory: Any = None) -> Tensor:
            return memory["seen"].sum()

        def remembered(self, embeddings: Tensor, labels: Tensor, memory: Any) -> dict[str, Tensor]:
            return {"seen": memory["seen"] + 1}

    head = PartialFC(embedding_dim=4, num_classes=9, loss=Mine(), additions=[Extra()])
    x, labels = torch.randn(3, 4), torch.tensor([1, 2, 3])
    head(x, labels)
    assert head.memory_feature[1].tolist() == [1.0] * 4  # type: ignore[index]
    assert head.memory_seen.sum() == 3  # type: ignore[operator]
    assert head.loss.row_memory(4) == {"feature": (4,)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        head.loss.nothing  # noqa: B018
    assert head.additions == head.auxiliary_losses == (Extra(),)


def test_a_sampler_of_before(said: list[str]) -> None:
    from lightning_pfc.heads.sampling import Sampler

    @dataclass(frozen=True, kw_only=True)
    class Neighbours(Sampler):
        fills_up = True

        def classes(self, step: Any) -> Tensor:
            return (step.targets + 1).clamp(max=step.num_classes - 1)

        def samples(self, rate: float) -> bool:
            return True

    head = PartialFC(embedding_dim=4, num_classes=40, loss="cosface", sampler=Neighbours(), sample_rate=0.5).to("cpu")
    assert head.is_subsampling
    assert head.sampler.fills_up
    assert len(head._sample(torch.tensor([3, 9]), torch.tensor([3, 9])).index) == 20
