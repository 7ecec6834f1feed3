"""The drawn characters on disk: built once per machine, opened as a memory map ever after."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import features
from tqdm.auto import tqdm

from lightning_pfc.data.arrays import NpyFile, read_npz
from lightning_pfc.data.cache import build_once, cache_dir
from lightning_pfc.data.errors import reading
from lightning_pfc.data.glyphs.drawing import draw_all
from lightning_pfc.data.glyphs.fonts import FontSet
from lightning_pfc.storage.enclosure import Enclosure

_log = logging.getLogger(__name__)

_FORMAT = 2  # raised whenever the same fonts and parameters would give other pictures
_PART = 8192  # code points in a part: what an interruption can cost
_MAX_INFO = 1 << 24  # bytes of its description
_PLACEHOLDER = 4  # a picture that one face draws for this many characters stands for none of them


@dataclass(frozen=True)
class GlyphStore:
    """Pictures of characters, distinct within a character, sorted by code point.

    Attributes:
        images: (N, size, size) uint8, white on black; a read-only memory map.
        codepoints: (N,) uint32, the character of each.
        designs: (N,) uint8, number of its design in ``design_names``.
        design_names: the designs.
        heldout: numbers of the designs that are never trained on.
        key: fingerprint of fonts, versions and parameters; the same everywhere the pictures are.
    """

    images: NDArray[np.uint8]
    codepoints: NDArray[np.uint32]
    designs: NDArray[np.uint8]
    design_names: tuple[str, ...]
    heldout: tuple[int, ...]
    key: str


def open_store(
    fonts: FontSet,
    *,
    size: int = 32,
    em: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> GlyphStore:
    """Open the pictures of a font set, drawing them first if no run on this machine has.

    Drawing goes in parts. A part is kept as soon as it is done, so an interrupted build goes on where it stopped;
    several processes or nodes that come here at once share one build.

    Args:
        fonts: what to draw with.
        size: edge of the pictures in pixels.
        em: font size in pixels; 7/8 of ``size`` by default, which leaves room to shift and turn.
        folder: cache folder instead of the platform's; see :func:`lightning_pfc.data.cache.cache_dir`.
        workers: processes that draw; one per usable core by default.
        progress: show a progress bar while drawing.

    Raises:
        ValueError: for a size too small to draw in.
        OSError: if the cache folder cannot be written.
        RuntimeError: if a drawing process failed; finished parts are kept.
    """
    if size < 8:
        raise ValueError(f"size={size}: characters need at least 8 pixels.")
    em = round(size * 7 / 8) if em is None else em
    if not 4 <= em <= size:
        raise ValueError(f"em={em} must lie between 4 and size={size}.")
    description = _description(fonts, size, em)
    key = _key(description)
    target = cache_dir(folder) / "glyphs" / f"{fonts.name}-{size}px-{key}"

    def build(empty: Path) -> None:
        parts = target.with_name(target.name + ".parts")
        parts.mkdir(parents=True, exist_ok=True)
        _draw_parts(fonts, size, em, parts, _usable_cores() if workers is None else workers, progress)
        _assemble(fonts, parts, size, em, empty, description)
        for path in parts.iterdir():
            path.unlink(missing_ok=True)
        parts.rmdir()

    build_once(target, build)
    return _open(target, key, named=True)


def _description(fonts: FontSet, size: int, em: int) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "size": size,
        "em": em,
        "ranges": fonts.ranges,
        "faces": [(f.design, f.digest(), f.face, f.heldout) for f in fonts.faces],
        "version": fonts.version,
        "pillow": PIL.__version__,
        "freetype": features.version("freetype2"),
    }


def _key(description: Any) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _jobs(fonts: FontSet, size: int, em: int, parts: Path) -> Iterator[dict[str, Any]]:
    for number, face in enumerate(fonts.faces):
        for start, stop in fonts.ranges:
            for first in range(start, stop, _PART):
                last = min(first + _PART, stop)
                yield {
                    "target": str(parts / f"{number:03d}-{first:06x}-{last:06x}.npz"),
                    "path": str(face.path),
                    "face": face.face,
                    "start": first,
                    "stop": last,
                    "size": size,
                    "em": em,
                }


def _draw_parts(fonts: FontSet, size: int, em: int, parts: Path, workers: int, progress: bool) -> None:
    jobs = list(_jobs(fonts, size, em, parts))
    todo = [job for job in jobs if not Path(job["target"]).exists()]
    total = sum(job["stop"] - job["start"] for job in jobs)
    bar = tqdm(
        total=total,
        initial=total - sum(job["stop"] - job["start"] for job in todo),
        unit="glyph",
        unit_scale=True,
        desc=f"Drawing {len(fonts.designs)} designs",
        disable=not progress,
    )
    with bar, contextlib.closing(draw_all(todo, workers, parts)) as drawn:
        for number in drawn:
            bar.update(number)


def _assemble(fonts: FontSet, parts: Path, size: int, em: int, target: Path, description: dict[str, Any]) -> None:
    """Join the parts: drop what stands for no character, look-alikes of others, and what a character already has."""
    codepoints, images, faces = _read_parts(fonts, parts, size, em)
    design_of = np.asarray([fonts.designs.index(f.design) for f in fonts.faces], dtype=np.uint8)
    held_face = np.asarray([f.heldout for f in fonts.faces], dtype=bool)
    _, picture = np.unique(images.reshape(len(images), -1).view(f"V{size * size}").ravel(), return_inverse=True)
    held = held_face[faces] if len(faces) else np.zeros(0, dtype=bool)
    keep = ~_placeholders(picture, faces)
    # By the trained designs alone: whether a held-out font is installed must not change what is trained on.
    keep &= ~np.isin(codepoints, _doubles(picture, codepoints, keep & ~held))
    keep &= ~held | ~_ambiguous(picture, codepoints, keep)
    keep &= _first_of(picture, codepoints, keep)
    chosen = np.flatnonzero(keep)
    chosen = chosen[np.lexsort((faces[chosen], codepoints[chosen]))]
    _log.info("Drew %d pictures; kept %d distinct ones that stand for one character each.", len(images), len(chosen))
    np.save(target / "images.npy", images[chosen])
    np.savez(target / "table.npz", codepoints=codepoints[chosen], designs=design_of[faces[chosen]])
    info = {
        "designs": fonts.designs,
        "heldout": [fonts.designs.index(d) for d in fonts.heldout_designs],
        "description": description,
    }
    (target / "info.json").write_text(json.dumps(info, indent=1))


def _read_parts(
    fonts: FontSet, parts: Path, size: int, em: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint8], NDArray[np.int64]]:
    codepoints: list[NDArray[np.uint32]] = [np.zeros(0, np.uint32)]
    images: list[NDArray[np.uint8]] = [np.zeros((0, size, size), np.uint8)]
    faces: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for job in _jobs(fonts, size, em, parts):
        part, _ = read_npz(job["target"], ("codepoints", "images"))
        codepoints.append(part["codepoints"])
        images.append(part["images"])
        faces.append(np.full(len(codepoints[-1]), int(Path(job["target"]).name[:3])))
    return np.concatenate(codepoints), np.concatenate(images), np.concatenate(faces)


def _placeholders(picture: NDArray[np.int64], faces: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pictures that one face draws for many characters: boxes, dots, question marks."""
    pairs = np.stack([faces, picture], axis=1)
    _, inverse, counts = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse.ravel()] >= _PLACEHOLDER)


