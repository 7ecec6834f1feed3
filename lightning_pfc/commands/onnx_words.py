"""What an ONNX file leaves open, as options of commands that take one."""

from __future__ import annotations

import argparse
from typing import Any

ONNX_WORDS = ("mean", "std", "channels", "input", "output", "layout", "input_size")


def add_onnx_words(parser: argparse.ArgumentParser) -> None:
    """Add the options, in a group of their own."""
    group = parser.add_argument_group("an ONNX file alone", "what it does not say itself")
    group.add_argument(
        "--mean", type=_numbers, help="taken off pixels in 0 to 255: 127.5, or one for each channel: R,G,B"
    )
    group.add_argument("--std", type=_numbers, help="what they are divided by then")
    group.add_argument("--channels", choices=("rgb", "bgr"), help="order of the colours")
    group.add_argument("--input", metavar="NAME", help="of the pictures, where there are several")
    group.add_argument("--output", metavar="NAME", help="of the embedding, where there are several")
    group.add_argument("--layout", choices=("nchw", "nhwc"), help="where the input's shape does not tell")
    group.add_argument("--input-size", type=_edges, metavar="EDGE|C,H,W", help="where the model leaves it free")


def onnx_words(options: argparse.Namespace) -> dict[str, Any]:
    """Those that were given."""
    found = {name: getattr(options, name) for name in ONNX_WORDS}
    return {name: value for name, value in found.items() if value is not None}


def _numbers(word: str) -> list[float]:
    try:
        return [float(part) for part in word.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word[:40]!r} is no number, and no list such as 123.7,116.3,103.5") from None


def _edges(word: str) -> int | list[int]:
    try:
        edges = [int(part) for part in word.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{word[:40]!r} is no edge such as 112, and no C,H,W such as 3,112,112"
        ) from None
    return edges[0] if len(edges) == 1 else edges
