"""How many images a second one core loads: decoded, mirrored at random, as a float batch, ready for the network.

    python recipes/benchmarks/formats/loading_speed.py faces/                  # a folder with a sub-folder per identity
    python recipes/benchmarks/formats/loading_speed.py faces/ --mxnet mx/bin/python    # see roundtrip.py for mx

Every contender is tied to the same single core, with all its threads and processes, and goes over the same images in
random order, `--epochs` times after one to warm up; contenders take turns, and the best and the median epoch are
printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CONTENDERS = {
    "pfc RecordIO": ("ours", "recordio"),
    "pfc folder": ("ours", "folder"),
    "torchvision ImageFolder": ("torchvision", "folder"),
    "mxnet ImageRecordIter": ("mxnet", "recordio"),
    "mxnet ImageIter": ("mxnet-python", "recordio"),
}
BATCH = 128


def ours(path: str, epochs: int) -> list[float]:
    """The project's own loader, as training uses it."""
    import torch

    from lightning_pfc.data import IdentityDataModule
    from lightning_pfc.data.files import Files

    torch.set_num_threads(1)
    module = IdentityDataModule(Files(path=path, check=0, empty_classes="skip"), batch_size=BATCH, drop_last=False)
    module.setup("fit")
    loader = module.train_dataloader()
    return [timed(module.num_images, (len(labels) for _, labels in loader)) for _ in range(epochs)]


def torchvision(path: str, epochs: int) -> list[float]:
    """What most people write: ImageFolder, three transforms, a DataLoader. In-process, which is fastest on one core."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(1)
    steps = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    data = ImageFolder(path, transforms.Compose(steps))
    loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    return [timed(len(data), (len(labels) for _, labels in loader)) for _ in range(epochs)]


def timed(count: int, batches: Any) -> float:
    """Images a second of an epoch."""
    import time

    start = time.perf_counter()
    seen = sum(batches)
    if seen != count:
        raise RuntimeError(f"{seen} of {count} images came")
    return count / (time.perf_counter() - start)


def pinned(command: list[str], core: int) -> list[float]:
    """Runs a contender on one core and reads its figures from the last line that it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MXNET_CPU_WORKER_NTHREADS": "1"}
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    figures: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def main() -> int:
    """Measures all contenders, or (for itself) one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder of aligned images, all of one size")
    parser.add_argument("--mxnet", metavar="PYTHON", help="the Python of an environment with mxnet")
    parser.add_argument("--epochs", type=int, default=3, help="epochs that count, each turn (%(default)s)")
    parser.add_argument("--turns", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--run", choices=("ours", "torchvision"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        figures = {"ours": ours, "torchvision": torchvision}[options.run](options.source, options.epochs + 1)
        print(json.dumps(figures[1:]))
        return 0
    from lightning_pfc.data.curation.convert import convert
    from lightning_pfc.data.formats import FolderImages

    images = FolderImages(options.source)
    core = max(os.sched_getaffinity(0))
    results: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "flat.rec"
        convert(images, record, "recordio", layout="flat", progress=False)
        paths = {"recordio": str(record), "folder": options.source}
        for _ in range(options.turns):
            for name, (kind, format) in CONTENDERS.items():
                if kind.startswith("mxnet"):
                    if options.mxnet is None:
                        continue
                    script = str(Path(__file__).with_name("mxnet_speed.py"))
                    command = [options.mxnet, script, kind, paths[format], str(options.epochs + 1), str(BATCH)]
                else:
                    command = [sys.executable, __file__, paths[format], "--run", kind, "--epochs", str(options.epochs)]
                results[name] += pinned(command, core)
    print(f"{len(images)} images, batches of {BATCH}, one core: images a second\n")
    print(f"{'loader':<26}{'best':>9}{'median':>9}")
    for name, figures in results.items():
        if figures:
            print(f"{name:<26}{max(figures):>9.0f}{statistics.median(figures):>9.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
