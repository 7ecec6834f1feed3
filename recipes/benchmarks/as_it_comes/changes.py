"""What training with a change brings, beside what the test before a run says of it (``lightning_pfc/runs/probe.py``).

    python changes.py sets/ --sets faces --changes none flip affine --pictures 12000 --log changes.jsonl
    python changes.py sets/ --sets faces --asked --log changes.jsonl

A quarter of the training identities is held back, and one-shot rank-1 of them is the figure: test identities of the
study are not looked at. ArcFace at scale 16 with the network of the test, glyphnet of a quarter of the width.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from one_shot import one_shot
from PIL import Image
from torch import nn

from lightning_pfc.data.augment import augmentation
from lightning_pfc.data.camera import to_float
from lightning_pfc.data.counter import stream
from lightning_pfc.data.formats.folder import FolderImages
from lightning_pfc.data.formats.subset import Subset
from lightning_pfc.models.glyphnet import GlyphNet
from lightning_pfc.runs.probe import find_out

BATCH, RATE, SCALE, MARGIN, WIDTHS = 64, 2e-3, 16.0, 0.5, (16, 32, 64, 128)


def held_back(names: list[str]) -> set[str]:
    """A quarter of the training identities."""
    order = np.random.default_rng(99).permutation(len(names))
    return {names[k] for k in order[: max(3, len(names) // 4)]}


def read(folder: Path, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, C, H, W) uint8 pictures and (N,) labels."""
    files = [(file, k) for k, name in enumerate(names) for file in sorted((folder / name).iterdir())]
    pictures = [np.asarray(Image.open(file)) for file, _ in files]
    images = torch.from_numpy(np.stack([p[..., None] if p.ndim == 2 else p for p in pictures]))
    return images.permute(0, 3, 1, 2).contiguous(), torch.tensor([k for _, k in files])


def trained(x: torch.Tensor, y: torch.Tensor, change: str, pictures: int, seed: int) -> nn.Module:
    """A network that has seen so many pictures, with a change."""
    torch.manual_seed(seed)
    classes, augment, steps = int(y.max()) + 1, augmentation(change), pictures // BATCH
    network = GlyphNet(x.shape[1], (x.shape[2], x.shape[3]), widths=WIDTHS)
    body = nn.Sequential(network, nn.Linear(WIDTHS[-1], 128), nn.BatchNorm1d(128))
    centers = nn.Parameter(torch.randn(classes, 128) * 0.01)
    groups = [{"params": body.parameters(), "times": 1}, {"params": [centers], "times": 10}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, weight_decay=0.01)
    done = 0
    while done < steps:
        for rows in torch.randperm(len(x)).split(BATCH)[: min(steps - done, len(x) // BATCH or 1)]:
            for group in optimizer.param_groups:
                group["lr"] = group["times"] * RATE * (1 - done / steps)
            images = augment(x[rows], stream(seed, done, rows.numpy()))
            cosine = F.linear(F.normalize(body(images)), F.normalize(centers)).clamp(-1 + 1e-6, 1 - 1e-6)
            own = F.one_hot(y[rows], classes).bool()
            logits = torch.where(own, (cosine.arccos() + MARGIN).clamp(max=3.1415).cos(), cosine)
            optimizer.zero_grad()
            F.cross_entropy(SCALE * logits, y[rows]).backward()
            optimizer.step()
            done += 1
    return body.eval()


def brought(place: Path, change: str, pictures: int, seed: int) -> dict[str, Any]:
    """Rank-1 of the identities that were held back."""
    names = sorted(p.name for p in place.iterdir())
    aside = held_back(names)
    start = time.process_time()
    body = trained(*read(place, [n for n in names if n not in aside]), change, pictures, seed)
    seconds = time.process_time() - start
    x, y = read(place, [n for n in names if n in aside])
    with torch.no_grad():
        rows = torch.cat([body(to_float(part)) for part in x.split(500)])
    return {"rank1": one_shot(rows.numpy(), y.numpy()), "seconds": seconds}


def asked(place: Path, pictures: int) -> dict[str, Any]:
    """What the test says, of the same identities to train on."""
    images = FolderImages(place)
    aside = held_back(sorted(images.identities.tolist()))
    rows = np.flatnonzero([images.identities[label] not in aside for label in images.labels])
    first = Image.open(next(next(place.iterdir()).iterdir()))
    found = find_out(Subset(images, rows), (first.height, first.width), 1 if first.mode == "L" else 3, pictures)
    return (
        {}
        if found is None
        else {"augment": found.augment, "alike": found.alike, "changes": found.changes, "seconds": found.seconds}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="*", required=True)
    parser.add_argument("--changes", nargs="*", default=["none", "flip", "affine"])
    parser.add_argument("--asked", action="store_true", help="what the test says, in place of what training brings")
    parser.add_argument("--pictures", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("changes.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.sets:
        place = arguments.folder / name / "train"
        for change in ["asked"] if arguments.asked else arguments.changes:
            made = (
                asked(place, arguments.pictures)
                if arguments.asked
                else brought(place, change, arguments.pictures, arguments.seed)
            )
            row = {"set": name, "change": change, "pictures": arguments.pictures, "seed": arguments.seed, **made}
            with arguments.log.open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
