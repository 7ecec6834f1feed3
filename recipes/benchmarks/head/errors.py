"""Errors by precision at start, middle and end of a run, and what runs in each precision learn.

A default run (glyphs) is made in float32. Of its first, middle and last batch, the head's loss and gradients are
computed again in every precision and in float64, from the same embeddings and centers. Then there is a run in each
precision for every seed. On a CPU without such products, operands and what a GPU would store are rounded, and sums are
in float32.

Usage: python recipes/benchmarks/head/errors.py [--precision float32,bfloat16] [--seeds 0,1,2] [--out FOLDER]
    [--table-only] [OVERRIDE ...]

--precision says what both tables are of. The first takes one default run; the rest, five precisions and three seeds,
is 15 more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import lightning as L
import torch
from torch import Tensor

from lightning_pfc import PartialFC, train
from lightning_pfc.matmul.in_precision import Precision

WORDS = get_args(Precision)
WHEN = ("start", "middle", "end")
FOUND = "errors.json"


class ErrorsOfRun(L.Callback):
    """Computes the errors in the first, the middle and the last step of a run.

    Args:
        file: where they go, as JSON.
        precisions: with a comma between two.
    """

    def __init__(self, file: str, precisions: str = ",".join(WORDS)) -> None:
        self.file, self.words = Path(file), precisions.split(",")
        self.found: dict[str, dict[str, dict[str, float]]] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Listen to the head where the step is one of the three."""
        last = int(trainer.estimated_stepping_batches) - 1
        steps = dict(zip((0, last // 2, last), WHEN, strict=True))
        name = steps.get(trainer.global_step)
        if name is None or name in self.found:
            return

        def listen(head: PartialFC, given: tuple[Tensor, ...]) -> None:
            handle.remove()
            self.found[name] = errors_by_precision(head, given[0].detach().float(), given[1], self.words)
            self.file.write_text(json.dumps(self.found, indent=1))

        handle = pl_module.head.register_forward_pre_hook(listen)


def errors_by_precision(
    head: PartialFC, embeddings: Tensor, labels: Tensor, words: Sequence[str] = WORDS
) -> dict[str, dict[str, float]]:
    """Relative errors of loss and gradients beside float64, and the least cosine of embeddings' gradients."""
    loss, x_grad, weight_grad = _step(head, "float32", torch.float64, embeddings, labels)
    table = {}
    for word in words:
        ours = _step(head, word, torch.float32, embeddings, labels)
        table[word] = {
            "loss": float((ours[0].double() - loss).abs() / loss.abs()),
            "dx": _apart(ours[1], x_grad),
            "dw": _apart(ours[2], weight_grad),
            "cosine": float(torch.cosine_similarity(ours[1].double(), x_grad).min()),
        }
    return table


def _step(
    head: PartialFC, precision: str, dtype: torch.dtype, embeddings: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    twin = PartialFC(
        embedding_dim=head.embedding_dim, num_classes=head.num_classes, loss=head.loss, dtype=dtype, precision=precision
    ).to("cpu")
    with torch.no_grad():
        twin.weight.copy_(head.weight)
        for name, value in head.named_buffers():
            if name.startswith("loss_") or name == "step":
                twin.get_buffer(name).copy_(value)
    x = embeddings.to("cpu", dtype, copy=True).requires_grad_()
    loss = twin(x, labels.to("cpu"))
    loss.backward()
    assert x.grad is not None
    assert twin.weight.grad is not None
    return loss.detach(), x.grad, twin.weight.grad.to_dense()


def _apart(ours: Tensor, twin: Tensor) -> float:
    return float((ours.double() - twin).norm() / twin.norm())


def main() -> None:
    """Run, print two tables, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default=",".join(WORDS), metavar="WORDS")
    parser.add_argument("--seeds", default="0,1,2", metavar="NUMBERS")
    parser.add_argument("--out", type=Path, default=Path("outputs/errors"))
    parser.add_argument("--table-only", action="store_true", help="no runs in each precision")
    parser.add_argument("words", nargs="*", help="overrides of pfc-train, such as trainer.max_epochs=1")
    args = parser.parse_intermixed_args()
    if unknown := set(args.precision.split(",")) - set(WORDS):
        parser.error(f"--precision {args.precision}: {min(unknown)!r} is unknown; use some of {','.join(WORDS)}")
    out = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    watch = ["+callbacks.errors_of_run._target_=errors.ErrorsOfRun", f"+callbacks.errors_of_run.file={out / FOUND}"]
    watch += [f"+callbacks.errors_of_run.precisions='{args.precision}'"]
    train(*args.words, "head.precision=float32", *watch, f"output_dir={out / 'watched'}")
    print_errors(json.loads((out / FOUND).read_text()))
    if not args.table_only:
        print_learned(args, out)


def print_errors(found: dict[str, dict[str, dict[str, float]]]) -> None:
    """A line for each precision and time."""
    print("\n| precision | when | loss | dx | dw | least cosine of dx |\n| --- | --- | --- | --- | --- | --- |")
    for word in found[WHEN[0]]:
        for when in WHEN:
            row = found[when][word]
            print(f"| {word} | {when} | {row['loss']:.1e} | {row['dx']:.1e} | {row['dw']:.1e} | {row['cosine']:.6f} |")


def print_learned(args: argparse.Namespace, out: Path) -> None:
    """What the runs of each precision measure: means, and lowest to highest."""
    learned: dict[str, dict[str, list[float]]] = {}
    for word in args.precision.split(","):
        for seed in args.seeds.split(","):
            folder = out / f"{word}-{seed}"
            metrics = train(*args.words, f"head.precision={word}", f"seed={seed}", f"output_dir={folder}")["metrics"]
            for name, value in metrics.items():
                if name.endswith(("tar@far=1e-3", "/accuracy")):
                    learned.setdefault(word, {}).setdefault(name, []).append(float(value))
        (out / "learned.json").write_text(json.dumps(learned, indent=1))
    names = list(next(iter(learned.values())))
    print(f"\n| precision | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
    for word, metrics in learned.items():
        cells = [f"{statistics.mean(v):.4f} ({min(v):.4f} to {max(v):.4f})" for v in (metrics[n] for n in names)]
        print(f"| {word} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
