"""What a stranger can do to the port of the heartbeat: nothing.

    python recipes/slurm/flood.py --seconds 60

Three ranks train twice, once left alone and once while strangers flood the port in every way below. One rank keeps away
from the port until the flood is over, so that the port is open all the time; otherwise it closes within a second of the
start. Both runs must end with the same bits, no rank may be accused, and the late one must get in at last.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import resource
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_pfc import PartialFC
from lightning_pfc.callbacks import Watchdog
from lightning_pfc.distributed.heartbeat import Heartbeat, Kind

RANKS, PAUSE = 3, 0.05  # seconds in each step


def say_nothing(connection: socket.socket) -> None:
    time.sleep(1.0)


def leave_at_once(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # with a reset


def send_noise(connection: socket.socket) -> None:
    for _ in range(100):
        connection.sendall(random.randbytes(4096))


def send_brackets(connection: socket.socket) -> None:
    connection.sendall(b"[" * 60_000 + b"\n" + b'{"a":' * 60_000)


def never_end_a_line(connection: socket.socket) -> None:
    for _ in range(100):
        connection.sendall(b"x" * 10_000)


def go_on_slowly(connection: socket.socket) -> None:
    for letter in b"hello\t1\t" + b"0" * 32:
        connection.sendall(bytes([letter]))
        time.sleep(0.05)


def say_hello_only(connection: socket.socket) -> None:
    connection.sendall(b"hello\t1\t" + b"0" * 32 + b"\n")
    time.sleep(1.0)


def guess(connection: socket.socket) -> None:
    connection.sendall(b"hello\t1\t" + b"0" * 32 + b"\n")
    connection.recv(1000)
    connection.sendall(b"proof\t" + b"0" * 64 + b"\thost\t1\n" + b"bye\n" * 1000)


CASES: dict[str, Callable[[socket.socket], None]] = {
    each.__name__: each
    for each in (
        say_nothing,
        leave_at_once,
        send_noise,
        send_brackets,
        never_end_a_line,
        go_on_slowly,
        say_hello_only,
        guess,
    )
}


class Flood:
    """Strangers at a port, for as long as the ``with`` block lasts.

    Args:
        host, port: where.
        case: one of ``CASES``, or ``"all"`` of them by turns.
        threads: strangers at a time.

    Attributes:
        connections: made so far.
        refused: that were not, since nobody listened.
    """

    def __init__(self, host: str, port: int, case: str = "all", threads: int = 16) -> None:
        self.place = (host, port)
        chosen = list(CASES.values()) if case == "all" else [CASES[case]]
        self.connections = self.refused = 0
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(chosen[number % len(chosen)],), daemon=True)
            for number in range(threads)
        ]

    def __enter__(self) -> Flood:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(3.0)

    def _run(self, act: Callable[[socket.socket], None]) -> None:
        while not self._over.is_set():
            try:
                connection = socket.create_connection(self.place, timeout=2.0)
            except OSError:
                self.refused += 1
                time.sleep(0.01)
                continue
            self.connections += 1
            with connection, contextlib.suppress(OSError):
                act(connection)


class Model(L.LightningModule):
    """Small, and slow enough to last."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(16, 16)
        self.head = PartialFC(embedding_dim=16, num_classes=1000, loss="CosFace", sample_rate=0.3)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss."""
        time.sleep(PAUSE)
        return self.head(self.backbone(batch[0]), batch[1])  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Note(Watchdog):
    """Writes down where the port is, what was found wrong, and who was not seen."""

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__(interval=0.5, silent_after=20.0)
        self.folder, self.rank, self.unseen = folder, rank, ""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Connect, and say where."""
        super().setup(trainer, pl_module, stage)
        if self._heartbeat is not None and self._heartbeat.door is not None:
            (self.folder / "new").write_text(str(self._heartbeat.door.port))
            (self.folder / "new").rename(self.folder / "port")

    def say_goodbye(self) -> None:
        """Keep what is known until then."""
        if self._heartbeat is not None:
            self.unseen = self._heartbeat.problem or ""
        super().say_goodbye()

    def _verdict(self, kind: Kind, text: str) -> None:
        (self.folder / f"verdict-{self.rank}").write_text(f"{kind}: {text}")
        super()._verdict(kind, text)


def come_late(seconds: float) -> None:
    """Have this process keep away from the port for a while."""
    start = Heartbeat.start

    def start_late(beat: Heartbeat, *where: Any) -> None:
        timer = threading.Timer(seconds, start, (beat, *where))
        timer.daemon = True
        timer.start()

    Heartbeat.start = start_late  # type: ignore[method-assign, assignment]


def rank_main(rank: int, folder: Path, port: int, steps: int, late: float) -> None:
    """One rank, as torchrun would start it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "flood"}
    os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RESTART_COUNT": "0"}
    if late and rank == RANKS - 1:
        come_late(late)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(96, 16), torch.randint(1000, (96,)))
    note, model = Note(folder, rank), Model()
    trainer = L.Trainer(
        strategy="pfc",
        accelerator="cpu",
        devices=RANKS,
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[note],
    )
    started = time.monotonic()
    trainer.fit(model, DataLoader(data, batch_size=8))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "seconds": round(time.monotonic() - started, 1),
        "processor seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak MiB": usage.ru_maxrss // 1024,
        "not seen": note.unseen,
        "bits": [hashlib.sha256(each.detach().numpy().tobytes()).hexdigest()[:8] for each in model.parameters()],
    }
    (folder / f"end-{rank}.json").write_text(json.dumps(found))


def run(folder: Path, steps: int, late: float) -> dict[str, Any]:
    """The three ranks; with ``late`` seconds of flood."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=rank_main, args=(rank, folder, port, steps, late)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    flood = None
    if late:
        while not (folder / "port").exists():
            time.sleep(0.01)
        with Flood("127.0.0.1", int((folder / "port").read_text())) as flood:
            time.sleep(late - 1.0)
    for process in ranks:
        process.join()
    ends = [json.loads((folder / f"end-{rank}.json").read_text()) for rank in range(RANKS)]
    verdicts = [path.read_text() for path in folder.glob("verdict-*")]
    made, refused = (flood.connections, flood.refused) if flood else (0, 0)
    bits = [end["bits"] for end in ends]
    return {"connections": made, "refused": refused, "verdicts": verdicts, **ends[0], "bits": bits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of flood")
    options = parser.parse_args()
    steps = int((options.seconds + 5) / PAUSE)  # the run must outlast the flood
    with tempfile.TemporaryDirectory() as folder:
        alone = run(Path(folder) / "alone", steps, 0.0)
        flooded = run(Path(folder) / "flooded", steps, options.seconds)
    for name, value in alone.items():
        print(f"{name:<18} left alone {value}   flooded {flooded[name]}")
    if alone["bits"] != flooded["bits"] or flooded["verdicts"] or flooded["not seen"]:
        raise SystemExit("The flood was felt.")


if __name__ == "__main__":
    main()
