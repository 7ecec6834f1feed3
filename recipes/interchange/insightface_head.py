"""A head that arcface_torch's own code has written on 2 ranks, imported, and its loss compared on 3.

    git clone https://github.com/deepinsight/insightface
    python recipes/interchange/insightface_head.py insightface/recognition/arcface_torch

Runs their ``PartialFC_V2`` on CPUs (what they send to a GPU stays where it is), saves as ``train_v2.py`` does, and
takes the next batch's loss with theirs, and with ours after ``pfc-ckpt import``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_pfc import PartialFC
from lightning_pfc.commands.ckpt import main as pfc_ckpt

CLASSES, DIM, BATCH = 101, 32, 24
SCALE = 16.0  # theirs clamps probabilities at 1e-30, which 64 reaches with centers at random


def batch(step: int, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    """This rank's part of a batch; theirs needs parts of one size."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, DIM, generator=generator)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    return x.chunk(ranks)[rank], labels.chunk(ranks)[rank]


def theirs(rank: int, ranks: int, code: str, folder: str) -> None:
    """Two steps of their head, its checkpoint, and the loss of the next batch."""
    sys.path.insert(0, code)
    from losses import CombinedMarginLoss
    from partial_fc_v2 import PartialFC_V2

    torch.Tensor.cuda = lambda tensor, *args, **kwargs: tensor  # type: ignore[method-assign, assignment]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-2", rank=rank, world_size=ranks)
    torch.manual_seed(rank)
    head = PartialFC_V2(CombinedMarginLoss(SCALE, 1.0, 0.0, 0.4, 0), DIM, CLASSES)
    backbone = nn.Linear(DIM, DIM)
    groups = [{"params": backbone.parameters()}, {"params": head.parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    for step in range(2):
        x, labels = batch(step, rank, ranks)
        optimizer.zero_grad()
        head(backbone(x), labels).backward()
        optimizer.step()
    content = {
        "epoch": 1,
        "global_step": 2,
        "state_dict_backbone": backbone.state_dict(),
        "state_dict_softmax_fc": head.state_dict(),
        "state_optimizer": optimizer.state_dict(),
        "state_lr_scheduler": {},
    }
    (Path(folder) / "run").mkdir(exist_ok=True)
    torch.save(content, Path(folder) / "run" / f"checkpoint_gpu_{rank}.pt")
    x, labels = batch(9, rank, ranks)
    torch.save(head(x, labels).detach(), Path(folder) / f"loss-theirs-{rank}")
    dist.destroy_process_group()


def ours(rank: int, ranks: int, folder: str) -> None:
    """The loss of the same batch."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-3", rank=rank, world_size=ranks)
    loss = {"name": "CosFace", "scale": SCALE, "margin": 0.4}
    head = PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss=loss).to("cpu")
    head.load_state_dict({"weight": load_file(f"{folder}/head.safetensors")["head.weight"]}, strict=False)
    torch.save(head(*batch(9, rank, ranks)).detach(), Path(folder) / f"loss-ours-{rank}")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("code", help="the folder arcface_torch of a clone")
    code = str(Path(parser.parse_args().code).resolve())
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(theirs, (2, code, folder), nprocs=2)  # type: ignore[no-untyped-call]
        words = ["import", "--from", "insightface", f"{folder}/run", f"{folder}/head.safetensors"]
        if pfc_ckpt([*words, "--classes", str(CLASSES)]):
            raise SystemExit("not imported")
        mp.spawn(ours, (3, folder), nprocs=3)  # type: ignore[no-untyped-call]
        parts = [torch.load(f"{folder}/run/checkpoint_gpu_{rank}.pt", weights_only=True) for rank in range(2)]
        whole = torch.cat([part["state_dict_softmax_fc"]["weight"] for part in parts])
        equal = torch.equal(whole, load_file(f"{folder}/head.safetensors")["head.weight"])
        one, other = (float(torch.load(f"{folder}/loss-{who}-0", weights_only=True)) for who in ("theirs", "ours"))
    print(f"centers bit-equal: {equal}; loss theirs on 2 ranks {one:.6f}, ours on 3 {other:.6f}")
    if not equal or abs(one - other) > 1e-5 * abs(one):
        raise SystemExit("They differ.")


if __name__ == "__main__":
    main()
