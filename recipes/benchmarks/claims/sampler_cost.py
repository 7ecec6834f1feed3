"""What a training step of the head costs with each sampler, in processor time of one thread.

Usage: python recipes/benchmarks/claims/sampler_cost.py [--classes 200000] [--dim 128] [--batch 256] [--rate 0.05]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from tables import table

from lightning_pfc import PartialFC
from lightning_pfc.heads import sampling as S
from lightning_pfc.losses import CosFace
from lightning_pfc.optim import SparseSGD

STEPS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=0.05)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for label, rate, sampler in (
        ("all classes", 1.0, S.Uniform()),
        ("uniform", args.rate, S.Uniform()),
        ("uniform, corrected", args.rate, S.Uniform(correction=True)),
        ("dissection", args.rate, S.Dissection()),
        ("frequency", args.rate, S.Frequency()),
        ("retrieval", args.rate, S.Retrieval()),
        ("mixed, query=target", args.rate, S.Mixed(query="target")),
        ("positives only", args.rate, S.PositivesOnly()),
    ):
        torch.manual_seed(0)
        head = PartialFC(
            embedding_dim=args.dim, num_classes=args.classes, loss=CosFace(), sample_rate=rate, sampler=sampler
        ).to("cpu")
        head.set_class_counts(torch.randint(0, 30, (args.classes,)))
        optimizer = SparseSGD(head.parameters(), lr=0.1)
        seconds = []
        for _ in range(STEPS):
            x = torch.randn(args.batch, args.dim, requires_grad=True)
            labels = torch.randint(0, args.classes, (args.batch,))
            start = time.process_time()
            head(x, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.process_time() - start)
        rows.append([label, f"{rate:g}", f"{1e3 * statistics.median(seconds[1:]):.0f}", f"{1e3 * seconds[0]:.0f}"])
    print(table(["sampler", "rate", "ms a step", "ms, the first"], rows))


if __name__ == "__main__":
    main()
