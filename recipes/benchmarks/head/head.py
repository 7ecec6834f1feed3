"""How fast is the head, and how much memory does it take? Side by side with others, in one run, taking turns.

Every contestant lives in a process of its own and starts from the same centers. First its loss and the embeddings'
gradient are compared with ours on the same batch (and the same drawn classes); a contestant that computes something
else is an error. Then all take turns, one step each, for a number of rounds; the figures are medians. Memory is the
process's high-water mark.

  products      the three bare float32 matrix products of the same shapes, by torch.mm as it comes
  products-fast the same through oneDNN, where our head takes it (lightning_pfc.matmul.cpu): the floor
  ours          PartialFC with ArcFace and SparseSGD (momentum), float32
  ours-in-backward  the same, the centers updated inside the backward pass: no gradient of theirs is held
  ours-lean     like that, and no logits are kept for the backward pass: least memory
  ours-half     PartialFC with SparseSGD, products in bfloat16
  ours-half-lean  like ours-lean, products in bfloat16
  ours-adagrad  PartialFC with RowWiseAdagrad: one number of state per class
  ours-bf16     the same with centers in bfloat16
  ours-softmax  PartialFC with plain softmax and SparseSGD, the twin of `linear`
  linear        nn.Linear and cross entropy, torch.optim.SGD (rate 1, one rank)
  linear-chunked  torch.nn.functional.linear_cross_entropy by chunks (torch 2.14 and later), torch.optim.SGD
  pml           ArcFaceLoss of pytorch-metric-learning, torch.optim.SGD (rate 1, one rank; pip install it)
  dense         a dense sharded head without needless copies, torch.optim.SGD
  peer          the head in the file that --peer points to, such as InsightFace's partial_fc_v2.py, run on the CPU

Several values for --classes, --rate, --batch, --ranks measure every combination.

For example:
  python recipes/benchmarks/head/head.py                                # 100,000 classes, every class in every step
  python recipes/benchmarks/head/head.py --classes 1000000 --rate 0.1           # Partial FC
  python recipes/benchmarks/head/head.py --batch 32 256 1024 --only ours dense --out out/batch
  python recipes/benchmarks/head/head.py --ranks 1 2 --threads 1 --only ours    # what a second process is worth
  python recipes/benchmarks/head/head.py --peer insightface/recognition/arcface_torch/partial_fc_v2.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from cases import Case
from compare import compare, runnable
from contestants import CONTESTANTS
from draw import draw
from report import table
from rich.console import Console


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--classes", type=int, nargs="+", default=[100_000], metavar="C", help="classes over all ranks")
    out.add_argument("--rate", type=float, nargs="+", default=[1.0], metavar="R", help="share of the classes in a step")
    out.add_argument("--batch", type=int, nargs="+", default=[256], metavar="B", help="rows over all ranks")
    out.add_argument("--ranks", type=int, nargs="+", default=[1], metavar="W", help="processes that share the classes")
    out.add_argument("--dim", type=int, default=512, help="width of the embeddings (default 512)")
    out.add_argument("--threads", type=int, default=None, help="threads of a process (default: cores divided by ranks)")
    out.add_argument("--repeats", type=int, default=7, help="timed rounds (default 7)")
    out.add_argument("--warmup", type=int, default=2, help="rounds before them (default 2)")
    out.add_argument("--seconds", type=float, help="of a case: no further round is begun after these")
    out.add_argument("--only", nargs="+", choices=list(CONTESTANTS), metavar="NAME", help="these contestants only")
    out.add_argument("--peer", metavar="FILE[:CLASS]", help="a head by file; it is executed")
    out.add_argument("--profile", type=int, default=0, metavar="N", help="also show the N dearest operators of a step")
    out.add_argument("--out", type=Path, help="folder for results.json and curves.png; results there are added to")
    return out


def main(argv: list[str] | None = None) -> int:
    """Measure, show, write."""
    args = parser().parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 150)
    left_out = {"data-parallel"} | (set() if find_spec("pytorch_metric_learning") else {"pml"})
    names = args.only or [name for name in CONTESTANTS if name not in left_out]
    measured = []
    for classes, rate, batch, ranks in itertools.product(args.classes, args.rate, args.batch, args.ranks):
        threads = args.threads or max(1, torch.get_num_threads() // ranks)
        case = Case(classes, rate, batch, args.dim, ranks, threads)
        with console.status("starting") as status:
            chosen = runnable(names, case, args.peer)
            result = compare(
                case, chosen, args.peer, args.repeats, args.warmup, status.update, args.profile, args.seconds
            )
        console.print(table(result))
        for name, r in result["results"].items():
            if "profile" in r:
                console.print(f"\n{name}\n{r['profile']}", highlight=False)
        measured.append(result)
        if args.out:
            write(args.out, result)
    return 0


def write(folder: Path, result: dict[str, Any]) -> None:
    """Add a result to results.json; one of the same case is replaced contestant by contestant."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"machine": machine(), "measured": []}
    for old in content["measured"]:
        if old["case"] == result["case"]:
            old["results"] |= result["results"]
            break
    else:
        content["measured"].append(result)
    path.write_text(json.dumps(content, indent=1))
    draw(content, folder / "curves.png")


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": torch.get_num_threads(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
