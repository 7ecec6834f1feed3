"""The rules: what suits which pictures, and which nothing can be learned from.

Where they come from: ``recipes/benchmarks/as_it_comes``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from lightning_pfc.config_words import config_dir
from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.pictures.decoding import decode, dimensions, has_transparency
from lightning_pfc.data.pictures.modes import Background
from lightning_pfc.data.verification import LEAST

_SAMPLE, _DECODED = 200, 48
_BACKGROUND: Background = "white"  # of most pages on which transparent pictures are shown
_SHARE_OF_ONE_SIZE = 0.25  # of the pictures, that one is taken for the size of all
_LARGEST, _MULTIPLE = 112, 16  # pixels: of an edge; glyphnet halves it three times, and one more is cheap
_PICTURES = 180_000  # that a run should see
_FEWEST, _MOST = 6, 200  # epochs
_BATCHES, _LEAST_BATCH = 32, 64  # of an epoch; and pictures: half as many take nearly as long in bfloat16
_LEAST_PICTURES = 8
_FOR_UNSEEN, _FOR_BOTH = 5 * LEAST, 15 * LEAST  # identities, to set some aside once and twice
_SMALL = 20_000  # pictures: beyond, a run is long, and a validation of every tenth of it no help
_VALIDATIONS = 10
_LONG, _WHY_16 = 64.0, "64, for long runs, learns less in a few epochs"
_LARGE_BATCH, _LARGE_RATE = 128, 4e-3
_OTHER_RATES = {"optimizer", "optimizer.lr", "optimizer.reference_batch", "preset", "backbone", "finetune", "init_from"}
_FEW, _SMALL_MARGIN = 10, 0.2  # identities; and radians, of fewer
_TEST = 3000, 8000  # pictures


class Choice(NamedTuple):
    """A key that was chosen."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class Pictures:
    """What was seen of the training pictures.

    Attributes:
        counts: (C,) pictures of each identity.
        first: name of an identity.
        sizes: (height, width) of those looked at, and how many have it.
        grey: whether no colour was found.
        transparent: how many of those that were decoded are transparent somewhere, and how many were decoded.
        equal: whether all that were decoded are equal to the pixel.
    """

    counts: NDArray[np.int64]
    first: str
    sizes: Counter[tuple[int, int]]
    grey: bool
    equal: bool
    transparent: tuple[int, int] = (0, 0)

    @property
    def total(self) -> int:
        """Number of pictures."""
        return int(self.counts.sum())

    @property
    def paired(self) -> int:
        """Identities with two pictures at least."""
        return int((self.counts > 1).sum())


