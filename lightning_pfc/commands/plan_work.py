"""What ``pfc-plan`` does with its words."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace

import torch
from rich.console import Console

from lightning_pfc.planning import MACHINES, Machine, Setup, advise, this_machine
from lightning_pfc.planning.published import insightface_table
from lightning_pfc.planning.report import as_dict, print_plan, print_published


def plan(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Print a plan; returns 0, or 1 if what was asked for does not fit."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    if args.published:
        print_published(console, insightface_table(args.batch if args.batch is not None else 64))
        return 0
    if args.classes is None:
        parser.error("--classes is missing: how many classes are there over all ranks? (--help explains)")
    try:
        machine = _machine(args)
        setup = Setup(
            classes=args.classes,
            dim=args.dim,
            ranks=args.ranks,
            batch=args.batch if args.batch is not None else 128,
            rate=args.rate,
            group_size=args.group_size,
            optimizer=args.optimizer,
            dtype=args.dtype,
            rows_on=args.rows_on,
            state_dtype=args.state_dtype,
            update_in_backward=args.update_in_backward,
            embedding_dtype=args.embedding_dtype,
            memory_budget=int(args.memory_budget),
            precision=args.precision,
            device="cpu" if args.device == "cpu" else "cuda",
            kernels=machine.has_kernels,
            threads=torch.get_num_threads() if args.device == "cpu" else 1,
        )
    except ValueError as error:
        parser.error(str(error))
    advice = advise(setup, machine, args.backbone_gflops, args.other_memory)
    if args.json:
        print(
            json.dumps(
                as_dict(setup, machine, advice, args.backbone_gflops, args.other_memory, args.parameters), indent=1
            )
        )
    else:
        print_plan(console, setup, machine, advice, args.backbone_gflops, args.other_memory, args.parameters)
    return 0 if advice.fits else 1


def _machine(args: argparse.Namespace) -> Machine:
    machine = this_machine() if args.device == "cpu" else MACHINES[args.device]
    names = (
        "memory",
        "flops",
        "tf32_flops",
        "half_flops",
        "backbone_flops",
        "bandwidth",
        "link",
        "network",
        "ranks_per_node",
    )
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} {value} must be more than 0.")
    if args.other_memory is None:
        args.other_memory = 1e9 if args.device == "cpu" else 4.6e9
    return replace(machine, **given)
