"""What a run takes where nothing was said: on somebody's own pictures from these, on drawn characters what is quick.

Only without a published recipe or another ``experiment``; a word that was typed is never changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.formats.readers import open_images
from lightning_pfc.data.pictures.decoding import dimensions
from lightning_pfc.distributed.jobs import step_host
from lightning_pfc.distributed.rendezvous import agree_on_text
from lightning_pfc.runs.choice_rules import Choice, check, choices_for, look_at, remarks, to_see
from lightning_pfc.runs.quick_choices import precision_choice, quick_choices


class Choices(list[Choice]):
    """What was chosen, ``why`` in general, and ``remarks``: what else a person should know of these pictures."""

    why: str = "from the pictures"
    remarks: Sequence[str] = ()


def choose(config: DictConfig, words: Sequence[str]) -> Choices:
    """Set what was not said; the config is changed in place, so that its record has plain values.

    Args:
        config: of ``pfc-train``.
        words: that were typed.

    Returns:
        What was chosen; nothing where nothing is to be.

    Raises:
        ValueError: there is nothing to learn from these pictures; says what is missing.
    """
    typed = {word.partition("=")[0].lstrip("+~").partition("@")[0] for word in words}
    if config.get("choices") != "auto" or "recipe" in config or "experiment" in typed:
        return Choices()
    if of_own_pictures(config):
        made = _from_pictures(config, typed)
    elif config.data.source.get("_target_") == "lightning_pfc.data.Glyphs":
        made = Choices(choice for choice in quick_choices(config, typed) if not _said(choice.key, typed))
        made.why = "for a short run"
    else:
        return Choices()
    if made:
        with open_dict(config):
            for key, value, _ in made:
                OmegaConf.update(config, key, value, merge=False, force_add=True)
            config.choices = "made"
    return made


def of_own_pictures(config: DictConfig) -> bool:
    """Whether a run is on somebody's own pictures, of which nothing is known before they are looked at."""
    return bool(config.data.source.get("_target_") == "lightning_pfc.data.Files")


def _from_pictures(config: DictConfig, typed: set[str]) -> Choices:
    source = config.data.source
    images = _opened(source)
    if images is None or len(images) == 0:
        return Choices()
    pictures = look_at(images, source.background if _said("data.source.background", typed) else None)
    check(pictures, str(source.path))
    found = [*choices_for(pictures, config, typed), *(precision_choice(config, typed) if config.fit else ())]
    made = Choices(choice for choice in found if not _said(choice.key, typed))
    _find_out(made, images, config)
    made.remarks = remarks(pictures)
    return made


def told(choices: Choices) -> str:
    """A line for each choice and each remark."""
    rows = [(c.key, _short(c.value), c.why) for c in choices]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"  {key:<{widths[0]}}  {value:<{widths[1]}}  {why}" for key, value, why in rows]
    return "\n".join(
        [f"Chosen {choices.why}, where nothing was said (choices=none: nothing is):", *lines, *choices.remarks]
    )


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(part) for part in value.values())
    return str(value.get("name") or "on") if isinstance(value, DictConfig) else str(value)


def _find_out(made: Choices, images: EncodedImages, config: DictConfig) -> None:
    """Whether mirrored and moved pictures keep their identity, in the place of what is taken where that is unknown."""
    place = next((number for number, choice in enumerate(made) if choice.key == "data.augment"), None)
    if place is None or not config.fit:
        return
    chosen = {choice.key: choice.value for choice in made}
    size, channels, epochs = (
        chosen.get(key, OmegaConf.select(config, key))
        for key in ("data.source.image_size", "data.source.channels", "trainer.max_epochs")
    )
    background = chosen.get("data.source.background", config.data.source.get("background", "none"))
    edges = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    pictures = to_see(len(images), epochs)

    def found_out() -> str:
        from lightning_pfc.runs.probe import find_out  # imports torch, for which --help need not wait

        found = find_out(images, edges, channels, pictures, background)
        return json.dumps(None if found is None else [found.augment, found.told()])

    # Of torchrun's and srun's ranks one finds out. Those that a Trainer starts are on its machine, and find the same.
    host = os.environ.get("MASTER_ADDR") or step_host()
    known = json.loads(agree_on_text(f"augmentation for {config.output_dir}", found_out, "data.augment=NAME", host))
    if known is not None:
        made[place] = Choice("data.augment", *known)


def _said(key: str, typed: set[str]) -> bool:
    """Whether a typed word is about a key, a part of it, or what it is a part of."""
    above = any("." in word and key.startswith(f"{word}.") for word in typed)  # data.source={...}, but not data=folder
    own_size = key == "data.source.image_size" and "backbone" in typed  # other networks have a size of their own
    return above or own_size or any(word == key or word.startswith(f"{key}.") for word in typed)


def _opened(source: DictConfig) -> EncodedImages | None:
    """The training images; None where they cannot be opened, which is said better when they are read."""
    plain: Any = OmegaConf.to_container(source, resolve=True)
    try:
        images = open_images(plain["path"], plain.get("format"), allow=plain["allow"], **plain["options"])
        dimensions(images.read(0))
    except (FormatError, OSError, ValueError, TypeError, IndexError, ImportError):
        return None
    return images
