"""Glyphs: classes are characters, the images of a class that character in different typefaces. An open set."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_pfc.checked import checked
from lightning_pfc.data.camera import CameraAugmentation
from lightning_pfc.data.counter import stream
from lightning_pfc.data.glyphs.fonts import INSTALL_HINT, FontSet, debian_fonts, matplotlib_fonts, pip_fonts
from lightning_pfc.data.glyphs.store import GlyphStore, open_store
from lightning_pfc.data.images import ArrayImages
from lightning_pfc.data.source import IdentityData
from lightning_pfc.data.verification import VerificationSet, make_pairs

_log = logging.getLogger(__name__)

Preset = Literal["auto", "pip", "large", "matplotlib"]


@checked
@dataclass(frozen=True, kw_only=True)
class Glyphs:
    """Characters drawn from installed fonts.

    Characters are split once, by a hash of their code point: the first ``test_classes`` are for the test, the next
    ``val_classes`` for validation, the next ``train_classes`` for training. So a character that is tested was never
    trained on, and a smaller training set is part of a larger one. Genuine pairs are the same character in two
    different designs.

    Attributes:
        preset: "pip" (two designs of the font wheels, a third held out), "large" (Debian's CJK fonts: five designs, a
            sixth held out), "matplotlib" (DejaVu and STIX; small, no design held out), or "auto": "pip" where those
            wheels are installed, else "matplotlib" with a warning that says what to install.
        size: edge of the images in pixels.
        train_classes: characters to train on; None takes all that are left.
        val_classes, test_classes: characters never trained on, for validation and for the test.
        split_seed: of the split; another value is another problem, whose figures cannot be compared.
        pair_seed: of the verification pairs.
        impostors: pairs of different characters for the rates (the folds have their own).
        cache_dir: where drawn characters are kept; the platform's cache folder (or ``$PFC_CACHE_DIR``) by default.
        workers: processes that draw; one per usable core by default.
        progress: show a progress bar while drawing.
        font_folders: where preset "large" looks for fonts, besides the system's folders.
    """

    preset: Preset = "auto"
    size: int = 32
    train_classes: int | None = 12_000
    val_classes: int = 1_000
    test_classes: int = 4_000
    split_seed: int = 0
    pair_seed: int = 0
    impostors: int = 200_000
    cache_dir: str | os.PathLike[str] | None = None
    workers: int | None = None
    progress: bool = True
    font_folders: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.preset not in get_args(Preset):
            raise ValueError(f"preset={self.preset!r} is not one of {', '.join(get_args(Preset))}.")
        for name, least in (("val_classes", 20), ("test_classes", 20), ("impostors", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")
        if self.train_classes is not None and self.train_classes < 2:
            raise ValueError(f"train_classes={self.train_classes} must be at least 2, or None for all.")

    def fonts(self) -> FontSet:
        """The typefaces that the preset finds here.

        Raises:
            ValueError: if it does not find two designs; the message says what to install.
        """
        if self.preset == "large":
            from lightning_pfc.data.glyphs.fonts import FONT_FOLDERS

            fonts = debian_fonts((*self.font_folders, *FONT_FOLDERS))
            way_out = f"sudo apt-get install {' '.join(fonts.missing)}"
        elif self.preset == "matplotlib":
            fonts, way_out = matplotlib_fonts(), "pip install matplotlib"
        else:
            fonts, way_out = pip_fonts(), INSTALL_HINT
            if self.preset == "auto" and len(fonts.trained) < 2:
                small = matplotlib_fonts()
                if len(small.trained) >= 2:
                    warnings.warn(
                        f"The font wheels are not installed ({', '.join(fonts.missing)}): drawing matplotlib's DejaVu "
                        f"and STIX instead, a small set of letters and signs. For the full set: {INSTALL_HINT}",
                        stacklevel=2,
                    )
                    return small
        if len(fonts.trained) < 2:
            raise ValueError(
                f"preset={self.preset!r} needs two designs and found {len(fonts.trained)}; missing packages: "
                f"{', '.join(fonts.missing)}. Install them: {way_out}"
            )
        if fonts.missing:
            _log.warning("Fonts of the preset that are not installed: %s. %s", ", ".join(fonts.missing), way_out)
        return fonts

    def prepare(self) -> None:
        """Draw the characters, unless the cache holds them."""
        self._store()

    def open(self) -> IdentityData:
        """Split the characters and make the pairs; a second or two.

        Raises:
            ValueError: if the fonts do not hold as many characters as were asked for.
        """
        fonts = self.fonts()
        store = self._store(fonts)
        split = self._split(store, fonts)
        trained = ~np.isin(store.designs, store.heldout)
        rows = np.flatnonzero(np.isin(store.codepoints, split.train) & trained)
        labels = np.searchsorted(split.train, store.codepoints[rows]).astype(np.int64)
        designs = ", ".join(fonts.trained)
        identity = (
            f"{store.key} {len(split.train)} {len(split.val)} {len(split.test)} {self.split_seed} {self.pair_seed}"
        )
        test = {"test": self._verification(store, split.test, trained, 1, f"unseen characters; {designs}")}
        if fonts.heldout_designs:
            held = self._heldout(
                store, split.test, f"unseen characters; {', '.join(fonts.heldout_designs)} (never trained)"
            )
            if held is not None:
                test["heldout"] = held
        return IdentityData(
            train=ArrayImages(store.images, rows),
            labels=labels,
            num_classes=len(split.train),
            task="open",
            fingerprint=hashlib.sha256(f"{identity} {self.impostors}".encode()).hexdigest()[:16],
            augment=CameraAugmentation(),
            validation={"val": self._verification(store, split.val, trained, 2, f"unseen characters; {designs}")},
            test=test,
            class_names=[chr(c) for c in split.train],
            description=f"glyphs ({fonts.name}): {len(split.train):,} characters, {len(rows):,} images; {designs}",
        )

    def _store(self, fonts: FontSet | None = None) -> GlyphStore:
        return open_store(
            self.fonts() if fonts is None else fonts,
            size=self.size,
            folder=self.cache_dir,
            workers=self.workers,
            progress=self.progress,
        )

    def _split(self, store: GlyphStore, fonts: FontSet) -> _Split:
        trained = ~np.isin(store.designs, store.heldout)
        pairs = np.unique(
            np.stack([store.codepoints[trained], store.designs[trained].astype(np.uint32)], axis=1), axis=0
        )
        codepoints, designs = np.unique(pairs[:, 0], return_counts=True)
        codepoints = codepoints[designs >= 2]
        shuffled = codepoints[np.argsort(stream(self.split_seed, codepoints.astype(np.int64)), kind="stable")]
        test, val = self.test_classes, self.val_classes
        if fonts.name == "matplotlib":  # a small set: shares of it, where the defaults would take it whole
            test, val = min(test, len(shuffled) // 5), min(val, len(shuffled) // 20)
        left = len(shuffled) - test - val
        wanted = self.train_classes
        if wanted is not None and fonts.name == "matplotlib":
            wanted = min(wanted, left)
        if left < 2 or (wanted is not None and wanted > left):
            raise ValueError(
                f"train_classes={self.train_classes}, val_classes={self.val_classes}, test_classes="
                f"{self.test_classes}: these fonts draw {len(shuffled)} characters in two designs or more, so "
                f"{max(left, 0)} are left to train on. Ask for less, take train_classes=null for all of them, or "
                "install more fonts (preset=large)."
            )
        end = len(shuffled) if wanted is None else test + val + wanted
        return _Split(
            np.sort(shuffled[test + val : end]), np.sort(shuffled[test : test + val]), np.sort(shuffled[:test])
        )

    def _verification(
        self, store: GlyphStore, characters: NDArray[np.uint32], among: NDArray[np.bool_], part: int, description: str
    ) -> VerificationSet:
        rows = np.flatnonzero(np.isin(store.codepoints, characters) & among)
        identity = store.codepoints[rows].astype(np.int64)
        designs = store.designs[rows].astype(np.int64)
        pairs = make_pairs(identity, designs, seed=self.pair_seed + 1000 * part, impostors=self.impostors)
        return VerificationSet(ArrayImages(store.images, rows), pairs, torch.from_numpy(identity), description)

    def _heldout(self, store: GlyphStore, characters: NDArray[np.uint32], description: str) -> VerificationSet | None:
        held = np.isin(store.designs, store.heldout)
        both = np.intersect1d(characters, store.codepoints[held])
        if len(both) < 100:
            _log.warning("Only %d test characters are drawn by the held-out design: it is not reported.", len(both))
            return None
        rows = np.flatnonzero(np.isin(store.codepoints, both))
        identity = store.codepoints[rows].astype(np.int64)
        designs = store.designs[rows].astype(np.int64)
        known = frozenset(range(len(store.design_names))) - frozenset(store.heldout)
        pairs = make_pairs(
            identity,
            designs,
            seed=self.pair_seed + 3000,
            impostors=self.impostors,
            across=(frozenset(store.heldout), known),
        )
        return VerificationSet(ArrayImages(store.images, rows), pairs, torch.from_numpy(identity), description)


@dataclass(frozen=True)
class _Split:
    """Sorted code points, (n,) uint32 each, no two in common."""

    train: NDArray[np.uint32]
    val: NDArray[np.uint32]
    test: NDArray[np.uint32]
