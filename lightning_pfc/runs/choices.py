"""What a run on somebody's own pictures takes where nothing was said: from the pictures, and told.

Only for data on disk without a published recipe or another ``experiment``; a word that was typed is never changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_pfc.config import config_dir
from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.formats.opening import open_images
from lightning_pfc.data.pictures.decoding import decode, dimensions

_SAMPLE, _DECODED = 200, 48
_LARGEST, _MULTIPLE = 112, 16  # pixels: of an edge; glyphnet halves it three times, and one more is cheap
_PICTURES = 120_000  # that a run should see: more of them on a small set made it no better
_FEWEST, _MOST = 6, 40  # epochs


class Choice(NamedTuple):
    """A key that was chosen."""

    key: str
    value: Any
    why: str


def choose(config: DictConfig, words: Sequence[str]) -> list[Choice]:
    """Set what was not said; the config is changed in place, so that its record has plain values.

    Args:
        config: of ``pfc-train``.
        words: that were typed.

    Returns:
        What was chosen; nothing where nothing is to be.
    """
    source = config.data.source
    if config.get("choices") != "auto" or source.get("_target_") != "lightning_pfc.data.Files" or "recipe" in config:
        return []
    typed = {word.partition("=")[0].lstrip("+~").partition("@")[0] for word in words}
    images = _opened(source) if "experiment" not in typed else None
    if images is None or len(images) == 0:
        return []
    made = [choice for choice in _choices(config, images) if not _said(choice.key, typed)]
    with open_dict(config):
        for key, value, _ in made:
            OmegaConf.update(config, key, value, merge=False, force_add=True)
        config.choices = "made"
    return made


def told(choices: Sequence[Choice]) -> str:
    """A line for each choice."""
    rows = [(c.key, c.value.name if isinstance(c.value, DictConfig) else str(c.value), c.why) for c in choices]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"  {key:<{widths[0]}}  {value:<{widths[1]}}  {why}" for key, value, why in rows]
    return "\n".join(["Chosen from the pictures, where nothing was said (choices=none: nothing is):", *lines])


def _choices(config: DictConfig, images: EncodedImages) -> Iterator[Choice]:
    places = np.unique(np.linspace(0, len(images) - 1, min(_SAMPLE, len(images))).astype(np.int64)).tolist()
    looked = f"{len(places)} of them" if len(places) < len(images) else "all of them"
    sizes = Counter(dimensions(images.read(place)) for place in places)
    (height, width), count = sizes.most_common(1)[0]
    scale = min(1.0, _LARGEST / max(height, width))
    fitted = [max(_MULTIPLE, round(edge * scale / _MULTIPLE) * _MULTIPLE) for edge in (height, width)]
    yield Choice("data.source.image_size", fitted, f"most are {height} x {width} ({count} of {len(places)} looked at)")
    yield Choice("data.source.fit", "stretch", "nothing of a picture is cut off")
    if all(_is_grey(images.read(place)) for place in places[:: max(1, len(places) // _DECODED)]):
        yield Choice("data.source.channels", 1, f"no colour in {looked}")
    if config.data.get("kind") is None:
        yield Choice("data.augment", "none", "mirrored, it may be another identity; of faces: data.kind=faces")
    loss = OmegaConf.load(config_dir() / "loss" / "arcface.yaml")
    loss.scale = 16.0
    yield Choice("loss", loss, "scale 16: the larger scales of long runs learn little in a short one")
    per_class = len(images) / max(images.num_classes, 1)
    batch = int(2 ** np.clip(np.floor(np.log2(max(len(images) / 16, 1))), 4, 8))
    yield Choice("data.batch_size", batch, f"{len(images):,} pictures, {per_class:.3g} a class")
    epochs = int(np.clip(round(_PICTURES / len(images)), _FEWEST, _MOST))
    yield Choice("trainer.max_epochs", epochs, f"{_PICTURES:,} pictures in all, within {_FEWEST} to {_MOST} epochs")


def _said(key: str, typed: set[str]) -> bool:
    """Whether a typed word is about a key, a part of it, or what it is a part of."""
    above = any("." in word and key.startswith(f"{word}.") for word in typed)  # data.source={...}, but not data=folder
    own_size = key == "data.source.image_size" and "backbone" in typed  # other networks have a size of their own
    return above or own_size or any(word == key or word.startswith(f"{key}.") for word in typed)


def _is_grey(data: bytes) -> bool:
    pixels = decode(data, channels=3)
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())


def _opened(source: DictConfig) -> EncodedImages | None:
    """The training images; None where they cannot be opened, which is said better when they are read."""
    plain: Any = OmegaConf.to_container(source, resolve=True)
    try:
        images = open_images(plain["path"], plain.get("format"), allow=plain["allow"], **plain["options"])
        dimensions(images.read(0))
    except (FormatError, OSError, ValueError, TypeError, IndexError, ImportError):
        return None
    return images
