"""Pictures with several labels through data module, module and head: (b, P), -1 for none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_pfc import PartialFCModule
from lightning_pfc.data import ClassBalanced, CollateSeveralLabels, IdentityDataModule, Mix, Synthetic, pad_labels
from tests.trainer.test_module import SMALL, trainer

CLASSES = 40


@pytest.fixture(autouse=True)
def own_group(no_leaked_process_group: None) -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled(Synthetic):
    """The synthetic pictures, each with a second label, or with room for one."""

    second: str = "none"

    def open(self) -> Any:
        data = super().open()
        first = np.asarray(data.labels)
        labels = {
            "none": np.stack([first, np.full_like(first, -1)], 1),
            "another": np.stack([first, (first + 1) % self.num_classes], 1),
            "before": np.stack([np.full_like(first, -1), first], 1),
            "empty": np.full((len(first), 2), -1),
            "large": np.stack([first, first + self.num_classes], 1),
            "one": first,
        }[self.second]
        return dataclasses.replace(data, labels=labels)


def data(second: str, **options: Any) -> IdentityDataModule:
    source = Labelled(
        num_classes=CLASSES, images_per_class=4, image_size=8, dim=16, task="open", test_classes=20, impostors=500,
        second=second,
    )  # fmt: skip
    return IdentityDataModule(source, **{"batch_size": 16} | options)


class Watching(PartialFCModule):
    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.seen: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(batch[1])
        return super().training_step(batch, batch_idx)


def fit(second: str, tmp_path: Path, **head: Any) -> Watching:
    torch.manual_seed(0)
    module = Watching(**SMALL, loss="cosface", head={"sample_rate": 0.5, **head})
    trainer(tmp_path, max_epochs=1).fit(module, data(second))
    if dist.is_initialized():
        dist.destroy_process_group()
    return module


def test_they_reach_the_head_as_they_are(tmp_path: Path) -> None:
    one, none, before, another = (fit(second, tmp_path) for second in ("one", "none", "before", "another"))
    assert {labels.shape[1:] for labels in one.seen} == {()}
    for module in (none, before, another):
        assert {labels.shape[1:] for labels in module.seen} == {(2,)}
    assert torch.allclose(none.head.weight, one.head.weight, atol=1e-6)
    assert torch.allclose(before.head.weight, one.head.weight, atol=1e-6)
    assert not torch.allclose(another.head.weight, one.head.weight, atol=1e-4)


def test_a_sampler_counts_every_label(tmp_path: Path) -> None:
    module = fit("another", tmp_path, sampler={"name": "frequency"})
    assert module.head.get_buffer("sampled_count").tolist() == [8] * CLASSES


@pytest.mark.parametrize(
    ("second", "options", "said"),
    [
        ("empty", {}, "at least one in each row"),
        ("large", {}, r"ids in \[0, num_classes=40\)"),
        ("another", {"mix": Mix()}, "mix=.* wants one label a picture"),
        ("another", {"sampler": ClassBalanced()}, "sampler=ClassBalanced.* wants one label a picture"),
    ],
)
def test_what_wants_one_label_says_so(second: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        data(second, **options).setup()


def test_lists_of_any_length() -> None:
    assert pad_labels([[3], [1, 2]]).tolist() == [[3, -1], [1, 2]]
    assert pad_labels([[3], [1, 2]], width=3).tolist() == [[3, -1, -1], [1, 2, -1]]
    for labels, said in (
        ([[]], "labels\\[0\\] has 0 class ids"),
        ([[1, 2, 3]], "at most width=2"),
        ([[0, -1]], "below 0"),
    ):
        with pytest.raises(ValueError, match=said):
            pad_labels(labels, width=2)
    samples = [(torch.full((1, 2, 2), float(i)), list(range(i + 1))) for i in range(3)]
    loader: Any = DataLoader(samples, batch_size=3, collate_fn=CollateSeveralLabels(3))  # type: ignore[arg-type]
    ((pictures, labels),) = loader
    assert pictures.shape == (3, 1, 2, 2)
    assert labels.tolist() == [[0, -1, -1], [0, 1, -1], [0, 1, 2]]