def look_at(images: EncodedImages, background: Background | None = None) -> Pictures:
    """Counts of all, sizes of 200, pixels of 48, spread evenly.

    Args:
        images: to train on.
        background: of transparent ones; None for the one that is chosen where there are some.
    """
    places = np.unique(np.linspace(0, len(images) - 1, min(_SAMPLE, len(images))).astype(np.int64)).tolist()
    sizes = Counter(dimensions(images.read(place)) for place in places)
    decoded = [images.read(place) for place in places[:: -(-len(places) // _DECODED)]]
    transparent = sum(map(has_transparency, decoded))
    background = background or (_BACKGROUND if transparent else "none")
    pixels = [decode(data, channels=3, background=background) for data in decoded]
    return Pictures(
        counts=np.bincount(images.labels, minlength=images.num_classes),
        first=str(images.identities[0]),
        sizes=sizes,
        grey=all(bool((p == p[..., :1]).all()) for p in pixels),
        equal=all(np.array_equal(p, pixels[0]) for p in pixels),
        transparent=(transparent, len(decoded)),
    )


def check(pictures: Pictures, path: str) -> None:
    """See that there is something to learn.

    Raises:
        ValueError: there is not; says what is missing.
    """
    identities = len(pictures.counts)
    if identities < 2:
        raise ValueError(
            f"data.source.path={path} holds one identity, {pictures.first!r}: there is nothing to tell it from. Give a "
            "folder for each of at least two, or the folder above if this one is an identity itself."
        )
    if pictures.total < _LEAST_PICTURES:
        raise ValueError(
            f"data.source.path={path} holds {pictures.total} pictures of {identities} identities, too few to train on: "
            f"give {_LEAST_PICTURES} at least. A network that is trained already needs one of each: "
            "pfc-gallery build NAME PICTURES --model EXPORT."
        )
    if not pictures.paired:
        raise ValueError(
            f"data.source.path={path} holds {identities} identities with one picture each, so nothing shows what two "
            "pictures of one have in common. Give some a second picture; choices=none data.source.test_share=0 "
            "data.source.fit=stretch trains all the same."
        )
    if pictures.equal:
        raise ValueError(
            f"data.source.path={path}: all pictures that were looked at are equal to the pixel, so nothing can be "
            f"learned. `pfc-data check {path}` names them; choices=none data.source.fit=stretch trains all the same."
        )


def remarks(pictures: Pictures) -> list[str]:
    """What a person should know before it trains."""
    found = []
    descending = np.sort(pictures.counts)[::-1]
    top = max(1, len(descending) // 50)
    share = descending[:top].sum() / pictures.total
    if share > 0.3 and len(descending) >= 50:
        found.append(
            f"{top} of {len(descending):,} identities have {share:.0%} of the pictures, so the others are seen seldom; "
            "data.sampler=class_balanced draws all as often."
        )
    if pictures.paired < len(descending) / 2:
        found.append(f"{len(descending) - pictures.paired:,} of {len(descending):,} identities have one picture only.")
    if len(pictures.sizes) > 1:
        found.append(f"{len(pictures.sizes)} sizes among the pictures looked at: all are stretched to one.")
    if pictures.total < 5000:
        found.append(
            f"{pictures.total:,} pictures are few: weights that were trained on more of the kind are the better start, "
            "with init_from=CHECKPOINT."
        )
    return found


def choices_for(pictures: Pictures, config: DictConfig, typed: Collection[str]) -> Iterator[Choice]:
    """Every key that has a rule, whether it was typed or not.

    Args:
        pictures: what was seen.
        config: of the run, for what a rule follows from other keys.
        typed: the keys that were typed.
    """
    yield from _preprocessing(pictures)
    if config.data.get("kind") is None:
        why = (
            "moved and turned a little; whether mirrored ones keep their identity is not known: data.kind=faces says so"
        )
        yield Choice("data.augment", "affine", why)
    yield _loss(len(pictures.counts))
    if any(word.split(".")[0] == "loss" for word in typed):
        yield from short_scale(config, typed)
    total, per_class = pictures.total, pictures.total / len(pictures.counts)
    fits = min(_LEAST_BATCH, _power_below(total / 3))  # an epoch has a full batch, whatever is set aside
    batch = int(np.clip(_power_below(total / _BATCHES), fits, 256))
    yield Choice("data.batch_size", batch, f"{total:,} pictures, {per_class:.3g} a class: many steps an epoch")
    used = config.data.batch_size if "data.batch_size" in typed else batch
    if used >= _LARGE_BATCH and not _OTHER_RATES & set(typed):
        yield Choice("optimizer.lr", _LARGE_RATE, f"twice that of smaller batches, for {used} pictures a step")
    epochs = int(np.clip(round(_PICTURES / total), _FEWEST, _MOST))
    yield Choice("trainer.max_epochs", epochs, f"{_PICTURES:,} pictures in all, within {_FEWEST} to {_MOST} epochs")
    own = "trainer.max_epochs" in typed and config.trainer.get("max_epochs")
    yield from _judging(pictures, config, typed, int(own or epochs))


def _loss(identities: int) -> Choice:
    """ArcFace for a short run.

    Few identities with many pictures each are soon told apart, and then a large margin goes on pressing out of the
    features what identities that nobody trained would need.
    """
    loss = OmegaConf.load(config_dir() / "loss" / "arcface.yaml")
    loss.scale, why = 16.0, "scale 16: the larger scales of long runs learn little in a short one"
    if identities < _FEW:
        loss.margin = _SMALL_MARGIN
        why = f"{why}; margin {_SMALL_MARGIN}: a larger one, of {identities} identities alone, does worse on others"
    return Choice("loss", loss, why)


def short_scale(config: DictConfig, typed: Collection[str]) -> Iterator[Choice]:
    """Scale 16 for a loss that comes with 64, of a short run; also for one that was named, without its scale."""
    if config.loss.get("scale") == _LONG and not (config.get("preset") or "preset" in typed):
        yield Choice("loss.scale", 16.0, _WHY_16)


def to_see(total: int, epochs: Any) -> int:
    """Pictures that a test before the run trains a small network on: a tenth of the run's, within bounds."""
    run = total * (epochs if isinstance(epochs, int) and epochs > 0 else 1)
    return int(np.clip(run // 10, min(_TEST[0], run // 4), _TEST[1]))


def _power_below(number: float) -> int:
    return 1 << max(0, int(number).bit_length() - 1)


def _preprocessing(pictures: Pictures) -> Iterator[Choice]:
    (height, width), why = _usual_size(pictures.sizes)
    scale = min(1.0, _LARGEST / max(height, width))
    fitted = [max(_MULTIPLE, round(edge * scale / _MULTIPLE) * _MULTIPLE) for edge in (height, width)]
    yield Choice("data.source.image_size", fitted, why)
    yield Choice("data.source.fit", "stretch", "nothing of a picture is cut off")
    if pictures.grey:
        yield Choice("data.source.channels", 1, "no colour in those looked at")
    some, decoded = pictures.transparent
    if some:
        why = f"{some} of {decoded} looked at are transparent, and the colours below that may be anything"
        yield Choice("data.source.background", _BACKGROUND, why)


def _usual_size(sizes: Counter[tuple[int, int]]) -> tuple[tuple[int, int], str]:
    """(height, width) of most pictures; where all differ, the median of either: the commonest is one by chance then."""
    (height, width), count = sizes.most_common(1)[0]
    looked = sizes.total()
    if count >= _SHARE_OF_ONE_SIZE * looked:
        return (height, width), f"most are {height} x {width} ({count} of {looked} looked at)"
    edges = np.array(list(sizes.elements()))
    height, width = np.median(edges, axis=0).round().astype(int).tolist()
    return (height, width), f"sizes differ; {height} x {width} is the median of {looked} looked at"


def _judging(pictures: Pictures, config: DictConfig, typed: Collection[str], epochs: int) -> Iterator[Choice]:
    """What is set aside to measure on, and the best checkpoint by it."""
    identities = len(pictures.counts)
    own = [key for key in ("validation", "test", "val_share", "test_share", "task") if f"data.source.{key}" in typed]
    if own or pictures.total >= _SMALL:
        return
    few = f"{identities} identities are too few to"
    if identities < _FOR_UNSEEN:
        yield Choice("data.source.task", "closed", f"{few} set some aside: new pictures of the trained ones are judged")
        yield Choice("data.source.val_share", 0.2, "of the pictures of each identity")
        yield Choice("data.source.test_share", 0.0, "the figures at the end are those of the validation")
        watched, mode = "val/loss", "min"
    else:
        yield Choice("data.source.val_share", 0.05, f"of the identities, {LEAST} at least: the best checkpoint is kept")
        if identities < _FOR_BOTH:
            why = f"{few} set some aside twice: the figures at the end are those of the validation"
            yield Choice("data.source.test_share", 0.0, why)
        watched, mode = "val/separation", "max"
    yield from _best_kept(config, typed, (watched, mode), epochs)


def _best_kept(config: DictConfig, typed: Collection[str], watched: tuple[str, str], epochs: int) -> Iterator[Choice]:
    name, mode = watched
    ends = [f"trainer.{key}" for key in ("max_steps", "max_time", "limit_val_batches", "fast_dev_run")]
    own = [word for word in typed if word in ends or word.startswith(("callbacks", "trainer.check_val", "trainer.val"))]
    if own or config.callbacks.get("checkpoint") is None:
        return
    every = max(1, epochs // _VALIDATIONS)
    yield Choice("trainer.check_val_every_n_epoch", every, f"{epochs // every} validations in {epochs} epochs")
    yield Choice("callbacks.checkpoint.monitor", name, "the best checkpoint is what is tested and exported")
    yield Choice("callbacks.checkpoint.mode", mode, "more is better" if mode == "max" else "less is better")
    # The class from the package's own config: a run goes on with classes of those alone.
    stopping = OmegaConf.load(config_dir() / "callbacks" / "early_stopping.yaml").early_stopping
    stopping.update({"monitor": name, "mode": mode})
    why = f"after {stopping.patience} validations without a better one"
    yield Choice("callbacks.early_stopping", stopping, why)
