"""How much memory a rank needs for its part of the head, term by term and phase by phase.

A step has four phases: the classes are drawn, scores go forward, gradients come back, the optimizer steps. Not all
terms are there in all of them, so the peak is the largest sum of a phase and not the sum of all terms.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from lightning_pfc.buffers.staged_rows import PIECE_BYTES
from lightning_pfc.heads.softmax.chunking import bytes_to_keep, chunk_width
from lightning_pfc.keyed_random.permutation import Permutation
from lightning_pfc.optim.rows import CHUNK_BYTES, DEFAULT_CHUNK_BYTES
from lightning_pfc.optim.sgd import VECTOR
from lightning_pfc.planning.setup import Setup
from lightning_pfc.planning.words import BYTES

DRAW, FORWARD, BACKWARD, STEP = "draw", "forward", "backward", "step"
ALWAYS = (DRAW, FORWARD, BACKWARD, STEP)
_PACKED = 4096  # rows of an operand that a CPU's library packs at a time, as seen


class Term(NamedTuple):
    """A part of the memory.

    Attributes:
        name: what it is.
        bytes: how much.
        phases: when it is there.
        formula: how it comes about; c rows of the rank, k of them sampled, D wide, B rows of the group's batch.
        is_of_rows: whether it lies where the centers are, which may be the host's memory.
    """

    name: str
    bytes: int
    phases: tuple[str, ...]
    formula: str
    is_of_rows: bool = False


class Memory(NamedTuple):
    """The memory of a rank for its part of the head, without backbone and process.

    Attributes:
        terms: all of them.
        phase: the one in which most is there.
        peak: bytes then.
    """

    terms: list[Term]
    phase: str
    peak: int

    @property
    def at_peak(self) -> list[Term]:
        """The terms that make up the peak."""
        return [term for term in self.terms if self.phase in term.phases]


def head_memory(setup: Setup) -> Memory:
    """What a rank needs on its device for its part of a head."""
    kept = [term for term in _terms(setup) if not (setup.is_offloaded and term.is_of_rows)]
    ahead = setup.ahead_bytes if setup.goes_ahead else 0
    when = (FORWARD, BACKWARD)
    return _memory([*kept, Term("rows fetched ahead", ahead, when, "k x D as stored, of the batch that has arrived")])


def host_memory(setup: Setup) -> Memory:
    """What a rank needs of the host's memory for its part of a head, where ``rows_on`` is "host"; most of it pinned."""
    if not setup.is_offloaded:
        return _memory([])
    size = min(setup.ahead_bytes, 2 * PIECE_BYTES) if setup.goes_ahead else setup.ahead_bytes
    what = f"two pieces of {PIECE_BYTES >> 20} MiB" if setup.goes_ahead else "k x D as stored"
    ahead = Term("rows fetched ahead", size, (FORWARD, BACKWARD), f"{what}, of the batch that has arrived", True)
    return _memory([*(term for term in _terms(setup) if term.is_of_rows), ahead])


def _memory(every: list[Term]) -> Memory:
    terms = [term for term in every if term.bytes > 0]
    sums = {phase: sum(term.bytes for term in terms if phase in term.phases) for phase in ALWAYS}
    phase = max(sums, key=lambda name: sums[name])
    return Memory(terms, phase, sums[phase])


