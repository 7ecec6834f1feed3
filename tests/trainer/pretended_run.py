"""A small module trained, validated and tested on the pretended device, and what the host waited for in each step."""

from __future__ import annotations

import json
from typing import Any

import lightning as L
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader, TensorDataset

from lightning_pfc import PartialFCModule
from lightning_pfc.callbacks import ProgressBar, Throughput
from tests.trainer.pretended_device import NAME, PretendedDevice


class Arrival:
    """In place of ``torch.Event``: of a batch's check, which the next step looks at; it has long been there by then."""

    def __init__(self, device: Any) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class ThatDevice(Accelerator):
    """For Lightning."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


class Steps(L.Callback):
    """What was waited for in each step, from the end of the one before to its own; and its loss, read afterwards."""

    def __init__(self, device: PretendedDevice) -> None:
        self.device = device
        self.waits: list[list[str]] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.waits.append(list(self.device.waits))
        self.losses.append(float(outputs["loss"]))
        self.device.waits.clear()


class Pictures(L.LightningDataModule):
    """Six batches of noise with a label."""

    def train_dataloader(self) -> DataLoader[Any]:
        noise = torch.Generator().manual_seed(0)
        pictures, people = (
            torch.randn(6, 32, 3, 32, 32, generator=noise),
            torch.randint(0, 50, (6, 32), generator=noise),
        )
        return DataLoader(TensorDataset(pictures, people), batch_size=None)

    test_dataloader = val_dataloader = train_dataloader


def trained(bar: L.Callback, device: PretendedDevice, **words: Any) -> Steps:
    """Of a run of six steps, validated and tested."""
    L.seed_everything(0, verbose=False)
    optimizer = {"name": "sgd", "lr": 1e-3}
    module = PartialFCModule(
        backbone="test_resnet", num_classes=50, embedding_dim=16, sample_rate=0.5, optimizer=optimizer
    )
    steps = Steps(device)
    trainer = L.Trainer(
        max_epochs=1, callbacks=[steps, bar, Throughput()], logger=False, log_every_n_steps=2, inference_mode=False,
        enable_checkpointing=False, enable_model_summary=False, **words,
    )  # fmt: skip
    trainer.fit(module, datamodule=Pictures())
    trainer.test(module, datamodule=Pictures(), verbose=False)
    return steps


def our_bar() -> ProgressBar:
    """It has looked at the loss once, and does so again at the end: its clock stands still."""
    bar = ProgressBar(seconds=1e9)
    bar.clock = lambda: 0.0
    return bar


def main() -> None:
    """Print, as JSON, what each step waited for, and the losses; the device is registered by then."""
    device, there = PretendedDevice(), torch.device(NAME, 0)
    torch.Event = Arrival  # type: ignore[assignment,misc]
    with device:
        mixed = ""
        try:
            torch.zeros(3, device=there) + torch.zeros(3)
        except RuntimeError as error:
            mixed = str(error)
        ours, lightnings = (
            trained(bar, device, strategy=SingleDeviceStrategy(there, accelerator=ThatDevice()))
            for bar in (our_bar(), TQDMProgressBar())
        )
    host = trained(our_bar(), device, accelerator="cpu")
    waits = {"ours": ours.waits, "lightnings": lightnings.waits}
    print("\n" + json.dumps({"mixed": mixed, **waits, "losses": ours.losses, "host": host.losses}))
