"""What a rank sends in a step, collective by collective, if each is as good as a ring."""

from __future__ import annotations

from typing import NamedTuple

from lightning_pfc.distributed.agreement import MESSAGE_BYTES
from lightning_pfc.planning.setup import Setup
from lightning_pfc.planning.words import BYTES


class Message(NamedTuple):
    """What one collective makes a rank send.

    Attributes:
        name: what travels.
        bytes: that a rank sends, on average.
        spans: how many ranks take part.
        on_cpu: whether it goes over the control channel, beside the device's own collectives.
    """

    name: str
    bytes: float
    spans: int
    on_cpu: bool = False


def head_traffic(setup: Setup, bounded: bool = True) -> list[Message]:
    """The messages of one training step of a head.

    None of them depends on the number of classes while one group holds all of them (``group_size`` None).

    Args:
        setup: the run.
        bounded: whether the loss's logits have a bound (margins with a scale up to 73), which saves an all-reduce.
    """
    s = setup
    width = s.dim * BYTES[s.embedding_dtype]
    group, world = s.group, s.ranks
    messages = [
        Message("sizes and errors", (world - 1) * MESSAGE_BYTES, world, on_cpu=True),
        Message("embeddings and labels", (group - 1) * s.batch * (width + 8), group),
        Message("sums of exponentials, targets", _ring(group) * 2 * 8 * s.group_batch, group),
        Message("gradient of the embeddings", (group - 1) * s.batch * width, group),
    ]
    if not bounded:
        messages.append(Message("largest logits", _ring(group) * 4 * s.group_batch, group))
    if s.replicas > 1:
        messages += [
            Message("labels of the other groups", (world - 1) * s.batch * 8, world),
            Message("value of the loss", _ring(world) * 4, world),
            Message("gradient of replicated centers", _ring(s.replicas) * 4 * s.sampled_rows * s.dim, s.replicas),
        ]
    return [message for message in messages if message.bytes > 0]


def data_parallel_traffic(setup: Setup) -> float:
    """Bytes that a rank sends for the centers alone when every rank holds all of them and averages their gradient."""
    return _ring(setup.ranks) * 4 * setup.classes * setup.dim


def backbone_traffic(setup: Setup, parameters: int) -> float:
    """Bytes that a rank sends for a backbone's gradients, averaged in float32."""
    return _ring(setup.ranks) * 4 * parameters


def total(messages: list[Message]) -> float:
    """Bytes that a rank sends in all."""
    return sum(message.bytes for message in messages)


def _ring(ranks: int) -> float:
    """What a ring all-reduce sends per byte."""
    return 2 * (ranks - 1) / ranks