def _terms(s: Setup) -> list[Term]:
    c, k, width, batch = s.rows, s.sampled_rows, s.dim, s.group_batch
    stored, gathers = BYTES[s.dtype], k < c or s.dtype != "float32"
    size = s.kept_bytes
    device = torch.device(s.device)
    chunk = min(chunk_width(batch, k, width, device, kept_bytes=size, budget=s.memory_budget), k)
    scores = 4 * batch * chunk
    budget = bytes_to_keep(chunk, batch, width, device, kept_bytes=size, budget=s.memory_budget)
    step = chunk if s.has_kernels else 1  # their chunks are wide, and kept whole or not at all
    kept = size * batch * (k if size * batch * k <= budget else budget // max(1, size * batch * step) * step)
    again = size * batch * chunk if kept < size * batch * k else 0  # those of one chunk, computed again
    cast = k * width * stored if s.dtype != "float32" else 0  # the gradient in the type of the centers
    gradient = 0 if s.update_in_backward else 4 * k * width + (0 if s.is_dense else cast)
    # On a CPU the buffers of a step are kept for the next one (lightning_pfc.buffers.scratch).
    two, last = (ALWAYS, ALWAYS) if s.device == "cpu" else ((FORWARD, BACKWARD), (BACKWARD, STEP))
    terms = [
        Term("centers", c * width * stored, ALWAYS, f"c x D x {stored}", True),
        *_state(s),
        Term("drawing", _drawing(s), (DRAW,), "7 int64 a candidate"),
        Term("sampled ids", 16 * k if k < c else 0, (FORWARD, BACKWARD, STEP), "2 int64 a sampled class"),
        Term("kept exponentials", kept, two, f"B x k x {size}, up to the memory budget"),
        Term("exponentials of a chunk", again, two, f"B x chunk x {size}"),
        Term("gradient of the centers", gradient, last, "k x D x 4" + (" and as stored" if cast else ""), True),
    ]
    if s.is_dense:
        whole = c * width * stored
        if k < c or cast:
            terms.append(Term("dense gradient", whole, (BACKWARD, STEP), "c x D as stored: every center moves", True))
            if s.device != "cpu":
                terms[-2] = terms[-2]._replace(phases=(BACKWARD,))
        terms.append(Term("temporaries of torch.optim", whole, (STEP,), "c x D as stored", True))
    elif not s.has_kernels:  # they step rows where these lie
        limit = CHUNK_BYTES.get(s.device, DEFAULT_CHUNK_BYTES)
        phases = (BACKWARD,) if s.update_in_backward else (STEP,)
        in_float32 = s.dtype == s.state_dtype == "float32" and width % VECTOR == 0
        one_pass = s.device == "cpu" and s.optimizer == "sgd" and in_float32  # no room for what is on the way
        rooms = (1 if one_pass else 3) + s.state_tensors
        terms.append(
            Term("rows in the optimizer", rooms * min(limit, 4 * k * width), phases, "a few chunks of rows", True)
        )
    if s.has_kernels:
        return [*terms, *_chunk_of_kernels(s, chunk, again > 0), _embeddings(s)]
    rows = chunk * width * (4 * gathers + (stored if s.dtype != "float32" else 0) + 4 * s.update_in_backward)
    operand = 2 if size == 2 else 0
    chunks = [
        Term("unit rows of a chunk", chunk * width * (4 + operand), (FORWARD,), f"chunk x D x {4 + operand}"),
        Term("gradient of a chunk", chunk * width * operand, (BACKWARD,), "chunk x D x 2"),
    ]
    if s.device == "cpu":  # what the products' library packs, and never gives back
        packed = 2 * s.threads * 4 * width * min(k, _PACKED)
        terms.append(Term("packed operands", packed, ALWAYS, f"2 x threads x D x {_PACKED} x 4"))
    else:
        chunks.append(Term("scores of a chunk", scores, (FORWARD,), "B x chunk x 4"))
    return [
        *terms,
        *chunks,
        Term("chunk of centers", rows, two, "chunk x D"),
        _embeddings(s),
    ]


def _embeddings(s: Setup) -> Term:
    size = 6 * 4 * s.group_batch * s.dim
    return Term("embeddings", size, (FORWARD, BACKWARD), "6 x B x D x 4: gathered, unit length, gradients")


def _chunk_of_kernels(s: Setup, chunk: int, again: bool) -> list[Term]:
    """What a chunk needs on its way where kernels read and step the centers where they lie, and copy none.

    Args:
        s: the run.
        chunk: classes of one.
        again: whether exponentials are computed again in the backward pass.
    """
    phases = (FORWARD, BACKWARD) if again else (FORWARD,)
    gradient = 4 * chunk * s.dim * s.update_in_backward
    return [
        Term("unit rows of a chunk", chunk * s.dim * s.kept_bytes, phases, f"chunk x D x {s.kept_bytes}"),
        Term("scores of a chunk", 4 * s.group_batch * chunk, phases, "B x chunk x 4"),
        Term("gradient of a chunk", gradient, (BACKWARD,), "chunk x D x 4"),
    ]


def _state(s: Setup) -> list[Term]:
    if s.optimizer == "adagrad":
        return [Term("optimizer state", 4 * s.rows, ALWAYS, "4 a class", True)]
    size = BYTES[s.dtype if s.is_dense else s.state_dtype]
    scale = 4 * s.rows * s.state_tensors if size == 1 else 0
    last = 4 * s.rows if s.optimizer == "adamw" else 0
    return [
        Term("last step of a row", last, ALWAYS, "4 a class, with missed_steps=decay only", True),
        Term(
            "optimizer state",
            s.state_tensors * s.rows * s.dim * size + scale,
            ALWAYS,
            f"{s.state_tensors} x c x D x {size}" + (" and a scale a row" if scale else ""),
            True,
        ),
    ]


def _drawing(s: Setup) -> int:
    if s.budget >= s.classes or not s.budget:
        return 0
    domain = Permutation(s.classes, torch.zeros(0, dtype=torch.int64)).domain
    return 7 * 8 * min(domain, s.budget + domain - s.classes)
