"""How far the batches that DALI makes are from the plain loader's, and what one thread of either takes an image.

    pip install 'lightning-pfc[data,dali]'
    python recipes/benchmarks/formats/dali.py faces/          # a folder with a sub-folder per identity

Without a GPU, DALI runs its CPU operators. Pixels are compared in levels of 256.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.data import Dali, Files, IdentityDataModule

BATCH = 64
RING = 3  # pixels at the edge that are looked at apart


def load(path: str, augment: str, loader: Dali | None, count: int) -> tuple[Tensor, Tensor, float]:
    """The first images of an epoch with their labels, and microseconds of CPU an image, the first batch left out."""
    source = Files(path=path, check=0)
    module = IdentityDataModule(source, batch_size=BATCH, augment=augment, loader=loader, pin_memory=False)
    module.setup()
    batches: Any = iter(module.train_dataloader())
    first = next(batches)
    start = time.process_time()
    rest = list(itertools.islice(batches, max(1, count // BATCH - 1)))
    spent = (time.process_time() - start) / (len(rest) * BATCH) * 1e6
    images, labels = (torch.cat([batch[i].cpu() for batch in [first, *rest]]) for i in range(2))
    return images, labels, spent


def main() -> int:
    """Compares the augmentations that DALI does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder of images, all of one size")
    parser.add_argument("--count", type=int, default=1024, help="images (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'augment':18}{'labels':>8}{'mean':>10}{'max':>9}{f'max but {RING} px':>14}{'plain us':>10}{'DALI us':>9}")
    for augment in ("none", "flip", "insightface_dali"):
        plain, labels, plain_time = load(options.source, augment, None, options.count)
        ours, others, our_time = load(options.source, augment, Dali(threads=1), options.count)
        far = (ours - plain).abs() * 127.5
        same = "equal" if torch.equal(labels, others) else "differ"
        inside = far[:, :, RING:-RING, RING:-RING].max()
        print(
            f"{augment:18}{same:>8}{far.mean():>10.5f}{far.max():>9.4f}{inside:>14.4f}{plain_time:>10.0f}{our_time:>9.0f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
