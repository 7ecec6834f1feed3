"""``pfc-plan``: memory, traffic and time of a head before it is trained, what fits, and what to choose."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from lightning_pfc.commands.imports import large_imports
from lightning_pfc.commands.output import may_be_cut_short
from lightning_pfc.planning.machine import MACHINES
from lightning_pfc.planning.words import BYTES, OPTIMIZERS, PRECISIONS

_ABOUT = """\
What will this head need? Predicts, for one rank, the memory term by term, the bytes it sends and the time of a step;
says how many classes fit at most, which sample rate and which layout to choose, and whether sampling pays at all.

Memory is checked against measurements (within 15 %); bytes are exact for collectives as good as rings; times are rough,
from the speed of matrix products, of memory and of links, and were never compared with a GPU.
"""
_EXAMPLES = """\
examples:
  pfc-plan --classes 1e6                                   # one V100 with 32 GB, every class in every step
  pfc-plan --classes 29e6 --ranks 8 --rate 0.1             # eight of them
  pfc-plan --classes 1e8 --ranks 64 --rate 0.01 --device a100-80 --dtype bfloat16 --optimizer adagrad
  pfc-plan --classes 1e7 --rate 0.1 --device cpu           # this machine, its speeds measured
  pfc-plan --classes 2e6 --device v100-32 --memory 24GB --network 10Gbit --json
  pfc-plan --published                                     # InsightFace's memory table beside ours

In a training run: --rate is head.sample_rate, --batch is data.batch_size, --ranks is trainer.devices x
    trainer.num_nodes.
"""


@may_be_cut_short
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments; None takes those of the process.

    Returns:
        0, or 1 if what was asked for does not fit.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    with large_imports():
        from lightning_pfc.commands.plan_work import plan  # and torch, which who asks for help can do without

    return plan(parser, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pfc-plan", description=_ABOUT, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    run = parser.add_argument_group("the run")
    run.add_argument("--classes", type=_count, metavar="C", help="over all ranks; 1e6 and 1_000_000 work too")
    run.add_argument("--dim", type=_count, default=512, metavar="D", help="width of the embeddings (default 512)")
    run.add_argument("--ranks", type=_count, default=1, metavar="W", help="processes, one a device (default 1)")
    run.add_argument("--batch", type=_count, default=None, metavar="B", help="rows per rank (default 128)")
    run.add_argument("--rate", type=float, default=1.0, metavar="R", help="share of the classes in a step (default 1)")
    run.add_argument(
        "--group-size", type=_count, metavar="G", help="ranks that share one set of classes (default: all)"
    )
    run.add_argument(
        "--optimizer", choices=OPTIMIZERS, default="sgd", help="of the centers (default sgd, with momentum)"
    )
    run.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the centers")
    run.add_argument("--state-dtype", choices=tuple(BYTES), default="float32", help="of the optimizer's state")
    run.add_argument("--rows-on", choices=("device", "host"), default="device", help="where centers and state are")
    run.add_argument("--update-in-backward", action="store_true", help="no gradient of the centers is held")
    run.add_argument(
        "--embedding-dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16 with precision=bf16-mixed",
    )
    run.add_argument(
        "--memory-budget", type=_budget, default=512 << 20, metavar="SIZE",
        help="head.memory_budget: a size, lean (keeps nothing) or fast (keeps everything); 512MiB",
    )  # fmt: skip
    run.add_argument(
        "--precision", choices=PRECISIONS, default="auto",
        help="head.precision of the products; auto: bfloat16 on a GPU with --embedding-dtype bfloat16, else float32",
    )  # fmt: skip
    backbone = parser.add_argument_group("the backbone")
    backbone.add_argument(
        "--backbone-gflops", type=float, default=6.3, metavar="N",
        help="10^9 multiply-adds an image forward: 2.6, 6.3, 12.1 for IResNet-18, 50, 100 (default 6.3)",
    )  # fmt: skip
    backbone.add_argument("--parameters", type=_count, default=43_600_000, metavar="N", help="of it (default 43.6e6)")
    backbone.add_argument(
        "--other-memory", type=_bytes, default=None, metavar="SIZE",
        help="what a rank needs beside the head: backbone, activations, context (default 4.6GB on a GPU, 1GB on a CPU)",
    )  # fmt: skip
    device = parser.add_argument_group("the machine")
    device.add_argument(
        "--device", choices=(*MACHINES, "cpu"), default="v100-32", help="of a rank; cpu measures this machine"
    )
    device.add_argument(
        "--memory", type=_bytes, metavar="SIZE", help="of the device, instead of what is known of it: 24GB"
    )
    device.add_argument("--flops", type=float, metavar="N", help="of a float32 matrix product per second: 1.2e13")
    device.add_argument("--tf32-flops", type=float, metavar="N", help="the same in TF32")
    device.add_argument("--half-flops", type=float, metavar="N", help="the same in bfloat16 or float16")
    device.add_argument("--backbone-flops", type=float, metavar="N", help="of the backbone per second, all told")
    device.add_argument("--bandwidth", type=_bytes, metavar="SIZE", help="of memory per second: 900GB")
    device.add_argument(
        "--link", type=_bytes, metavar="SIZE", help="that a rank sends per second in its node: 50GB, 400Gbit"
    )
    device.add_argument("--network", type=_bytes, metavar="SIZE", help="the same between nodes: 10Gbit")
    device.add_argument("--ranks-per-node", type=_count, metavar="N", help="(default 8)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--published", action="store_true", help="InsightFace's memory table beside the plan for it")
    return parser


def _count(text: str) -> int:
    try:
        value = float(text.replace("_", "").replace(",", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if value != int(value) or value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(value)


def _budget(text: str) -> float:
    return {"lean": 0.0, "fast": float(1 << 62)}[text] if text in ("lean", "fast") else _bytes(text)


def _bytes(text: str) -> float:
    number, prefix, binary, unit = "", "", "", ""
    if match := re.fullmatch(r"([0-9.eE+]+)\s*([KMGT]?)(i?)(B|bit)?(?:/s)?", text.strip()):
        number, prefix, binary, unit = match.groups()
    try:
        value = float(number)
    except ValueError:
        message = f"{text!r} is no size: write 24GB, 512MiB, 10Gbit or a number of bytes"
        raise argparse.ArgumentTypeError(message) from None
    value *= float(1024 if binary else 1000) ** " KMGT".index(prefix or " ")
    return value / 8 if unit == "bit" else value


if __name__ == "__main__":
    sys.exit(main())
