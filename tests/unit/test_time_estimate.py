"""How long a run will take, said after some batches."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_pfc.callbacks import TimeEstimate, time_estimate
from lightning_pfc.callbacks.time_estimate import in_words


class Model(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.head = torch.nn.Identity()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def told(
    monkeypatch: pytest.MonkeyPatch, seconds: float, *, module: Any = None, val: bool = False, **words: Any
) -> str:
    """What is said where every batch takes ``seconds``."""
    clock = iter(seconds * i for i in range(10_000))
    monkeypatch.setattr(time_estimate.time, "perf_counter", lambda: next(clock))
    said: list[str] = []
    monkeypatch.setattr(time_estimate, "rank_zero_info", lambda form, *values: said.append(form % values))
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(accelerator="cpu", callbacks=[TimeEstimate(batches=4)], **quiet, **words)
    batches: Any = DataLoader(torch.zeros(10, 1), batch_size=1)  # type: ignore[arg-type]
    trainer.fit(module or Model(), batches, batches if val else None)
    return " | ".join(said)


@pytest.mark.parametrize(
    ("seconds", "words", "expected"),
    [
        (10.0, {"max_epochs": 3}, "A batch takes 10 s, an epoch of 10 about 1.7 min, the rest of the run 4.2 min, "),
        (10.0, {"max_steps": 20, "max_epochs": -1}, "the rest of the run 2.5 min, without"),
        (10.0, {"max_epochs": 3, "accumulate_grad_batches": 2, "max_steps": 6}, "the rest of the run 1.3 min, without"),
        (1.0, {"max_epochs": 3}, ""),
        (
            8000.0,
            {"max_epochs": 3},
            "the rest of the run 2.3 days, without validation and saving. Cheaper: trainer.prec",
        ),
    ],
)
def test_the_rest_of_the_run(monkeypatch: pytest.MonkeyPatch, seconds: float, words: Any, expected: str) -> None:
    said = told(monkeypatch, seconds, **words)
    assert said == "" if not expected else (expected in said and said.count("A batch") == 1), said


def test_an_end_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.callbacks import Timer

    monkeypatch.setattr(Timer, "time_remaining", lambda self, stage=None: 3600.0)
    said = told(monkeypatch, 8000.0, max_epochs=3, max_time="00:01:00:00")
    assert "and trainer.max_time ends the run in 1 h 0 min, after 0 more" in said
    assert "Cheaper" not in said


def test_only_what_is_not_in_use_is_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Model()
    vars(module.head).update(sample_rate=1.0, num_classes=200_000)
    assert "Cheaper: head.sample_rate=0.1; a smaller" in told(
        monkeypatch, 8000.0, module=module, max_epochs=3, precision="bf16-true"
    )


def test_a_validation_among_them_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    said = told(monkeypatch, 10.0, val=True, val_check_interval=3, limit_train_batches=9, max_epochs=5)
    assert said == ""  # there are never five batches without a validation
    said = told(monkeypatch, 10.0, val=True, val_check_interval=6, limit_train_batches=9, max_epochs=5)
    assert "A batch takes 10 s" in said


def test_durations() -> None:
    found = [in_words(s) for s in (0.0431, 3.2, 42, 75, 2000, 10_000, 200_000)]
    assert found == ["0.043 s", "3.2 s", "42 s", "1.2 min", "33 min", "2 h 47 min", "2.3 days"]


def test_no_batches() -> None:
    with pytest.raises(ValueError, match="batches=0 must be at least 1"):
        TimeEstimate(batches=0)
