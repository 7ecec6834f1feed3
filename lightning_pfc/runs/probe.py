"""Which changes keep an identity, found out: a small network trains without them, and is asked on other identities.

Of fewer than eight identities it is asked on other pictures of the same.
A change keeps an identity where a picture and itself, changed, look more alike to that network than two pictures of
one identity do (a voice of another pitch does not), and where the others of its identity still know it (a mirrored
character they do not). Both hold with wrong labels among the pictures. One training serves all changes, and figures of
one network have none of the luck of two. What it was seen to say, and what training with each change brought, is in
``recipes/benchmarks/as_it_comes``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_pfc.data.augment import MOVED_AND_MIRRORED, augmentation
from lightning_pfc.data.camera import to_float
from lightning_pfc.data.counter import stream
from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.pictures.modes import Background
from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.models.glyphnet import GlyphNet

_EDGE, _MULTIPLE = 48, 16  # pixels
_WIDTHS, _DIMENSIONS = (16, 32, 64, 128), 64  # a quarter of glyphnet's work
_BATCH, _RATE, _SCALE, _MARGIN = 64, 2e-3, 16.0, 0.5
_EACH = 8  # pictures of an identity
_LEAST, _MOST = 4, 100  # identities that are held back
_FEWEST, _ENOUGH = 3, 32  # identities to ask about; and pictures of each, where there are too few to hold any back
_STRANGERS = 50_000
_LEARNED = 0.55  # area under the curve; 0.5 is chance
_KNOWN = 0.67

CHANGES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "affine": lambda x: augmentation("affine")(x, stream(0, 17, np.arange(len(x)))),
    "flip": lambda x: to_float(x.flip(3)),
}
"""By the augmentation that makes them: (n, C, H, W) uint8 to float32 in [-1, 1]."""
_WORDS = {"affine": "moved", "flip": "mirrored"}


class Change(NamedTuple):
    """What a change does to pictures of held-back identities.

    Attributes:
        itself: area under the curve of a picture and itself, changed, against pairs of different identities.
        known: what is left of the area above chance, of pairs of one identity, when one of them is changed.
    """

    itself: float
    known: float


@dataclass(frozen=True)
class Found:
    """What the network says of held-back identities.

    Attributes:
        alike: area under the curve of two pictures of one identity, against pairs of different ones.
        changes: by augmentation.
        identities: that were asked about.
        seconds: of processor time.
    """

    alike: float
    changes: dict[str, Change]
    identities: int
    seconds: float

    @property
    def kept(self) -> list[str]:
        """The changes that keep an identity."""
        return [name for name, (itself, known) in self.changes.items() if itself >= self.alike and known >= _KNOWN]

    @property
    def augment(self) -> str | dict[str, Any]:
        """The augmentation of those changes."""
        return dict(MOVED_AND_MIRRORED) if len(self.kept) == len(CHANGES) else "_".join(self.kept) or "none"

    def told(self) -> str:
        """The figures, for a person."""
        asked = ", ".join(
            f"{_WORDS[name]} {itself:.0%} like itself and {known:.0%} known to others"
            for name, (itself, known) in self.changes.items()
        )
        return (
            f"found out on {self.identities} identities in {self.seconds:.0f} s: a picture is {asked}; "
            f"{self.alike:.0%}, as two of one identity, and {_KNOWN:.0%} are the least"
        )


def find_out(
    images: EncodedImages, size: tuple[int, int], channels: int, pictures: int, background: Background = "none"
) -> Found | None:
    """Train and ask; the same on every rank, whatever was drawn before.

    Args:
        images: to train on.
        size: (H, W) that the run chose; the test looks at 48 pixels at most.
        channels: 1 or 3.
        pictures: to see in training.
        background: of transparent ones.

    Returns:
        What was found; None where that says nothing: of fewer than eight identities with two pictures (three, if each
        has 32), or where the network has learned too little to know any again.
    """
    started = time.process_time()
    trained, held = _split(images.labels, pictures)
    if held is None:
        return None
    scale = min(1.0, _EDGE / max(size))
    fitted = [max(_MULTIPLE, round(edge * scale / _MULTIPLE) * _MULTIPLE) for edge in size]
    known = Preprocessing(size=(fitted[0], fitted[1]), channels=channels, fit="stretch", background=background)
    with _alone():
        x, y = _decoded(images, trained, known)
        asked, identity = _decoded(images, held, known)
        if min(_different(y), _different(identity)) < _FEWEST:  # the others are broken
            return None
        alike, changes = _asked(_trained(x, y, max(1, pictures // _BATCH)), asked, identity)
    if not alike >= _LEARNED:
        return None
    return Found(alike, changes, int(identity.max()) + 1, time.process_time() - started)


def _different(labels: Tensor) -> int:
    return len(np.unique(labels.numpy()))


def _split(labels: NDArray[np.int64], pictures: int) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Places of pictures to train on and to ask about: other identities, or of few the same."""
    counts = np.bincount(labels)
    paired = np.flatnonzero(counts > 1)
    order = paired[np.argsort(stream(0, 19, paired), kind="stable")]
    if len(order) < 2 * _LEAST:
        return _split_each(labels, np.flatnonzero(counts >= _ENOUGH))
    aside = int(np.clip(len(order) // 4, _LEAST, _MOST))
    most = max(_LEAST, pictures // 2 // min(_EACH, int(np.median(counts[paired]))))  # each is seen twice at least
    by_class = np.argsort(labels, kind="stable")
    starts = np.cumsum(counts) - counts
    few = [by_class[starts[c] : starts[c] + counts[c]] for c in order[: aside + most]]
    # More pictures of each where there are few identities.
    each = max(_EACH, pictures // 2 // max(1, len(few) - aside))
    spread = [rows[np.linspace(0, len(rows) - 1, min(each, len(rows))).astype(np.int64)] for rows in few]
    return np.concatenate(spread[aside:]), np.concatenate([rows[: 2 * _EACH] for rows in spread[:aside]])


def _split_each(
    labels: NDArray[np.int64], identities: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Some pictures of each identity are asked about, and all others are trained on."""
    if len(identities) < _FEWEST:
        return labels[:0], None
    trained, held = [], []
    for identity in identities:
        rows = np.flatnonzero(labels == identity)
        rows = rows[np.argsort(stream(0, 23, rows), kind="stable")]
        held.append(rows[: 2 * _EACH])
        trained.append(rows[2 * _EACH :])
    return np.concatenate(trained), np.concatenate(held)


def _decoded(images: EncodedImages, places: NDArray[np.int64], known: Preprocessing) -> tuple[Tensor, Tensor]:
    """(n, C, H, W) uint8 pictures and (n,) labels from 0 on, without broken ones: the run itself tells of those."""
    found, labels = [], []
    for place in places.tolist():
        try:
            found.append(known.picture(images.read(place)))
        except (FormatError, OSError):
            continue
        labels.append(int(images.labels[place]))
    numbers = np.unique(np.asarray(labels), return_inverse=True)[1]
    pixels = np.stack(found) if found else np.zeros((0, *known.size, known.channels), np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(numbers)


def _trained(x: Tensor, y: Tensor, steps: int) -> nn.Module:
    """ArcFace, with centers that learn ten times as fast; no change but the order."""
    classes = int(y.max()) + 1
    body = nn.Sequential(
        GlyphNet(x.shape[1], tuple(x.shape[2:]), widths=_WIDTHS),
        nn.Linear(_WIDTHS[-1], _DIMENSIONS),
        nn.BatchNorm1d(_DIMENSIONS),
    )
    centers = nn.Parameter(torch.randn(classes, _DIMENSIONS) * 0.01)
    groups = [{"params": body.parameters(), "times": 1}, {"params": [centers], "times": 10}]
    optimizer = torch.optim.AdamW(groups, lr=_RATE, weight_decay=0.01)
    order = torch.cat([torch.randperm(len(x)) for _ in range(-(-steps * _BATCH // len(x)))])
    for step, rows in enumerate(order[: steps * _BATCH].view(steps, _BATCH)):
        for group in optimizer.param_groups:
            group["lr"] = group["times"] * _RATE * (1 - step / steps)
        cosine = F.linear(F.normalize(body(to_float(x[rows]))), F.normalize(centers)).clamp(-1 + 1e-6, 1 - 1e-6)
        own = F.one_hot(y[rows], classes).bool()
        logits = torch.where(own, (cosine.arccos() + _MARGIN).clamp(max=3.14).cos(), cosine)
        optimizer.zero_grad()
        loss = F.cross_entropy(_SCALE * logits, y[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return body.eval()


@torch.no_grad()
def _asked(network: nn.Module, x: Tensor, y: Tensor) -> tuple[float, dict[str, Change]]:
    def embedded(pictures: Tensor) -> Tensor:
        parts = torch.tensor_split(pictures, len(pictures) // 256 + 1)
        return F.normalize(torch.cat([network(part) for part in parts]))

    rows = embedded(to_float(x))
    cosine, same = rows @ rows.T, y[:, None] == y[None]
    strangers = cosine[~same]
    strangers = strangers[:: -(-len(strangers) // _STRANGERS)].sort().values
    others = same & ~torch.eye(len(y), dtype=torch.bool)

    def area(scores: Tensor) -> float:
        return float(torch.searchsorted(strangers, scores).double().mean() / len(strangers))

    alike, changes = area(cosine[others]), {}
    for name, change in CHANGES.items():
        changed = embedded(change(x))
        known = (area((rows @ changed.T)[others]) - 0.5) / max(alike - 0.5, 1e-3)
        changes[name] = Change(area((rows * changed).sum(1)), known)
    return alike, changes


@contextmanager
def _alone() -> Iterator[None]:
    """Random numbers of its own, and one thread: sums in the same order on every rank."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
