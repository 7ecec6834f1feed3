"""Train a head of tens of millions of classes in one process, in memory or from a folder on disk.

    python recipes/benchmarks/head/large_head.py --classes 10_000_000 --rate 0.1 --batch 128 --steps 4
    python recipes/benchmarks/head/large_head.py --classes 30_000_000 --rate 0.01 --folder /disk/head --steps 4

The stream can be learned: the embedding of a class is a fixed random direction with some noise, and a few hundred
classes come up again and again. Centers are bfloat16 with stochastic rounding, the optimizer keeps one number per row,
and the update happens inside the backward pass. With ``--folder`` a second run goes on from what the first left there.
Prints the seconds to make the centers, then seconds, loss and resident memory of every step.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from lightning_pfc.heads import PartialFC
from lightning_pfc.losses import ArcFace
from lightning_pfc.optim import RowWiseAdagrad
from lightning_pfc.storage.row_files import row_files


def main() -> None:
    """Parse, build, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seen", type=int, default=256, help="how many classes the stream shows")
    parser.add_argument("--folder", default=None, help="keep centers and state in files here instead of memory")
    options = parser.parse_args()

    started = time.perf_counter()
    head = PartialFC(
        embedding_dim=options.dim,
        num_classes=options.classes,
        loss=ArcFace(scale=32.0, margin=0.3),
        sample_rate=options.rate,
        dtype=torch.bfloat16,
        row_folder=options.folder,
    ).to("cpu")
    print(f"centers made or found in {time.perf_counter() - started:.1f} s; {memory()}", flush=True)
    optimizer = RowWiseAdagrad(head.parameters(), lr=options.lr, update_in_backward=True)
    optimizer.allocate_state()

    generator = torch.Generator().manual_seed(0)
    shown = torch.randint(options.classes, (options.seen,), generator=generator)
    directions = torch.randn(options.seen, options.dim, generator=generator)
    # Another part of the stream, and other negatives, where an earlier run left its steps.
    counter = None if options.folder is None else Path(options.folder) / "steps.txt"
    done = int(counter.read_text()) if counter is not None and counter.exists() else 0
    head.step.fill_(done)
    optimizer.state[head.weight]["step"].fill_(done)
    for step in range(done, done + options.steps):
        pick = torch.randint(options.seen, (options.batch,), generator=generator)
        noise = 0.3 * torch.randn(options.batch, options.dim, generator=generator)
        embeddings = (directions[pick] + noise).requires_grad_()
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = head(embeddings, shown[pick])
        forward = time.perf_counter() - started
        loss.backward()
        optimizer.step()
        seconds = time.perf_counter() - started
        print(f"step {step}: {seconds:.2f} s (forward {forward:.2f}), loss {loss.item():.4f}; {memory()}", flush=True)
    if counter is not None:
        started = time.perf_counter()
        row_files(head.weight).flush()
        counter.write_text(str(done + options.steps))
        print(f"on disk after {time.perf_counter() - started:.1f} s")


def memory() -> str:
    """Resident memory of this process, now and at most (Linux)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    anon, files, most = (int(fields[name].split()[0]) / 2**20 for name in ("RssAnon", "RssFile", "VmHWM"))
    return f"resident {anon:.2f} GiB + {files:.2f} GiB of files, at most {most:.2f} GiB"


if __name__ == "__main__":
    main()