def _sharing(picture: NDArray[np.int64], codepoints: NDArray[np.uint32], among: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n, 2) distinct (picture, character) of the pictures that stand for more than one character among the chosen."""
    pairs = np.unique(np.stack([picture[among], codepoints[among].astype(np.int64)], axis=1), axis=0)
    values, counts = np.unique(pairs[:, 0], return_counts=True)
    return pairs[np.isin(pairs[:, 0], values[counts > 1])]


def _doubles(
    picture: NDArray[np.int64], codepoints: NDArray[np.uint32], among: NDArray[np.bool_]
) -> NDArray[np.uint32]:
    """Look-alikes: of the characters that share a picture, directly or through others, all but the first."""
    first: dict[int, int] = {}

    def find(character: int) -> int:
        while (parent := first.setdefault(character, character)) != character:
            character = parent
        return character

    pairs = _sharing(picture, codepoints, among)
    for (before, one), (after, other) in zip(pairs[:-1].tolist(), pairs[1:].tolist(), strict=True):
        if before == after and (a := find(one)) != (b := find(other)):
            first[max(a, b)] = min(a, b)
    return np.asarray([c for c in list(first) if find(c) != c], dtype=np.uint32)


def _ambiguous(
    picture: NDArray[np.int64], codepoints: NDArray[np.uint32], among: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Pictures that stand for more than one character among the chosen: they carry no label."""
    return np.isin(picture, _sharing(picture, codepoints, among)[:, 0])


def _first_of(
    picture: NDArray[np.int64], codepoints: NDArray[np.uint32], among: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """The first of each picture of each character among the chosen, in the order of the faces."""
    rows = np.flatnonzero(among)
    _, first = np.unique(
        np.stack([picture[rows], codepoints[rows].astype(np.int64)], axis=1), axis=0, return_index=True
    )
    mask = np.zeros(len(picture), dtype=bool)
    mask[rows[first]] = True
    return mask


def _open(folder: Path, key: str, named: bool = False) -> GlyphStore:
    """What ``_assemble`` wrote.

    Args:
        folder: of the store.
        key: of the store.
        named: whether the key must be that of what was drawn.

    Raises:
        FormatError: it is damaged; says which folder to remove.
    """
    inside = Enclosure(folder)
    with reading(folder, "a store of drawn characters (remove the folder, and it is drawn again)"):
        info = json.loads(inside.read("info.json", _MAX_INFO))
        if named and _key(info["description"]) != key:
            raise ValueError("it holds characters of other fonts, sizes or versions than its name says")
        table, _ = read_npz(inside.real("table.npz"), ("codepoints", "designs"))
        codepoints, designs = table["codepoints"], table["designs"]
        images = NpyFile(inside.real("images.npy"))
        names, heldout = tuple(map(str, info["designs"])), tuple(map(int, info["heldout"]))
        count = len(images)
        fits = images.ndim == 3 and images.dtype == np.uint8 and codepoints.shape == designs.shape == (count,)
        if not fits or codepoints.dtype != np.uint32 or (count and int(designs.max()) >= len(names)):
            raise ValueError("its tables do not belong together")
        return GlyphStore(images.mapped(), codepoints, designs, names, heldout, key)
